package daemon_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// ill brings a VPS with two disks, which hold 'a' in the snapshot and 'b' now, into a
// situation. healthy is what the operator does besides, before the commands.
type ill struct {
	kind  vps.RemedyKind
	code  vps.CheckCode
	state hypervisor.State
	make  func(w *world, id string) (besides func())
	// restores: there is a snapshot afterwards, which restores.
	restores bool
}

var illnesses = map[string]ill{
	"metadata lost": {kind: vps.RemedyRepair, code: vps.CheckMetadataMissing, state: hypervisor.Running, restores: true,
		make: func(w *world, id string) func() {
			w.always("SetMetadata.before", "", errors.New("libvirt cannot save it"))
			w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.Metadata = "" }))
			return func() { w.host.SetHook(nil) }
		}},
	"base defined": {kind: vps.RemedyRepair, code: vps.CheckDefinitionNamesBase, state: hypervisor.Off, restores: true,
		make: func(w *world, id string) func() {
			w.always("PointDisks.before", "", errors.New("libvirt cannot save it"))
			w.must(w.host.Redefine(id))
			return func() { w.host.SetHook(nil) }
		}},
	"row of the snapshot damaged": {kind: vps.RemedyRepair, code: vps.CheckRecordDamaged, state: hypervisor.Running, restores: true,
		make: damage(`UPDATE snapshot SET description = 'x' WHERE vps = '%s'`)},
	"row of the option damaged": {kind: vps.RemedyOrderOption, code: vps.CheckRecordDamaged, state: hypervisor.Off,
		make: damage(`UPDATE option SET order_ref = 'x' WHERE vps = '%s'`)},
	"row of a token damaged": {kind: vps.RemedyRevokeToken, code: vps.CheckRecordDamaged, state: hypervisor.Off, restores: true,
		make: func(w *world, id string) func() {
			_, _, err := w.daemon.Tokens.CreateToken(ctx, vps.TokenRequest{Name: "-t", Scopes: []vps.Scope{vps.ScopeRead}}, operator)
			w.must(err)
			return damage(`UPDATE token SET name = 'x%.0s'`)(w, id)
		}},
	"still frozen": {kind: vps.RemedyThaw, code: vps.CheckGuestOwed, state: hypervisor.Running, restores: true,
		make: func(w *world, id string) func() {
			w.delete(id)
			w.write(id, "vda", 0, 'a')
			w.write(id, "vdb", 0, 'a')
			w.always("Thaw.before", "", hypervisor.ErrAgent)
			w.take(id, vps.TakeRequest{})
			w.setClock(time.Now().Add(time.Minute))
			return func() {
				w.host.SetHook(nil)
				w.eventually("the guest writes again", func() bool { g, err := w.host.Guest(id); return err == nil && !g.Frozen })
				w.write(id, "vda", 0, 'b')
				w.write(id, "vdb", 0, 'b')
			}
		}},
	"restore parked, resumed": {kind: vps.RemedyResumeOperation, code: vps.CheckOperationParked, state: hypervisor.Running,
		make: parkedRestore},
	"restore parked, taken back": {kind: vps.RemedyCancelOperation, code: vps.CheckOperationParked, state: hypervisor.Running,
		restores: true, make: parkedRestore},
	"take lost with the record": {kind: vps.RemedyGiveUp, code: vps.CheckSnapshotBroken, state: hypervisor.Running,
		make: func(w *world, id string) func() {
			w.delete(id)
			return lost("SwitchToOverlays.after", func(w *world, id string) (vps.Operation, error) {
				return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			})(w, id)
		}},
	"deletion lost with the record": {kind: vps.RemedyFinishDeletion, code: vps.CheckUnfinished, state: hypervisor.Running,
		make: lost("StartMerge.after", func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Delete(ctx, id, operator)
		})},
	"deletion lost with the record, off": {kind: vps.RemedyFinishDeletion, code: vps.CheckUnfinished, state: hypervisor.Off,
		make: lost("MergeOffline.after", func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Delete(ctx, id, operator)
		})},
	"old layer left": {kind: vps.RemedyDeleteOldLayer, code: vps.CheckUnfinished, state: hypervisor.Running, make: oldLayer},
	"nothing works on it": {kind: vps.RemedyRepair, code: vps.CheckUnfinished, state: hypervisor.Off, restores: true,
		make: func(w *world, id string) func() {
			s := w.snapshot(id)
			db, err := store.Open(ctx, filepath.Join(w.stateDir, "vpssnapd.db"), nil)
			w.must(err)
			s.State = vps.SnapshotCreating
			w.must(db.Write(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, s) }))
			w.must(db.Close())
			return nil
		}},
}

