package daemon_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// deafHost keeps events back once it is deaf: whatever happens has just happened.
type deafHost struct {
	hypervisor.Host
	deaf atomic.Bool
}

func (h *deafHost) Events() <-chan hypervisor.Event {
	out := make(chan hypervisor.Event)
	go func() {
		defer close(out)
		for e := range h.Host.Events() {
			if !h.deaf.Load() {
				out <- e
			}
		}
	}()
	return out
}

func newDeafWorld(t *testing.T) (*world, *deafHost) {
	t.Helper()
	h := &deafHost{}
	w := newWorld(t, func(c *daemon.Config) { h.Host = c.Host; c.Host = h })
	return w, h
}

// idSpellings are how people and programs write an id.
func idSpellings(id string) []string {
	bare := strings.ReplaceAll(id, "-", "")
	return []string{id, strings.ToUpper(id), bare, strings.ToUpper(bare), strings.ToUpper(id[:10]) + id[10:]}
}

// TestTheHostIsAskedBeforeNoSuchVPS: FAULTS.md row 43. What was defined or renamed this
// moment is found by whatever call comes first, however its id is written.
func TestTheHostIsAskedBeforeNoSuchVPS(t *testing.T) {
	calls := map[string]func(w *world, ref string) error{
		"show":     func(w *world, ref string) error { _, err := w.daemon.Overview.ShowVPS(ctx, ref); return err },
		"known":    func(w *world, ref string) error { _, err := w.daemon.Overview.KnownVPS(ctx, ref); return err },
		"activate": func(w *world, ref string) error { return activateBy(w, ref) },
		"take": func(w *world, ref string) error {
			_, err := w.daemon.Snapshots.Take(ctx, ref, vps.TakeRequest{}, operator)
			return wanted(err, vps.CodeOptionRequired, vps.CodeOperationInProgress)
		},
		"operations": func(w *world, ref string) error {
			_, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{VPS: ref})
			return err
		},
		"token": func(w *world, ref string) error {
			request := vps.TokenRequest{Name: vps.NewSnapshotID(), Scopes: []vps.Scope{vps.ScopeRead}, VPS: []string{ref}}
			_, _, err := w.daemon.Tokens.CreateToken(ctx, request, operator)
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			w, host := newDeafWorld(t)
			renamed := w.vps("before", hypervisor.Off)
			host.deaf.Store(true)
			id, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: mib, Format: "raw"})
			w.must(err)
			for _, ref := range append([]string{"web1"}, idSpellings(id)...) {
				w.must(call(w, ref))
			}
			for _, other := range []string{"after", "0123456789abcdef0123456789abcdef"} {
				w.must(w.host.Edit(renamed, func(d *hypervisor.Domain) { d.Name = other }))
				if err := call(w, other); err != nil {
					t.Errorf("renamed to %s: %v", other, err)
				}
			}
			w.refuses(vps.CodeNotFound, call(w, "web9"))
			w.refuses(vps.CodeNotFound, call(w, "web1\x00"))
			w.refuses(vps.CodeNotFound, call(w, "00000000-0000-4000-8000-000000000000"))
			w.host.Disconnect()
			if err := call(w, "web9"); vps.CodeOf(err) == vps.CodeNotFound {
				t.Errorf("what nobody could look for is told to be missing: %v", err)
			}
		})
	}
}

func activateBy(w *world, ref string) error {
	_, err := w.daemon.Options.PutOption(ctx, ref, vps.OptionOrder{State: vps.OptionActive}, operator)
	return err
}

// wanted is nil for a refusal with one of the codes: the VPS was found.
func wanted(err error, codes ...vps.Code) error {
	if slices.Contains(codes, vps.CodeOf(err)) {
		return nil
	}
	return err
}

// TestANameThatIsAnothersByNow: FAULTS.md row 43. A call that changes something goes by who
// has the name now, however short that has been so.
func TestANameThatIsAnothersByNow(t *testing.T) {
	calls := map[string]func(w *world) (id string, err error){
		"option": func(w *world) (string, error) {
			o, err := w.daemon.Options.PutOption(ctx, "web1", vps.OptionOrder{State: vps.OptionActive}, operator)
			return o.VPS, err
		},
		"cancel": func(w *world) (string, error) {
			o, err := w.daemon.Options.CancelOption(ctx, "web1", true, operator)
			return o.VPS, err
		},
		"take": func(w *world) (string, error) {
			op, err := w.daemon.Snapshots.Take(ctx, "web1", vps.TakeRequest{}, operator)
			return op.VPS, err
		},
		"token": func(w *world) (string, error) {
			request := vps.TokenRequest{Name: "a", Scopes: []vps.Scope{vps.ScopeRead}, VPS: []string{"web1"}}
			made, _, err := w.daemon.Tokens.CreateToken(ctx, request, operator)
			return strings.Join(made.VPS, " "), err
		},
		"show": func(w *world) (string, error) {
			v, err := w.daemon.Overview.ShowVPS(ctx, "web1")
			return v.ID, err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			w, host := newDeafWorld(t)
			had, has := w.vps("web1", hypervisor.Running), w.vps("web2", hypervisor.Running)
			host.deaf.Store(true)
			w.must(w.host.Edit(had, func(d *hypervisor.Domain) { d.Name = "web3" }))
			w.must(w.host.Edit(has, func(d *hypervisor.Domain) { d.Name = "web1" }))
			if id, err := call(w); err != nil || id != has {
				t.Errorf("it went to %s instead of %s (%v)", id, has, err)
			}
		})
	}
	// The name of one that is gone, given to another, without a trace of the first.
	t.Run("defined again", func(t *testing.T) {
		w, host := newDeafWorld(t)
		old, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: mib, Format: "raw"})
		w.must(err)
		w.eventually("it is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, old); return err == nil })
		host.deaf.Store(true)
		w.must(w.host.Undefine(old))
		fresh, err := w.host.Define("web1", hypervisor.Disk{Target: "vdb", SizeBytes: mib, Format: "raw"})
		w.must(err)
		o, err := w.daemon.Options.PutOption(ctx, "web1", vps.OptionOrder{State: vps.OptionActive}, operator)
		if err != nil || o.VPS != fresh {
			t.Errorf("it went to %s instead of %s (%v)", o.VPS, fresh, err)
		}
	})
}

// TestABoundTokenByAnySpelling: its own VPS has one id, however it is written.
func TestABoundTokenByAnySpelling(t *testing.T) {
	w, host := newDeafWorld(t)
	id, other := w.vps("web1", hypervisor.Off), w.vps("web2", hypervisor.Off)
	token := vps.Token{VPS: []string{id}}
	host.deaf.Store(true)
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.Name = "renamed" }))
	for _, ref := range append([]string{"renamed"}, idSpellings(id)...) {
		if found, err := w.daemon.Tokens.FindVPS(ctx, ref, token); err != nil || found != id {
			t.Errorf("%s leads to %q (%v)", ref, found, err)
		}
	}
	for _, ref := range append([]string{"web2", "web9"}, idSpellings(other)...) {
		_, err := w.daemon.Tokens.FindVPS(ctx, ref, token)
		w.refuses(vps.CodeNotFound, err)
	}
}
