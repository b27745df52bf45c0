package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// finds fails unless Checks finds exactly these codes, and returns the findings.
func (w *world) finds(want ...vps.CheckCode) []vps.Finding {
	w.t.Helper()
	r, err := w.daemon.Doctor.Checks(ctx)
	w.must(err)
	w.codes(r, want...)
	return r.Findings
}

func (w *world) codes(r vps.Report, want ...vps.CheckCode) {
	w.t.Helper()
	var got []string
	for _, f := range r.Findings {
		got = append(got, string(f.Code))
	}
	var wanted []string
	for _, c := range want {
		wanted = append(wanted, string(c))
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		var all []string
		for _, f := range r.Findings {
			all = append(all, fmt.Sprintf("%s %s: %s", f.Code, f.Disk, f.Detail))
		}
		w.t.Fatalf("found %v, want %v\n%s\n%s", got, wanted, strings.Join(all, "\n"), w.log.String())
	}
}

// repairs fails unless Repair leaves exactly these codes and failed at nothing.
func (w *world) repairs(left ...vps.CheckCode) vps.Report {
	w.t.Helper()
	r, err := w.daemon.Doctor.Repair(ctx, operator)
	w.must(err)
	for _, done := range r.Repairs {
		if !done.Done {
			w.t.Errorf("%s was not repaired: %s", done.Code, done.Text)
		}
	}
	w.codes(r, left...)
	return r
}

func (w *world) disk(id string) vps.SnapshotDisk { w.t.Helper(); return w.snapshot(id).Disks[0] }

// aside moves a file away and returns how to put it back.
func (w *world) aside(path string) (back func()) {
	w.t.Helper()
	away := filepath.Join(w.t.TempDir(), "away")
	w.must(os.Rename(path, away))
	return func() { w.t.Helper(); w.must(os.Rename(away, path)) }
}

// replaced puts a copy with another inode in a file's place.
func (w *world) replaced(path string) (back func()) {
	w.t.Helper()
	data, err := os.ReadFile(path)
	w.must(err)
	back = w.aside(path)
	w.must(os.WriteFile(path, data, 0o600))
	return back
}

// TestNoFalseAlarm: whatever the product itself does, nothing is found.
func TestNoFalseAlarm(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps(
				"web1", state, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib},
				hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib, Format: "raw"},
			)
			w.finds()
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'a')
			w.finds()
			w.restore(id)
			w.finds()
			w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
			w.finds()
			w.take(id, vps.TakeRequest{Replace: true})
			w.write(id, "vdb", 0, 'b')
			w.finds()
			w.close()
			w.open()
			w.finds()
			w.delete(id)
			w.finds()
		})
	}
}

// TestFilesOfASnapshot (FAULTS row 32): a snapshot whose files are missing or replaced is
// broken, says what is missing, and is available again when they are back.
func TestFilesOfASnapshot(t *testing.T) {
	cases := []struct {
		code vps.CheckCode
		do   func(w *world, d vps.SnapshotDisk) (back func())
	}{
		{vps.CheckMissingBase, func(w *world, d vps.SnapshotDisk) func() { return w.aside(d.Base) }},
		{vps.CheckReplacedBase, func(w *world, d vps.SnapshotDisk) func() { return w.replaced(d.Base) }},
		{vps.CheckMissingOverlay, func(w *world, d vps.SnapshotDisk) func() { return w.aside(d.Overlay) }},
		{vps.CheckReplacedOverlay, func(w *world, d vps.SnapshotDisk) func() { return w.replaced(d.Overlay) }},
	}
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
		for _, c := range cases {
			t.Run(string(c.code)+"/"+string(state), func(t *testing.T) {
				w := newWorld(t, nil)
				id := w.vps("web1", state)
				w.write(id, "vda", 0, 'a')
				w.take(id, vps.TakeRequest{})
				w.write(id, "vda", 0, 'b')
				before, err := w.host.Domain(ctx, id)
				w.must(err)

				back := c.do(w, w.disk(id))
				f := w.finds(c.code)[0]
				if f.VPSName != "web1" || f.Disk != "vda" || f.Repairable || !strings.Contains(f.Detail, f.Path) ||
					len(f.Remedies) == 0 {
					t.Errorf("found %+v", f)
				}
				s := w.snapshot(id)
				if s.State != vps.SnapshotBroken || strings.Contains(s.Reason, "/") ||
					!strings.Contains(s.Reason, "disk vda") {
					t.Errorf("the snapshot is %s: %s", s.State, s.Reason)
				}
				_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: s.ID}, operator)
				w.refuses(vps.CodeVPSChanged, err)
				_, err = w.daemon.Snapshots.Delete(ctx, id, operator)
				w.refuses(vps.CodeVPSChanged, err)
				w.repairs(c.code)
				w.said(id, "The snapshot is broken and cannot be restored")

				back()
				after, err := w.host.Domain(ctx, id)
				w.must(err)
				if fmt.Sprint(after) != fmt.Sprint(before) {
					t.Errorf("the VPS was touched: %+v, before %+v", after, before)
				}
				w.finds()
				if s := w.snapshot(id); s.State != vps.SnapshotAvailable || s.Reason != "" {
					t.Errorf("with the file back the snapshot is %s: %s", s.State, s.Reason)
				}
				w.said(id, "no longer broken")
				w.restore(id)
				w.sees(id, "vda", 0, 'a')
				w.finds()
			})
		}
	}
}

