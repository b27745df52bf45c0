package server

import (
	"net/http"

	"github.com/labstack/echo/v4"
)

// route is one line of the route table: a call and who may make it.
type route struct {
	method string
	path   string // as in openapi.yaml
	need   Scope
	handle echo.HandlerFunc
}

// routes is the one table of what can be called.
func routes(w *ServerInterfaceWrapper) []route {
	const (
		one      = "/v1/vps/{vps}"
		option   = one + "/option"
		snapshot = one + "/snapshot"
		op       = "/v1/operations/{id}"
	)
	return []route{
		{http.MethodGet, "/v1/vps", ScopeRead, w.ListVPS},
		{http.MethodGet, one, ScopeRead, w.ShowVPS},
		{http.MethodGet, "/v1/offers", ScopeRead, w.ListOffers},

		{http.MethodGet, option, ScopeRead, w.ShowOption},
		{http.MethodPut, option, ScopeOption, w.PutOption},
		{http.MethodDelete, option, ScopeOption, w.CancelOption},

		{http.MethodPost, snapshot, ScopeSnapshot, w.TakeSnapshot},
		{http.MethodGet, snapshot, ScopeRead, w.ShowSnapshot},
		{http.MethodPatch, snapshot, ScopeSnapshot, w.DescribeSnapshot},
		{http.MethodDelete, snapshot, ScopeSnapshot, w.DeleteSnapshot},
		{http.MethodPost, snapshot + "/restore", ScopeSnapshot, w.RestoreSnapshot},
		{http.MethodPost, snapshot + "/undo-restore", ScopeSnapshot, w.UndoRestore},

		{http.MethodGet, one + "/messages", ScopeRead, w.ListVPSMessages},
		{http.MethodGet, "/v1/messages", ScopeRead, w.ListMessages},

		{http.MethodGet, "/v1/operations", ScopeRead, w.ListOperations},
		{http.MethodGet, op, ScopeRead, w.ShowOperation},
		{http.MethodPost, op + "/cancel", ScopeSnapshot, w.CancelOperation},
		{http.MethodPost, op + "/resume", ScopeAdmin, w.ResumeOperation},

		{http.MethodGet, "/v1/host", ScopeAdmin, w.ShowHost},
		{http.MethodGet, "/v1/host/checks", ScopeAdmin, w.CheckHost},
		{http.MethodPost, "/v1/host/repair", ScopeAdmin, w.RepairHost},
		{http.MethodGet, "/healthz", ScopeNone, w.ShowHealth},
		{http.MethodGet, "/readyz", ScopeNone, w.ShowReadiness},
		{http.MethodGet, "/metrics", ScopeAdmin, w.ShowMetrics},
		{http.MethodGet, "/openapi.yaml", ScopeNone, w.ShowSpec},
	}
}
