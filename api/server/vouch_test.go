package server_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
)

// TestWhoMayVouch (FAULTS row 39): an operator only, who confirms what he was told; the
// customer reads in his language who did.
func TestWhoMayVouch(t *testing.T) {
	s := newSite(t)
	snap, err := s.host.Snapshot("web3")
	check(t, err)
	touch := func() {
		t.Helper()
		check(t, os.Chtimes(snap.Disks[0].Base, time.Time{}, time.Now().Add(time.Hour)))
		s.call("admin", http.MethodGet, "/v1/host/checks", "") // which notices it
	}
	touch()
	path, confirm := "/v1/vps/"+daemontest.Web3+"/snapshot/vouch", `{"confirm":"`+snap.ID+`"}`
	for _, token := range []string{"read", "snapshot", "option", "bound-to-3"} {
		if got := s.call(token, http.MethodPost, path, confirm); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s %s", token, got.Status, got.body)
		}
	}
	for _, body := range []string{"", "{}", `{"confirm":"another"}`} {
		got := s.call("admin", http.MethodPost, path, body)
		if p := got.problem(t); p.Status != http.StatusUnprocessableEntity || p.Code != api.CodeConfirmationRequired ||
			!strings.Contains(p.Detail, "was changed at") || !strings.Contains(p.Detail, "not proven: ") ||
			!strings.Contains(p.Remedy, snap.ID) {
			t.Errorf("%q: %s %s", body, got.Status, got.body)
		}
	}
	for range 2 {
		if got := s.with("admin", http.MethodPost, path, confirm, "Idempotency-Key", "once"); got.StatusCode != http.StatusOK ||
			decode[api.Snapshot](t, got).State != api.SnapshotStateAvailable {
			t.Errorf("%s %s", got.Status, got.body)
		}
	}
	got := s.with("bound-to-3", http.MethodGet, "/v1/vps/web3/messages", "", "Accept-Language", "fr")
	if n := strings.Count(got.body, "s'est porté garant des fichiers du snapshot"); n != 1 {
		t.Errorf("told %d times in French: %s", n, got.body)
	}
}