// said fails unless the journal has this.
func (w *world) said(id, text string) {
	w.t.Helper()
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id})
	w.must(err)
	for _, m := range page.Messages {
		if strings.Contains(m.Text, text) {
			return
		}
	}
	w.t.Errorf("the journal does not say %q", text)
}

// TestDrift provokes every other difference by hand: it is named, and gone when it
// is put right, by the daemon where that is safe.
func TestDrift(t *testing.T) {
	cases := []struct {
		name  string
		state hypervisor.State
		do    func(w *world, id string) (undo func())
		want  []vps.CheckCode
		// repairable: Repair puts it right; else undo does.
		repairable bool
	}{
		{name: "base written", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckBaseWritten},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				w.must(os.Chtimes(d.Base, time.Time{}, time.Now().Add(time.Second)))
				return func() { w.must(os.Chtimes(d.Base, time.Time{}, d.BaseModified)) }
			}},
		{name: "undo missing", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckMissingUndo},
			do: func(w *world, id string) func() { w.restore(id); return w.aside(w.disk(id).Undo) }},
		{name: "mode", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckWrongModeOrOwner},
			do: func(w *world, id string) func() {
				path := w.disk(id).Overlay
				w.must(os.Chmod(path, 0o644))
				return func() { w.must(os.Chmod(path, 0o600)) }
			}},
		{name: "mode of the undo", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckWrongModeOrOwner},
			do: func(w *world, id string) func() {
				w.restore(id)
				path := w.disk(id).Undo
				w.must(os.Chmod(path, 0o644))
				return func() { w.must(os.Chmod(path, 0o600)) }
			}},
		{name: "a base for a group", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckWrongModeOrOwner},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				w.must(os.Chmod(d.Base, 0o660))
				return func() { w.must(os.Chmod(d.Overlay, 0o660)) }
			}},
		{name: "header", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckOverlayHeaderDiffers},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				base, err := os.ReadFile(d.Base)
				w.must(err)
				w.must(os.WriteFile(d.Base+".other", base, 0o600)) // a link would be the same file
				w.must(w.host.Rebase(ctx, d.Overlay, d.Base+".other", d.BaseFormat))
				return func() { w.must(w.host.Rebase(ctx, d.Overlay, d.Base, d.BaseFormat)) }
			}},
		{name: "resized", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckDiskResized},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				w.header(d, d.SizeBytes*2)
				return func() { w.header(d, d.SizeBytes) }
			}},
		{name: "libvirt's snapshots", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckForeignSnapshot},
			do: func(w *world, id string) func() {
				return w.edit(id, func(d *hypervisor.Domain) { d.ForeignSnapshots, d.SnapshotNames = 1, []string{"by hand"} },
					func(d *hypervisor.Domain) { d.ForeignSnapshots, d.SnapshotNames = 0, nil })
			}},
		{name: "a job", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckForeignJob},
			do: func(w *world, id string) func() {
				w.must(w.host.ForeignJob(id, "vda"))
				return func() { w.must(w.host.FailMerge(id, "vda")) }
			}},
		{name: "disk removed", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckDiskSetChanged},
			do: func(w *world, id string) func() {
				dom, err := w.host.Domain(ctx, id)
				w.must(err)
				return w.edit(id, func(d *hypervisor.Domain) { d.PersistentDisks = nil },
					func(d *hypervisor.Domain) { d.PersistentDisks = dom.PersistentDisks })
			}},
		{name: "disk added", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckDiskSetChanged},
			do: func(w *world, id string) func() {
				return w.edit(id, func(d *hypervisor.Domain) {
					d.PersistentDisks = append(
						d.PersistentDisks,
						hypervisor.Disk{Target: "vdx", Type: "file", Device: "disk", Format: "raw", Path: "/nowhere"},
					)
				}, func(d *hypervisor.Domain) { d.PersistentDisks = d.PersistentDisks[:1] })
			}},
		{name: "disk moved", state: hypervisor.Off, want: []vps.CheckCode{vps.CheckDiskMoved},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				return w.edit(id, func(dom *hypervisor.Domain) { dom.PersistentDisks[0].Path = d.Base + ".elsewhere" },
					func(dom *hypervisor.Domain) { dom.PersistentDisks[0].Path = d.Overlay })
			}},
		{name: "definition lost", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckVPSGone},
			do: func(w *world, id string) func() {
				dom, err := w.host.Domain(ctx, id)
				w.must(err)
				w.must(w.host.Undefine(id))
				return w.edit(id, func(*hypervisor.Domain) {}, func(d *hypervisor.Domain) {
					d.Persistent, d.PersistentDisks, d.Metadata = true, dom.PersistentDisks, dom.Metadata
				})
			}},
		{
			name:       "definition names the base",
			state:      hypervisor.Running,
			want:       []vps.CheckCode{vps.CheckDefinitionNamesBase, vps.CheckMetadataMissing},
			repairable: true,
			do: func(w *world, id string) func() {
				w.host.SetHook(func(_ context.Context, point, _ string) error {
					if point == "PointDisks.before" {
						return errors.New("libvirt cannot save it")
					}
					return nil
				})
				w.must(w.host.Redefine(id))
				w.eventually(
					"the repair at once has failed",
					func() bool { return strings.Contains(w.log.String(), "definition not put right") },
				)
				return func() { w.host.SetHook(nil) }
			},
		},
		{
			name:  "definition names the base, which was written",
			state: hypervisor.Off,
			want:  []vps.CheckCode{vps.CheckDefinitionNamesBase, vps.CheckBaseWritten},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				w.must(os.Chtimes(d.Base, time.Time{}, time.Now().Add(time.Second)))
				w.must(w.host.Redefine(id))
				return func() {
					w.must(os.Chtimes(d.Base, time.Time{}, d.BaseModified))
					w.repairs()
				}
			},
		},
		{
			name:       "metadata missing",
			state:      hypervisor.Running,
			want:       []vps.CheckCode{vps.CheckMetadataMissing},
			repairable: true,
			do: func(w *world, id string) func() {
				// The end of the take, and the watch over definitions, would put it right.
				w.host.SetHook(func(_ context.Context, point, _ string) error {
					if point == "SetMetadata.before" {
						return errors.New("libvirt cannot save it")
					}
					return nil
				})
				w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.Metadata = "" }))
				return func() { w.host.SetHook(nil) }
			},
		},
		{name: "orphan", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckOrphanOverlay},
			do: func(w *world, id string) func() {
				path := filepath.Join(w.host.ImageDir(), "web9.qcow2.vpssnap-0123456789ab.vda.qcow2")
				w.must(os.WriteFile(path, nil, 0o600))
				return func() { w.must(os.Remove(path)) }
			}},
		{name: "stale", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckStaleOverlay},
			do: func(w *world, id string) func() {
				d := w.disk(id)
				w.must(os.Link(d.Overlay, d.Overlay+".kept"))
				w.delete(id)
				w.must(os.Rename(d.Overlay+".kept", d.Overlay))
				w.repairs(vps.CheckStaleOverlay)
				return func() { w.must(os.Remove(d.Overlay)) }
			}},
		{name: "libvirt away", state: hypervisor.Running, want: []vps.CheckCode{vps.CheckUnreachable},
			do: func(w *world, id string) func() {
				w.host.Disconnect()
				return func() {
					w.host.Connect()
					w.eventually(
						"libvirt is read again",
						func() bool { _, err := w.daemon.Overview.ListVPS(ctx); return err == nil },
					)
				}
			}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", c.state)
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.finds()
			undo := c.do(w, id)
			for _, f := range w.finds(c.want...) {
				if f.Detail == "" || len(f.Remedies) == 0 {
					t.Errorf("there is no way out of %+v", f)
				}
				if f.Repairable != c.repairable && f.Code != vps.CheckMetadataMissing {
					t.Errorf("%s is repairable: %v", f.Code, f.Repairable)
				}
			}
			if undo != nil {
				undo()
			}
			if c.repairable {
				w.repairs()
			}
			w.finds()
			w.sees(id, "vda", 0, 'a')
		})
	}
}

