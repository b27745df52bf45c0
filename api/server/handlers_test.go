package server_test

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

func TestTakeIsFollowedToItsEnd(t *testing.T) {
	s := newSite(t)
	reached, release := s.host.Hold(daemontest.InTake)
	got := s.operator(http.MethodPost, "/v1/vps/web1/snapshot", `{"description":"before","quiesce":"require"}`)
	op := decode[api.Operation](t, got)
	if got.StatusCode != 202 || got.Header.Get("Location") != "/v1/operations/"+op.ID {
		t.Fatalf("take: %s, Location %q", got.Status, got.Header.Get("Location"))
	}
	if op.Kind != api.OperationKindTake || op.Status != api.OperationStatusPending || !op.Cancellable ||
		op.VPSName != "web1" {
		t.Errorf("the operation: %+v", op)
	}
	var seen []api.OperationStatus
	<-reached
	for _, wait := range []string{"1ms", "30s"} {
		op = decode[api.Operation](t, s.operator(http.MethodGet, got.Header.Get("Location")+"?wait="+wait, ""))
		if seen = append(seen, op.Status); len(seen) == 1 {
			release()
		}
	}
	if want := []api.OperationStatus{"running", "succeeded"}; !slices.Equal(seen, want) || op.Progress.Percent != 100 ||
		op.Cancellable {
		t.Errorf("seen %v, at last %+v", seen, op)
	}
	v := decode[api.VPS](t, s.operator(http.MethodGet, "/v1/vps/web1", ""))
	if v.Snapshot == nil || v.Snapshot.Description != "before" || v.Operation != nil {
		t.Errorf("the VPS: %+v", v)
	}
	if got := s.operator(http.MethodPost, "/v1/vps/web1/snapshot", ""); got.StatusCode != 409 ||
		got.problem(t).Code != api.CodeSnapshotExists {
		t.Errorf("a second take: %s", got.Status)
	}
	if got := s.operator(http.MethodPost, "/v1/vps/web2/snapshot", "{}"); got.StatusCode != 402 ||
		got.problem(t).Remedy == "" {
		t.Errorf("without option: %s %s", got.Status, got.body)
	}
}

func TestRestoreWantsToBeConfirmed(t *testing.T) {
	s := newSite(t)
	const path = "/v1/vps/web3/snapshot/restore"
	got := s.operator(http.MethodPost, path, "")
	if p := got.problem(t); got.StatusCode != 422 || p.Code != api.CodeConfirmationRequired ||
		!strings.Contains(p.Detail, "is taken back") {
		t.Errorf("unconfirmed: %s %s", got.Status, got.body)
	}
	if got := s.operator(http.MethodPost, path, `{"confirm":"another"}`); got.StatusCode != 422 ||
		!strings.Contains(got.problem(t).Detail, "another snapshot") {
		t.Errorf("another snapshot confirmed: %s", got.Status)
	}
	if got := s.operator(http.MethodPost, path, `{"confirm":"`+s.snapshot().ID+`","power_after":"off"}`); got.StatusCode != 202 {
		t.Errorf("confirmed: %s %s", got.Status, got.body)
	}
}

