package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// keepCopy copies the database while no daemon has it open, and returns how to put
// that copy back.
func (w *world) keepCopy() (putBack func()) {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.stateDir, "vpssnapd.db*"))
	w.must(err)
	kept := map[string][]byte{}
	for _, f := range files {
		kept[f], err = os.ReadFile(f)
		w.must(err)
	}
	return func() {
		w.t.Helper()
		w.forgetAll()
		for f, data := range kept {
			w.must(os.WriteFile(f, data, 0o600))
		}
	}
}

// readings are the calls that change nothing; a request makes no other.
var readings = []string{
	"Info",
	"List",
	"Domain",
	"Glance",
	"MergeJob",
	"PingAgent",
	"Inspect",
	"Unused",
	"Stat",
	"Files",
	"Space",
	"CutShort",
	"TryExchange",
	"CheckStart",
	"Named",
	"Pools",
}

// killedAtEffect kills the daemon after its nth effect on the host.
func (w *world) killedAtEffect(nth int, begin func() (vps.Operation, error)) (reached bool) {
	w.t.Helper()
	host, struck, visits := w.host, make(chan struct{}), 0
	host.SetHook(func(ctx context.Context, at, _ string) error {
		call, after := strings.CutSuffix(at, ".after")
		if !after || slices.Contains(readings, call) {
			return nil
		}
		if visits++; visits != nth {
			return nil
		}
		host.Cut()
		close(struck)
		<-ctx.Done()
		return ctx.Err()
	})
	op, err := begin()
	w.must(err)
	ended, dying := make(chan struct{}), w.daemon
	go func() {
		defer close(ended)
		for {
			op, err := dying.Operations.WaitOperation(ctx, op.ID, time.Second)
			if err != nil || op.Status.Final() {
				return
			}
			select {
			case <-struck:
				return
			default:
			}
		}
	}()
	select {
	case <-struck:
		w.crash()
		<-ended
		return true
	case <-ended:
		host.SetHook(nil)
		return false
	}
}

// TestOldCopy (database: an old copy put back): the record is put back to the
// middle of an operation, after which the VPS has got another snapshot. The host's
// reality wins: no disk is repointed, nothing is exchanged, removed or lost.
func TestOldCopy(t *testing.T) {
	for _, kind := range []vps.Kind{vps.KindTake, vps.KindRestore, vps.KindDelete} {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
			t.Run(string(kind)+"/"+string(state), func(t *testing.T) {
				t.Parallel()
				for nth := 1; oldCopyAt(t, kind, state, nth, true) && oldCopyAt(t, kind, state, nth, false); nth++ {
				}
			})
		}
	}
}

func oldCopyAt(t *testing.T, kind vps.Kind, state hypervisor.State, nth int, another bool) (reached bool) {
	w := newWorld(t, nil)
	id := w.vps("web1", state)
	w.write(id, "vda", 0, 'a')
	if kind != vps.KindTake {
		w.take(id, vps.TakeRequest{})
		w.write(id, "vda", 0, 'b')
	}
	reached = w.killedAtEffect(nth, func() (vps.Operation, error) {
		switch kind {
		case vps.KindTake:
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
		case vps.KindRestore:
			return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
		default:
			return w.daemon.Snapshots.Delete(ctx, id, operator)
		}
	})
	if !reached {
		return false
	}
	t.Logf("%s %s at %d, another=%v", kind, state, nth, another)
	putBack := w.keepCopy()
	w.open()
	w.eventually("the operation has ended", func() bool {
		page, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{Limit: 1})
		return err == nil && page.Operations[0].Status.Final()
	})
	if hasSnapshot(w, id) {
		w.delete(id)
	}
	w.write(id, "vda", 0, 'c')
	if another {
		w.take(id, vps.TakeRequest{})
		w.write(id, "vda", 0, 'd')
	}
	now, err := w.host.Domain(ctx, id)
	w.must(err)
	files := w.files()
	w.close()
	putBack()
	w.open()
	w.eventually("nothing is at work", func() bool {
		page, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{Limit: 1})
		op := page.Operations[0]
		return err == nil && (op.Status.Final() || op.Status == vps.StatusNeedsAttention)
	})
	w.must(func() error { _, err := w.daemon.Doctor.Repair(ctx, operator); return err }())
	then, err := w.host.Domain(ctx, id)
	w.must(err)
	if then.State != now.State || then.PersistentDisks[0].Path != now.PersistentDisks[0].Path ||
		then.Disks[0].Path != now.Disks[0].Path {
		t.Errorf("%s at %d, another=%v: the VPS was %+v and is %+v", kind, nth, another, now, then)
	}
	if left := w.files(); !slices.Equal(left, files) {
		t.Errorf("%s at %d, another=%v: files were %v and are %v", kind, nth, another, files, left)
	}
	w.sees(id, "vda", 0, map[bool]byte{true: 'd', false: 'c'}[another])
	if t.Failed() {
		return false
	}
	w.close()
	return true
}

// TestOldCopyBringsNothingBack: a token that was revoked stays so, and who listens
// is told that events were missed, whether the copy knows the last one he got or not.
func TestOldCopyBringsNothingBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	token, secret, err := w.daemon.Tokens.CreateToken(
		ctx, vps.TokenRequest{Name: "lost", Scopes: []vps.Scope{vps.ScopeAdmin}}, operator,
	)
	w.must(err)
	inCopy := w.lastEvent() - 1
	w.close()
	putBack := w.keepCopy()
	w.open()
	w.must(w.daemon.Tokens.RevokeToken(ctx, token.ID, operator))
	w.take(id, vps.TakeRequest{})
	later := w.lastEvent()
	w.close()
	putBack()
	w.open()
	_, err = w.daemon.Tokens.Authenticate(ctx, secret)
	w.refuses(vps.CodeUnauthenticated, err)
	for _, from := range []int64{inCopy, later} {
		if !w.missedAfter(from) {
			t.Errorf("who comes back behind event %d is not told that there is a gap", from)
		}
	}
	if _, _, err := w.daemon.Tokens.CreateToken(ctx, vps.TokenRequest{Name: "new", Scopes: []vps.Scope{vps.ScopeRead}}, operator); err != nil {
		t.Error(err)
	}
	if w.close(); !strings.Contains(w.log.String(), "All tokens were revoked") {
		t.Error("the log does not tell the operator")
	}
}

// TestNewDatabaseGivesNewIds: also when everything was lost, who listens is told,
// however many events there are by then.
func TestNewDatabaseGivesNewIds(t *testing.T) {
	w := newWorld(t, nil)
	w.vps("web1", hypervisor.Running)
	heard := w.lastEvent()
	w.close()
	w.must(os.RemoveAll(w.stateDir))
	w.must(os.Mkdir(w.stateDir, 0o700))
	w.open()
	w.vps("web2", hypervisor.Running)
	if first := w.lastEvent(); first <= heard {
		t.Errorf("event %d came before, and %d now", heard, first)
	}
	if !w.missedAfter(heard) {
		t.Error("who comes back is not told")
	}
}

// missedAfter reads all events behind one, as a listener does, and reports whether
// they came with the news that some were missed.
func (w *world) missedAfter(id int64) bool {
	w.t.Helper()
	w.eventually("every event is read", func() bool { return w.daemon.Journal.AllRead(ctx) })
	for {
		page, err := w.daemon.Journal.Events(ctx, id)
		w.must(err)
		if page.Missed {
			return true
		}
		if len(page.Events) == 0 {
			return false
		}
		id = page.Events[len(page.Events)-1].ID
	}
}
