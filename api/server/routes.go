package server

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"vpssnapd/daemon/vps"
)

// route is one line of the route table: a call and who may make it.
type route struct {
	method string
	path   string // as in openapi.yaml
	need   vps.Scope
	handle echo.HandlerFunc
}

// routes is the one table of what can be called.
func routes(w *ServerInterfaceWrapper) []route {
	const (
		one      = "/v1/vps/{vps}"
		option   = one + "/option"
		snapshot = one + "/snapshot"
		op       = "/v1/operations/{id}"
		hook     = "/v1/webhooks/{webhook}"
	)
	// A test compares it with openapi.yaml both ways.
	return []route{
		{http.MethodGet, "/v1/vps", vps.ScopeRead, w.ListVPS},
		{http.MethodGet, one, vps.ScopeRead, w.ShowVPS},
		{http.MethodGet, "/v1/offers", vps.ScopeRead, w.ListOffers},

		{http.MethodGet, option, vps.ScopeRead, w.ShowOption},
		{http.MethodPut, option, vps.ScopeOption, w.PutOption},
		{http.MethodDelete, option, vps.ScopeOption, w.CancelOption},
		{http.MethodGet, option + "/history", vps.ScopeRead, w.ListOptionHistory},

		{http.MethodPost, snapshot, vps.ScopeSnapshot, w.TakeSnapshot},
		{http.MethodGet, snapshot, vps.ScopeRead, w.ShowSnapshot},
		{http.MethodPatch, snapshot, vps.ScopeSnapshot, w.DescribeSnapshot},
		{http.MethodDelete, snapshot, vps.ScopeSnapshot, w.DeleteSnapshot},
		{http.MethodPost, snapshot + "/restore", vps.ScopeSnapshot, w.RestoreSnapshot},
		{http.MethodPost, snapshot + "/undo-restore", vps.ScopeSnapshot, w.UndoRestore},
		{http.MethodPost, snapshot + "/vouch", vps.ScopeAdmin, w.VouchForSnapshot},

		{http.MethodPost, snapshot + "/download", vps.ScopeSnapshot, w.MakeDownload},
		{http.MethodGet, snapshot + "/download", vps.ScopeRead, w.ListDownloads},
		{http.MethodDelete, snapshot + "/download/{download}", vps.ScopeSnapshot, w.RevokeDownload},
		{http.MethodGet, "/v1/downloads/{link}", vps.ScopeNone, w.Download},
		{http.MethodHead, "/v1/downloads/{link}", vps.ScopeNone, w.DescribeDownload},

		{http.MethodGet, one + "/messages", vps.ScopeRead, w.ListVPSMessages},
		{http.MethodGet, "/v1/messages", vps.ScopeRead, w.ListMessages},

		{http.MethodGet, "/v1/events", vps.ScopeRead, w.ListenEvents},

		{http.MethodGet, "/v1/operations", vps.ScopeRead, w.ListOperations},
		{http.MethodGet, op, vps.ScopeRead, w.ShowOperation},
		{http.MethodPost, op + "/cancel", vps.ScopeSnapshot, w.CancelOperation},
		{http.MethodPost, op + "/resume", vps.ScopeAdmin, w.ResumeOperation},

		{http.MethodGet, "/v1/tokens", vps.ScopeAdmin, w.ListTokens},
		{http.MethodPost, "/v1/tokens", vps.ScopeRead, w.CreateToken},
		{http.MethodDelete, "/v1/tokens/{token}", vps.ScopeAdmin, w.RevokeToken},

		{http.MethodGet, "/v1/webhooks", vps.ScopeAdmin, w.ListWebhooks},
		{http.MethodPost, "/v1/webhooks", vps.ScopeAdmin, w.CreateWebhook},
		{http.MethodGet, hook, vps.ScopeAdmin, w.ShowWebhook},
		{http.MethodDelete, hook, vps.ScopeAdmin, w.DeleteWebhook},
		{http.MethodPost, hook + "/test", vps.ScopeAdmin, w.TestWebhook},

		{http.MethodGet, "/v1/host", vps.ScopeAdmin, w.ShowHost},
		{http.MethodGet, "/v1/host/checks", vps.ScopeAdmin, w.CheckHost},
		{http.MethodPost, "/v1/host/repair", vps.ScopeAdmin, w.RepairHost},
		{http.MethodGet, "/healthz", vps.ScopeNone, w.ShowHealth},
		{http.MethodGet, "/readyz", vps.ScopeNone, w.ShowReadiness},
		{http.MethodGet, "/metrics", vps.ScopeAdmin, w.ShowMetrics},
		{http.MethodGet, "/docs", vps.ScopeNone, w.ShowDocs},
		{http.MethodGet, "/openapi.yaml", vps.ScopeNone, w.ShowSpec},
	}
}