// The form of an answer is a contract: snake_case, UTC, absent fields left out.
func TestSnapshotOnTheWire(t *testing.T) {
	s := newSite(t)
	got := s.operator(http.MethodGet, "/v1/vps/web3/snapshot", "")
	snap := s.snapshot()
	want := fmt.Sprintf(`{"consistency":"filesystem","created_at":%q,"delta_bytes":3149824,`+
		`"description":"before the upgrade","freeze_ms":%d,"id":%q,"size_bytes":16777216,`+
		`"state":"available","updated_at":%q,"vps":"`+daemontest.Web3+`"}`,
		onTheWire(t, snap.CreatedAt), snap.FreezeMS, snap.ID, onTheWire(t, snap.UpdatedAt))
	if diff := gocmp.Diff(want, strings.TrimSpace(got.body)); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

// onTheWire is a time of the epoch as an answer writes it: in UTC, with the digits that
// it needs.
func onTheWire(t *testing.T, at time.Time) string {
	t.Helper()
	text := at.UTC().Format(time.RFC3339Nano)
	if !strings.HasPrefix(text, "2026-03-01T12:00:0") || !strings.HasSuffix(text, "Z") {
		t.Errorf("the time is %s", text)
	}
	return text
}

func TestOrderAndCancel(t *testing.T) {
	s := newSite(t)
	const path = "/v1/vps/web2/option"
	if got := s.call("read", http.MethodGet, path, ""); got.StatusCode != 404 {
		t.Errorf("before the order: %s", got.Status)
	}
	body := `{"state":"active","order_ref":"A-7","price":{"amount":499,"currency":"CHF","period":"year"},` +
		`"contact_email":"o'neil+vps@example.com","locale":"fr","ends_at":"2027-01-01T00:00:00+01:00"}`
	o := decode[api.Option](t, s.call("option", http.MethodPut, path, body))
	ends := time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC)
	if o.State != "active" || o.OrderRef != "A-7" || o.Price.Amount != 499 || o.ContactEmail == "" || o.Locale != "fr" ||
		o.EndsAt == nil ||
		!o.EndsAt.Equal(ends) ||
		o.EndsAt.Location() != time.UTC {
		t.Errorf("the option: %+v", o)
	}
	if o := decode[api.Option](t, s.call("option", http.MethodDelete, path, "")); o.State != "grace" || o.GraceUntil == nil {
		t.Errorf("cancelled: %+v", o)
	}
	if o := decode[api.Option](t, s.call("option", http.MethodDelete, path+"?now=true", "")); o.State != "released" {
		t.Errorf("cancelled at once: %+v", o)
	}
}

func TestPaging(t *testing.T) {
	s := newSite(t)
	var seen, want []int64
	for _, m := range decode[api.MessageList](t, s.call("read", http.MethodGet, "/v1/messages", "")).Messages {
		want = append(want, m.ID)
	}
	path := "/v1/messages?limit=1"
	for range 10 {
		page := decode[api.MessageList](t, s.call("read", http.MethodGet, path, ""))
		for _, m := range page.Messages {
			seen = append(seen, m.ID)
		}
		if page.Next == "" {
			break
		}
		path = "/v1/messages?limit=1&cursor=" + page.Next
	}
	if newestFirst := slices.IsSortedFunc(seen, func(a, b int64) int { return cmp.Compare(b, a) }); len(seen) < 3 ||
		!newestFirst ||
		!slices.Equal(seen, want) {
		t.Errorf("read %v, want %v", seen, want)
	}
	empty := s.call("read", http.MethodGet, "/v1/operations?vps=web2", "")
	if strings.TrimSpace(empty.body) != `{"operations":[]}` {
		t.Errorf("no operations: %s", empty.body)
	}
}

// Who reads on with a bound token must not be stopped by a page of others' entries.
func TestPagingPastOthersEntries(t *testing.T) {
	s := newSite(t)
	mine := decode[api.Operation](t, s.call("bound", http.MethodPost, "/v1/vps/web1/snapshot", ""))
	s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", "")
	page := decode[api.OperationList](t, s.call("bound", http.MethodGet, "/v1/operations?limit=1", ""))
	if len(page.Operations) != 1 || page.Operations[0].ID != mine.ID {
		t.Errorf("the page: %+v", page)
	}
}

func TestWaitLastsAndShutdownEndsIt(t *testing.T) {
	waits := &waits{}
	s := newSiteAround(t, func(d *server.Services) { waits.operations, d.Operations = d.Operations, waits })
	reached, _ := s.host.Hold(daemontest.InTake)
	op := decode[api.Operation](t, s.call("admin", http.MethodPost, "/v1/vps/web1/snapshot", ""))
	<-reached
	start := time.Now()
	got := s.call("read", http.MethodGet, "/v1/operations/"+op.ID+"?wait=300ms", "")
	if took := time.Since(start); got.StatusCode != 200 || took < 300*time.Millisecond {
		t.Errorf("a wait of 300ms: %s after %s", got.Status, took)
	}
	before := waits.n.Load()
	ended := make(chan answer)
	go func() { ended <- s.call("read", http.MethodGet, "/v1/operations/"+op.ID+"?wait=5m", "") }()
	check(t, daemontest.Eventually("a call waits", func() bool { return waits.n.Load() > before }))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	check(t, s.server.Shutdown(ctx))
	if got := <-ended; got.StatusCode != 200 || decode[api.Operation](t, got).Status != "running" {
		t.Errorf("the wait ended with %s %s", got.Status, got.body)
	}
}

// operations is embedded by this name: the interface has a method Operations.
type operations = server.Operations