// TestRemediesOnFake (FAULTS row 31): the remedies of daemontest.RemediesOnFake in their
// situations. What the guest and the snapshot hold is the same afterwards, and the finding is
// gone. TestRemedies of cmd/internal/site runs all others on real hosts.
func TestRemediesOnFake(t *testing.T) {
	ran := map[vps.RemedyKind]bool{}
	for _, c := range illnesses {
		ran[c.kind] = true
	}
	for _, kind := range daemontest.RemediesOnFake() {
		if !ran[kind] {
			t.Errorf("no situation runs the remedy %s", kind)
		}
	}
	for what, c := range illnesses {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			id := w.vps("web1", c.state, twoOfEach...)
			targets := []string{twoOfEach[0].Target, twoOfEach[1].Target}
			for _, target := range targets {
				w.write(id, target, 0, 'a')
			}
			w.take(id, vps.TakeRequest{})
			for _, target := range targets {
				w.write(id, target, 0, 'b')
			}
			besides := c.make(w, id)
			findings := mustCheck(w)
			n := slices.IndexFunc(findings, func(f vps.Finding) bool {
				return f.Code == c.code && slices.ContainsFunc(f.Remedies, func(r vps.Remedy) bool { return r.Kind == c.kind })
			})
			if n < 0 {
				t.Fatalf("not offered by %+v", findings)
			}
			if besides != nil {
				besides()
			}
			for _, r := range findings[n].Remedies {
				if r.Kind == c.kind {
					for _, command := range r.Commands {
						w.run(command)
					}
				}
			}
			for _, f := range mustCheck(w) {
				if f.Code == c.code {
					t.Errorf("doctor still finds %+v", f)
				}
			}
			w.still(id, c)
		})
	}
}

// still fails unless guest and snapshot hold what they held.
func (w *world) still(id string, c ill) {
	w.t.Helper()
	holds := func(pattern byte) {
		w.t.Helper()
		for _, d := range twoOfEach[:2] {
			w.sees(id, d.Target, 0, pattern)
		}
	}
	if c.kind == vps.RemedyResumeOperation {
		holds('a') // the restore that was ordered
		return
	}
	holds('b')
	if c.restores {
		w.restore(id)
		holds('a')
	}
}

// run does what a command does.
func (w *world) run(c vps.Command) {
	w.t.Helper()
	switch line := strings.Join(c[:min(3, len(c))], " "); {
	case c.String() == "vpssnap doctor --repair":
		_, err := w.daemon.Doctor.Repair(ctx, operator)
		w.must(err)
	case strings.HasPrefix(line, "vpssnap delete "):
		w.done(w.daemon.Snapshots.Delete(ctx, c[2], operator))
	case line == "vpssnap operations show", line == "vpssnap option history":
	case line == "vpssnap operations resume":
		w.done(w.daemon.Operations.ResumeOperation(ctx, c[3], operator))
	case line == "vpssnap operations cancel":
		if op := w.ended(w.daemon.Operations.CancelOperation(ctx, c[3], operator)); op.Status != vps.StatusCancelled {
			w.t.Errorf("it is %s: %v", op.Status, op.Error)
		}
	case line == "vpssnap option order":
		_, err := w.daemon.Options.PutOption(ctx, c[3], vps.OptionOrder{State: vps.OptionOrdered}, operator)
		w.must(err)
	case line == "vpssnap token revoke":
		w.must(w.daemon.Tokens.RevokeToken(ctx, c[3], operator))
	case strings.HasPrefix(line, "virsh domfsthaw "):
		// The daemon tries too, and may have been quicker.
		if err := w.host.Thaw(ctx, c[2], time.Second); err != nil && !errors.Is(err, hypervisor.ErrAgent) {
			w.t.Error(err)
		}
	default:
		w.t.Errorf("nobody knows how to run %q", c)
	}
}

// damage changes a row behind the daemon's back.
func damage(change string) func(w *world, id string) func() {
	return func(w *world, id string) func() {
		w.close()
		db, err := sql.Open("sqlite", "file:"+filepath.Join(w.stateDir, "vpssnapd.db"))
		w.must(err)
		_, err = db.ExecContext(ctx, fmt.Sprintf(change, id))
		w.must(err)
		w.must(db.Close())
		w.open()
		return nil
	}
}

func parkedRestore(w *world, id string) func() {
	w.always("PointDisks.before", "", hypervisor.ErrPersistence)
	w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
	return func() { w.host.SetHook(nil) }
}

// lost has the daemon die at a point and its record lost, and rebuilt from the host.
func lost(point string, begin func(w *world, id string) (vps.Operation, error)) func(w *world, id string) func() {
	return func(w *world, id string) func() {
		w.lostIn(point, 1, func() (vps.Operation, error) { return begin(w, id) })
		_, err := w.rebuild()
		w.must(err)
		w.open()
		w.activate(id)
		return nil
	}
}

func oldLayer(w *world, id string) func() {
	w.host.MergeReadyAfter(fake.Never)
	op, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
	w.must(err)
	w.eventually("the merge is given up", func() bool {
		for _, d := range twoOfEach {
			_ = w.host.FailMerge(id, d.Target)
		}
		op, err = w.daemon.Operations.Operation(context.Background(), op.ID)
		return err == nil && op.Status == vps.StatusFailed
	})
	w.host.MergeReadyAfter(0)
	return nil
}