// header writes an overlay's header again, with another size.
func (w *world) header(d vps.SnapshotDisk, size int64) {
	w.t.Helper()
	line, err := json.Marshal(
		map[string]any{"format": "qcow2", "size": size, "backing": d.Base, "backing_format": d.BaseFormat},
	)
	w.must(err)
	f, err := os.OpenFile(d.Overlay, os.O_APPEND|os.O_WRONLY, 0)
	w.must(err)
	_, err = f.Write(append(line, '\n'))
	w.must(errors.Join(err, f.Close()))
}

// edit changes a domain behind the daemon's back; undo changes it again.
func (w *world) edit(id string, do, undo func(*hypervisor.Domain)) func() {
	w.t.Helper()
	w.must(w.host.Edit(id, do))
	return func() { w.t.Helper(); w.must(w.host.Edit(id, undo)) }
}

// TestForeignOverlay: somebody took an external snapshot on top of ours.
func TestForeignOverlay(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", state)
			w.take(id, vps.TakeRequest{})
			d := w.disk(id)
			top := filepath.Join(filepath.Dir(d.Overlay), "by-hand.qcow2")
			_, err := w.host.CreateOverlay(
				ctx, hypervisor.Overlay{Path: top, Base: d.Overlay, BaseFormat: "qcow2", SizeBytes: d.SizeBytes},
			)
			w.must(err)
			w.must(w.host.SwitchToOverlays(ctx, id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: top}}))
			f := w.finds(vps.CheckForeignSnapshot)[0]
			if f.Path != top || f.Repairable || !strings.Contains(fmt.Sprint(f.Remedies), "blockcommit") {
				t.Errorf("found %+v", f)
			}
			_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
			w.refuses(vps.CodeVPSChanged, err)
			w.repairs(vps.CheckForeignSnapshot)
		})
	}
}