// waits counts the calls that wait for an operation.
type waits struct {
	operations
	n atomic.Int32
}

func (w *waits) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	w.n.Add(1)
	return w.operations.WaitOperation(ctx, id, limit)
}

func TestParkedOperationIsResumedByOperators(t *testing.T) {
	s := newSite(t)
	s.host.ParkNext(daemontest.Web3)
	op := decode[api.Operation](t, s.call("snapshot", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	op = decode[api.Operation](t, s.call("read", http.MethodGet, "/v1/operations/"+op.ID+"?wait=30s", ""))
	if op.Status != "needs_attention" || op.Error == nil || op.Error.Code != api.CodeVPSChanged || op.Error.Remedy == "" {
		t.Fatalf("the operation: %+v", op)
	}
	if got := s.call("snapshot", http.MethodPost, "/v1/operations/"+op.ID+"/resume", ""); got.StatusCode != 403 {
		t.Errorf("resumed by a panel: %s %s", got.Status, got.body)
	}
	check(t, s.host.Cure(daemontest.Web3))
	if op := s.ended(s.operator(http.MethodPost, "/v1/operations/"+op.ID+"/resume", "")); op.Status != vps.StatusSucceeded {
		t.Errorf("resumed it is %s: %+v", op.Status, op.Error)
	}
}

func TestOpenPages(t *testing.T) {
	s := newSite(t)
	if got := s.call("", http.MethodGet, "/openapi.yaml", ""); got.body != string(api.Spec) ||
		got.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("/openapi.yaml: %s, %s", got.Status, got.Header.Get("Content-Type"))
	}
	if got := s.call("", http.MethodGet, "/healthz", ""); strings.TrimSpace(got.body) != `{"status":"ok"}` {
		t.Errorf("/healthz: %s %s", got.Status, got.body)
	}
	got := s.call("", http.MethodGet, "/readyz", "")
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if got.Header.Get(name) != want {
			t.Errorf("%s is %q", name, got.Header.Get(name))
		}
	}
}