// kinds are those of all remedies that doctor prints, with their commands.
func (w *world) kinds() map[vps.RemedyKind]string {
	w.t.Helper()
	kinds := map[vps.RemedyKind]string{}
	for _, f := range mustCheck(w) {
		for _, r := range f.Remedies {
			kinds[r.Kind] += fmt.Sprint(r.Commands)
		}
	}
	return kinds
}

// TestRemedyNamesTheDiskAsItIsNow (FAULTS row 38): a panel gave the disk another name, and
// the old name to another disk.
func TestRemedyNamesTheDiskAsItIsNow(t *testing.T) {
	for kind, make := range map[vps.RemedyKind]func(w *world, d vps.SnapshotDisk){
		vps.RemedyRescueDisk:  func(w *world, d vps.SnapshotDisk) { w.must(os.Remove(d.Overlay)) },
		vps.RemedyMergeByHand: func(w *world, d vps.SnapshotDisk) { w.touched(d.Base) },
	} {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running, twoOfEach...)
			w.take(id, vps.TakeRequest{})
			d := w.disk(id)
			w.must(w.host.Edit(id, func(dom *hypervisor.Domain) {
				for _, disks := range [][]hypervisor.Disk{dom.Disks, dom.PersistentDisks} {
					disks[0].Target, disks[1].Target = "vdb", "vda"
				}
			}))
			make(w, d)
			if got := w.kinds()[kind]; !strings.Contains(got, id+" vdb ") || strings.Contains(got, id+" vda ") {
				t.Errorf("%s uses vdb now, and told is %s", d.Overlay, got)
			}
		})
	}
}

// TestNoRemedyTouchesWhatAnotherUses (FAULTS row 33): another VPS uses a file that would be
// merged into, moved or removed, by its name or by another.
func TestNoRemedyTouchesWhatAnotherUses(t *testing.T) {
	for what, name := range map[string]func(w *world, path string) string{
		"by its name": func(_ *world, path string) string { return path },
		"by a link": func(w *world, path string) string {
			w.must(os.Link(path, path+".link"))
			return path + ".link"
		},
	} {
		for without, make := range map[vps.RemedyKind]func(w *world, d vps.SnapshotDisk) (used string){
			vps.RemedyMergeByHand: func(w *world, d vps.SnapshotDisk) string { w.touched(d.Base); return d.Base },
			vps.RemedyPutBack: func(w *world, d vps.SnapshotDisk) string {
				w.must(os.Rename(d.Base, d.Base+".x"))
				return d.Base + ".x"
			},
		} {
			t.Run(string(without)+" "+what, func(t *testing.T) {
				w := newWorld(t, nil)
				id := w.vps("web1", hypervisor.Running)
				w.take(id, vps.TakeRequest{})
				used := make(w, w.disk(id))
				if w.kinds()[without] == "" {
					t.Fatal("it is not offered where nobody uses it")
				}
				other := w.vps("web2", hypervisor.Off)
				path := name(w, used)
				w.must(w.host.Edit(other, func(d *hypervisor.Domain) { d.PersistentDisks[0].Path = path }))
				w.eventually("it is not offered", func() bool { return w.kinds()[without] == "" })
			})
		}
	}
}

// TestNoRemovalWhileLibvirtIsSilent: a file that no record names may be the disk of a VPS
// that libvirt does not tell of now. It was told to be removed.
func TestNoRemovalWhileLibvirtIsSilent(t *testing.T) {
	w := newWorld(t, nil)
	w.take(w.vps("web1", hypervisor.Running), vps.TakeRequest{})
	w.must(os.WriteFile(filepath.Join(w.host.ImageDir(), "web9.qcow2.vpssnap-0123456789ab.vda.qcow2"), nil, 0o600))
	if w.kinds()[vps.RemedyRemoveFile] == "" {
		t.Error("with libvirt there it is not offered")
	}
	w.host.Disconnect()
	if got := w.kinds()[vps.RemedyRemoveFile]; got != "" {
		t.Errorf("offered is %s", got)
	}
	w.noRemoval()
}

// TestCopiedDefinition (FAULTS row 33): a VPS was defined with the disks of another. The
// repair that was offered could only refuse, and nothing may be merged for it.
func TestCopiedDefinition(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	clone := w.vps("clone", hypervisor.Off)
	w.must(w.host.Edit(clone, func(d *hypervisor.Domain) { d.PersistentDisks, d.Metadata = dom.PersistentDisks, dom.Metadata }))
	w.eventually("it is told", func() bool {
		for _, f := range mustCheck(w) {
			if f.VPS == clone && f.Code == vps.CheckUnrecordedSnapshot {
				return !f.Repairable && strings.Contains(f.Detail, id) && f.Remedies[0].Kind == vps.RemedyRead
			}
		}
		return false
	})
}