// TestGuestOwed: a guest that could not be let go is told of.
func TestGuestOwed(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "Thaw.before" {
			return hypervisor.ErrAgent
		}
		return nil
	})
	w.take(id, vps.TakeRequest{})
	w.finds()
	w.setClock(time.Now().Add(time.Minute))
	f := w.finds(vps.CheckGuestOwed)[0]
	if !f.Repairable || !strings.Contains(fmt.Sprint(f.Remedies), "domfsthaw") {
		t.Errorf("found %+v", f)
	}
	w.host.SetHook(nil)
	w.repairs()
	if g, err := w.host.Guest(id); err != nil || g.Frozen {
		t.Errorf("the guest is frozen (%v)", err)
	}
}

// TestParked: an operation that waits for an operator is told of with its way on.
func TestParked(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	d := w.disk(id)
	back := func() {}
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "PowerOff.after" {
			w.host.SetHook(nil)
			back = w.replaced(d.Overlay)
		}
		return nil
	})
	op := w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
	if op.Status != vps.StatusNeedsAttention {
		t.Fatalf("the restore is %s", op.Status)
	}
	f := w.finds(vps.CheckOperationParked)[0]
	if f.Operation != op.ID || !strings.Contains(fmt.Sprint(f.Remedies), "operations resume "+op.ID) {
		t.Errorf("found %+v", f)
	}
	back()
	w.done(w.daemon.Operations.ResumeOperation(ctx, op.ID, operator))
	w.finds()
}

// TestNVRAMOfASnapshot: its copy of the UEFI variables is a file of the snapshot, too.
func TestNVRAMOfASnapshot(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	path := filepath.Join(w.host.ImageDir(), "web1_VARS.fd")
	w.must(os.WriteFile(path, []byte("variables"), 0o600))
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.NVRAM = path }))
	w.eventually("the snapshot has a copy", func() bool {
		w.take(id, vps.TakeRequest{})
		if w.snapshot(id).NVRAMSaved != "" {
			return true
		}
		w.delete(id)
		return false
	})
	w.finds()
	back := w.aside(w.snapshot(id).NVRAMSaved)
	w.finds(vps.CheckMissingNVRAM)
	if s := w.snapshot(id); s.State != vps.SnapshotBroken || !strings.Contains(s.Reason, "UEFI") {
		t.Errorf("the snapshot is %s: %s", s.State, s.Reason)
	}
	back()
	w.finds()
	w.restore(id)
	w.finds()
}

// TestOldLayerLeft: the merge of a replaced snapshot cannot be done. The layer
// that it leaves is told of, and the way out works.
func TestOldLayerLeft(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 4096, 'b')
	w.host.MergeReadyAfter(fake.Never)
	op, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
	w.must(err)
	w.eventually("the merge is given up", func() bool {
		w.must(w.host.FailMerge(id, "vda"))
		op, err = w.daemon.Operations.Operation(ctx, op.ID)
		return err == nil && op.Status == vps.StatusFailed
	})
	w.host.MergeReadyAfter(0)
	w.write(id, "vda", 8192, 'c')
	f := w.finds(vps.CheckUnfinished)[0]
	if want := "vpssnap delete " + id; len(f.Remedies) != 1 || len(f.Remedies[0].Commands) != 1 ||
		f.Remedies[0].Commands[0].String() != want {
		t.Fatalf("found %+v", f)
	}
	if _, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator); vps.CodeOf(
		err,
	) != vps.CodeSnapshotExists {
		t.Errorf("a second replace gives %v", err)
	}
	w.restore(id)
	w.sees(id, "vda", 4096, 'b')
	w.sees(id, "vda", 8192, 0)
	w.delete(id)
	w.finds()
	w.sees(id, "vda", 0, 'a')
	w.sees(id, "vda", 4096, 'b')
	w.sees(id, "vda", 8192, 0)
	w.clean(id)
}
