package server_test

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
)

// What was found is for operators: it names host paths.
func TestChecksAndRepair(t *testing.T) {
	s := newSite(t)
	if r := decode[api.Report](t, s.operator(http.MethodGet, "/v1/host/checks", "")); len(r.Findings) != 0 ||
		r.VPSCount != 3 ||
		r.SnapshotCount != 1 {
		t.Errorf("with nothing wrong: %+v", r)
	}
	id, err := s.host.AddVPS("it's")
	check(t, err)
	s.ended(s.call("panel", http.MethodPost, "/v1/vps/it's/snapshot", ""))
	snap, err := s.host.Snapshot(id)
	check(t, err)
	base := snap.Disks[0].Base
	check(t, os.Rename(base, base+".x"))
	mend := s.host.Break("SetMetadata.before", errors.New("libvirt cannot save it"))
	check(t, s.host.LoseMetadata(daemontest.Web3))
	f := decode[api.Report](t, s.call("admin", http.MethodGet, "/v1/host/checks", "")).Findings[0]
	quoted := "'" + strings.Replace(base, "'", `'\''`, 1)
	if f.Code != "missing_base" || f.VPS != id || f.VPSName != "it's" || f.Disk != "vda" || f.Path != base || f.SnapshotID != snap.ID ||
		f.OperationID != "" || !strings.Contains(f.Detail, base) ||
		f.Repairable ||
		f.Remedies[0].Commands[0] != "mv -nT -- "+quoted+".x' "+quoted+"'" {
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
	mend()
	r := decode[api.Report](t, s.operator(http.MethodPost, "/v1/host/repair", ""))
	if len(r.Findings) != 1 || len(r.Repairs) != 1 || r.Repairs[0].Code != "metadata_missing" || !r.Repairs[0].Done {
		t.Errorf("after the repair: %+v", r)
	}
	s.host.ParkNext(daemontest.Web3)
	op := s.ended(s.operator(http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	if f := decode[api.Report](t, s.operator(http.MethodGet, "/v1/host/checks", "")).Findings[1]; f.Code != "operation_parked" ||
		f.OperationID != op.ID {
		t.Errorf("of a parked operation: %+v", f)
	}
}

// That a name was given away is told to whoever may know of every VPS. Others are
// bound to ids: a name that is not of one of theirs tells them nothing.
func TestNameGivenAway(t *testing.T) {
	s := newSite(t)
	s.order("web2", "A-1")
	unknown := s.call("bound", http.MethodGet, "/v1/vps/web9", "")
	for _, name := range []string{"web1", "web2"} {
		check(t, s.host.GiveAway(name))
		for _, path := range []string{"/v1/vps/" + name, "/v1/vps/" + name + "/snapshot", "/v1/vps/" + name + "/messages", "/v1/operations?vps=" + name} {
			got := s.call("bound", http.MethodGet, path, "")
			if got.StatusCode != http.StatusNotFound || got.body != unknown.body {
				t.Errorf("%s for a customer who has web1: %s %s", path, got.Status, got.body)
			}
			if got := s.call("admin", http.MethodGet, path, ""); got.StatusCode != http.StatusConflict ||
				got.problem(t).Code != api.CodeVPSChanged {
				t.Errorf("%s for an operator: %s", path, got.Status)
			}
		}
	}
}
