package server_test

import (
	"net/http"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/server/servertest"
	"vpssnapd/daemon/vps"
)

// What was found is for operators: it names host paths.
func TestChecksAndRepair(t *testing.T) {
	s := newSite(t)
	if r := decode[api.Report](t, s.operator(http.MethodGet, "/v1/host/checks", "")); len(r.Findings) != 0 || r.VPSCount != 3 || r.SnapshotCount != 1 {
		t.Errorf("with nothing wrong: %+v", r)
	}
	s.service.Set(func(s *servertest.Service) {
		s.Findings = []vps.Finding{
			{Code: vps.CheckMissingBase, VPS: servertest.Web3, VPSName: "web3", Disk: "vda", Path: "/srv/it's", Snapshot: "abcdef012345", Operation: "op-1", Detail: "gone",
				Remedies: []vps.Remedy{{Text: "put it back", Commands: []vps.Command{{"mv", "-nT", "--", "/srv/x", "/srv/it's"}}}}},
			{Code: vps.CheckMetadataMissing, VPS: servertest.Web3, Repairable: true},
		}
	})
	f := decode[api.Report](t, s.call("admin", http.MethodGet, "/v1/host/checks", "")).Findings[0]
	if f.Code != "missing_base" || f.VPS != servertest.Web3 || f.VPSName != "web3" || f.Disk != "vda" || f.Path != "/srv/it's" || f.SnapshotID != "abcdef012345" ||
		f.OperationID != "op-1" || f.Detail != "gone" || f.Repairable || f.Remedies[0].Commands[0] != `mv -nT -- /srv/x '/srv/it'\''s'` {
		t.Errorf("on the wire: %+v", f)
	}
	for _, role := range []string{"read", "snapshot", "option", "bound"} {
		if got := s.call(role, http.MethodGet, "/v1/host/checks", ""); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s reads what was found: %s", role, got.Status)
		}
		if got := s.call(role, http.MethodPost, "/v1/host/repair", ""); got.StatusCode != http.StatusForbidden {
			t.Errorf("%s repairs: %s", role, got.Status)
		}
	}
	r := decode[api.Report](t, s.operator(http.MethodPost, "/v1/host/repair", ""))
	if len(r.Findings) != 1 || len(r.Repairs) != 1 || r.Repairs[0].Code != "metadata_missing" || !r.Repairs[0].Done {
		t.Errorf("after the repair: %+v", r)
	}
}

// That a name was given away is told to whoever may know of every VPS. Others are
// bound to ids: a name that is not of one of theirs tells them nothing.
func TestNameGivenAway(t *testing.T) {
	s := newSite(t)
	unknown := s.call("bound", http.MethodGet, "/v1/vps/web9", "")
	for _, name := range []string{"web1", "web2"} {
		s.service.Set(func(s *servertest.Service) { s.GivenAway = name })
		for _, path := range []string{"/v1/vps/" + name, "/v1/vps/" + name + "/snapshot", "/v1/vps/" + name + "/messages", "/v1/operations?vps=" + name} {
			got := s.call("bound", http.MethodGet, path, "")
			if got.StatusCode != http.StatusNotFound || got.body != unknown.body {
				t.Errorf("%s for a customer who has web1: %s %s", path, got.Status, got.body)
			}
			if got := s.call("admin", http.MethodGet, path, ""); got.StatusCode != http.StatusConflict || got.problem(t).Code != api.CodeVPSChanged {
				t.Errorf("%s for an operator: %s", path, got.Status)
			}
		}
	}
}