func TestMessagesByTimeAndLanguage(t *testing.T) {
	s := newSite(t)
	all := len(decode[api.MessageList](t, s.call("read", http.MethodGet, "/v1/messages", "")).Messages)
	s.host.Pass(time.Hour)
	s.ended(s.call("snapshot", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	read := func(role, query, language string) []api.Message {
		r := s.request(role, http.MethodGet, "/v1/messages"+query, "")
		r.Header.Set("Accept-Language", language)
		got := s.do(r)
		if got.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", query, got.Status, got.body)
		}
		return decode[api.MessageList](t, got).Messages
	}
	for query, want := range map[string]int{
		"": all + 2, "?since=2026-03-01T12:30:00Z": 2, "?until=2026-03-01T12:30:00Z": all, "?since=2026-03-01T13:00:00%2B00:30": 2,
		"?since=2026-03-01T12:00:00Z&until=2026-03-01T12:00:00Z": 0, "?since=2026-03-01T12:30:00Z&kind=operation_succeeded": 1,
	} {
		if got := read("read", query, "en"); len(got) != want {
			t.Errorf("%s gives %d messages, want %d", query, len(got), want)
		}
	}
	for language, want := range map[string]string{
		"fr": "Le snapshot a été supprimé.", "fr-BE;q=0.8, de": "Le snapshot a été supprimé.", "en-GB": "The snapshot was deleted.",
		"": "The snapshot was deleted.", "zz, *": "The snapshot was deleted.", ";;;=": "The snapshot was deleted.",
	} {
		if got := read("bound-to-3", "", language)[0]; got.Text != want || got.Detail != "" {
			t.Errorf("%q: %q, detail %q", language, got.Text, got.Detail)
		}
	}
	if got := s.call("read", http.MethodGet, "/v1/messages?since=yesterday", ""); got.StatusCode != http.StatusBadRequest {
		t.Errorf("since=yesterday: %s", got.Status)
	}
}

// TestOperationInFrench: for customers; an operator reads the very words.
func TestOperationInFrench(t *testing.T) {
	s := newSite(t)
	s.host.ParkNext(daemontest.Web3)
	op := s.ended(s.call("snapshot", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	read := func(role, path, language string) answer {
		r := s.request(role, http.MethodGet, path, "")
		r.Header.Set("Accept-Language", language)
		return s.do(r)
	}
	french := vps.CodeVPSChanged.In(vps.French)
	detail, remedy := op.Error.Detail, op.Error.Remedy
	if !strings.Contains(remedy, "virsh") || !strings.HasPrefix(french, "L") {
		t.Fatalf("the test needs something to hide, and French: %s; %s", remedy, french)
	}
	for _, c := range []struct {
		role, language string
		french         bool
	}{{"read", "fr-CA", true}, {"read", "en", false}, {"read", "", false}, {"admin", "fr", false}} {
		one := decode[api.Operation](t, read(c.role, "/v1/operations/"+op.ID, c.language))
		all := decode[api.OperationList](t, read(c.role, "/v1/operations?vps=web3", c.language)).Operations
		for _, got := range append(all, one) {
			if got.ID == op.ID &&
				(got.Error == nil || (got.Error.Detail == french) != c.french || got.Error.Code != api.CodeVPSChanged || got.Error.Remedy == "") {
				t.Errorf("%s, %q: %+v", c.role, c.language, got.Error)
			}
			operator := c.role == "admin"
			if got.ID == op.ID && ((got.Error.Remedy == remedy) != operator || (got.Error.Detail == detail) != operator) {
				t.Errorf("%s, %q is told: %s; %s", c.role, c.language, got.Error.Detail, got.Error.Remedy)
			}
		}
		shown := decode[api.VPS](t, read(c.role, "/v1/vps/web3", c.language))
		if (shown.Operation.Error.Remedy == remedy) != (c.role == "admin") {
			t.Errorf("%s is told with the VPS to do: %s", c.role, shown.Operation.Error.Remedy)
		}
	}
}

// stored adds a file system to those of the host.
type stored struct {
	server.Overview
	more vps.Storage
}

func (s stored) Host(ctx context.Context) (vps.Host, error) {
	h, err := s.Overview.Host(ctx)
	h.Storage = append(h.Storage, s.more)
	return h, err
}

// TestMetrics: operators and admin tokens see the figures, nobody else does.
func TestMetrics(t *testing.T) {
	s := newSiteAround(t, func(d *server.Services) {
		d.Overview = stored{
			d.Overview,
			vps.Storage{
				Path:          "/srv/a b\"c",
				TotalBytes:    1000,
				FreeBytes:     400,
				HeadroomBytes: 300,
				OverlayBytes:  50,
				Level:         vps.SpaceWarning,
				FullInSeconds: 7200,
			},
		}
	})
	real, err := s.host.Daemon.Overview.Host(t.Context())
	check(t, err)
	path := fmt.Sprintf("{path=%q} ", s.host.ImageDir())
	got := s.operator(http.MethodGet, "/metrics", "")
	for _, want := range []string{
		"# TYPE vpssnap_vps gauge\nvpssnap_vps 3\n", "vpssnap_snapshots 1\n", "vpssnap_libvirt_up 1\n",
		`vpssnap_operations{status="active"} 0`, `vpssnap_operations{status="needs_attention"} 0`,
		`vpssnap_storage_free_bytes{path="/srv/a b\"c"} 400`, "vpssnap_storage_size_bytes" + path + strconv.FormatFloat(float64(real.Storage[0].TotalBytes), 'g', -1, 64),
		`vpssnap_storage_headroom_bytes{path="/srv/a b\"c"} 300`, `vpssnap_storage_overlay_bytes{path="/srv/a b\"c"} 50`,
		`vpssnap_storage_alarm{path="/srv/a b\"c"} 1`, "vpssnap_storage_alarm" + path + "0",
		`vpssnap_storage_full_seconds{path="/srv/a b\"c"} 7200`,
	} {
		if !strings.Contains(got.body, want) {
			t.Errorf("%q is missing in\n%s", want, got.body)
		}
	}
	if strings.Contains(got.body, "vpssnap_storage_full_seconds"+path) {
		t.Error("it tells when a file system is full that does not fill up")
	}
	if kind := got.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/plain") {
		t.Errorf("it is sent as %s", kind)
	}
	for token, want := range map[string]int{"": http.StatusUnauthorized, "read": http.StatusNotFound, "admin": http.StatusOK} {
		if got := s.call(token, http.MethodGet, "/metrics", ""); got.StatusCode != want {
			t.Errorf("with the token %q: %s", token, got.Status)
		}
	}
}
