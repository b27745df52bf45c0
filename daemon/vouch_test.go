package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

var twoOfEach = []hypervisor.Disk{
	{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib, Format: "raw"},
}

// copied moves a file as storage is moved with cp -a: another inode, and the same times.
func (w *world) copied(path string) {
	w.t.Helper()
	info, err := os.Stat(path)
	w.must(err)
	data, err := os.ReadFile(path)
	w.must(err)
	w.must(os.WriteFile(path+".copy", data, info.Mode()))
	w.must(os.Chtimes(path+".copy", info.ModTime(), info.ModTime()))
	w.must(os.Rename(path+".copy", path))
}

// resizeBase gives a base another size, as the fake host has it.
func (w *world) resizeBase(d vps.SnapshotDisk, size int64) {
	w.t.Helper()
	line, err := json.Marshal(map[string]any{"format": d.BaseFormat, "size": size})
	w.must(err)
	f, err := os.OpenFile(d.Base, os.O_APPEND|os.O_WRONLY, 0)
	w.must(err)
	_, err = f.Write(append(line, '\n'))
	w.must(errors.Join(err, f.Close()))
}

func (w *world) touched(path string) {
	w.t.Helper()
	w.must(os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)))
}

// offersVouch reports whether doctor prints the command for every finding, or for none.
func (w *world) offersVouch(id string) bool {
	w.t.Helper()
	offered := func(f vps.Finding) bool {
		return slices.ContainsFunc(f.Remedies, func(r vps.Remedy) bool {
			return slices.ContainsFunc(r.Commands, func(c vps.Command) bool {
				return slices.Equal(c, vps.Command{"vpssnap", "vouch", id})
			})
		})
	}
	findings := mustCheck(w)
	if len(findings) == 0 {
		w.t.Fatal("doctor finds nothing")
	}
	n := 0
	for _, f := range findings {
		if offered(f) {
			n++
		}
	}
	if n != 0 && n != len(findings) {
		w.t.Errorf("the command is offered for %d of %+v", n, findings)
	}
	return n > 0
}

// TestVouch (FAULTS row 39): files that hold what they held, and are not those that were
// recorded, have a way out: doctor names it, an operator is shown what differs, and then
// restore, undo and delete work with the right bytes.
func TestVouch(t *testing.T) {
	every := func(w *world, disks []vps.SnapshotDisk, do func(string), of func(vps.SnapshotDisk) []string) {
		for _, d := range disks {
			for _, path := range of(d) {
				do(path)
			}
		}
	}
	base := func(d vps.SnapshotDisk) []string { return []string{d.Base} }
	overlay := func(d vps.SnapshotDisk) []string { return []string{d.Overlay} }
	all := func(d vps.SnapshotDisk) []string { return []string{d.Base, d.Overlay, d.Undo} }
	cases := map[string]struct {
		do func(w *world, disks []vps.SnapshotDisk)
		// moved: not while the VPS is on, since it may have the file open that was there.
		moved bool
		told  string
	}{
		"all copied":        {func(w *world, d []vps.SnapshotDisk) { every(w, d, w.copied, all) }, true, "has inode"},
		"bases copied":      {func(w *world, d []vps.SnapshotDisk) { every(w, d, w.copied, base) }, true, "the base"},
		"one base copied":   {func(w *world, d []vps.SnapshotDisk) { every(w, d[1:], w.copied, base) }, true, "disk vdb: the base"},
		"overlays copied":   {func(w *world, d []vps.SnapshotDisk) { every(w, d, w.copied, overlay) }, true, "the overlay"},
		"bases touched":     {func(w *world, d []vps.SnapshotDisk) { every(w, d, w.touched, base) }, false, "was changed at"},
		"one base touched":  {func(w *world, d []vps.SnapshotDisk) { every(w, d[:1], w.touched, base) }, false, "disk vda: the base"},
		"copied by cp only": {func(w *world, d []vps.SnapshotDisk) { every(w, d, w.copied, all); every(w, d, w.touched, base) }, true, "was changed at"},
	}
	for name, c := range cases {
		for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running, hypervisor.Paused} {
			t.Run(name+"/"+string(state), func(t *testing.T) {
				w := newWorld(t, nil)
				id := w.vps("web1", state, twoOfEach...)
				fill := func(pattern byte) { w.write(id, "vda", 0, pattern); w.write(id, "vdb", 0, pattern) }
				sees := func(pattern byte) { w.t.Helper(); w.sees(id, "vda", 0, pattern); w.sees(id, "vdb", 0, pattern) }
				fill('a')
				w.take(id, vps.TakeRequest{})
				fill('b')
				w.restore(id)
				fill('c')
				c.do(w, w.snapshot(id).Disks)
				if c.moved && state != hypervisor.Off {
					if w.offersVouch(id) {
						t.Error("doctor offers it for a VPS that may have the other file open")
					}
					_, err := w.daemon.Vouchers.Vouch(ctx, id, w.snapshot(id).ID, operator)
					w.refuses(vps.CodeVPSChanged, err)
					w.must(w.host.PowerOff(ctx, id))
				}
				if !w.offersVouch(id) {
					t.Errorf("doctor does not offer it: %+v", mustCheck(w))
				}
				snap := w.snapshot(id)
				if snap.State != vps.SnapshotBroken {
					t.Fatalf("the snapshot is %s", snap.State)
				}
				for _, confirm := range []string{"", "another"} {
					_, err := w.daemon.Vouchers.Vouch(ctx, id, confirm, operator)
					w.refuses(vps.CodeConfirmationRequired, err)
					if told := vps.Readable(err).Detail; !strings.Contains(told, c.told) || !strings.Contains(told, "not proven: ") {
						t.Errorf("told is %q", told)
					}
				}
				if after := w.snapshot(id); after.State != snap.State || !slices.Equal(after.Disks, snap.Disks) {
					t.Errorf("unconfirmed, the record is %+v, before %+v", after, snap)
				}
				done, err := w.daemon.Vouchers.Vouch(ctx, id, snap.ID, vps.Actor{Name: "jo", Way: vps.WayOperator})
				w.must(err)
				if done.State != vps.SnapshotAvailable || w.snapshot(id).State != vps.SnapshotAvailable {
					t.Errorf("the snapshot is %+v", done)
				}
				w.finds()
				w.said(id, "An operator (jo) has vouched")
				sees('c')
				w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
				sees('b')
				w.restore(id)
				sees('a')
				w.delete(id)
				sees('a')
				w.clean(id)
			})
		}
	}
}

// TestVouchRefused (FAULTS row 39): what no word of an operator makes whole is refused with
// the reason, and doctor does not offer it.
func TestVouchRefused(t *testing.T) {
	cases := map[string]struct {
		do  func(w *world, id string, d vps.SnapshotDisk)
		why string
	}{
		"base missing":      {func(w *world, _ string, d vps.SnapshotDisk) { w.aside(d.Base) }, "base is missing"},
		"overlay missing":   {func(w *world, _ string, d vps.SnapshotDisk) { w.aside(d.Overlay) }, "overlay is missing"},
		"base truncated":    {func(w *world, _ string, d vps.SnapshotDisk) { w.resizeBase(d, 4*mib) }, "base has"},
		"base grown":        {func(w *world, _ string, d vps.SnapshotDisk) { w.resizeBase(d, 16*mib) }, "base has"},
		"base empty":        {func(w *world, _ string, d vps.SnapshotDisk) { w.must(os.Truncate(d.Base, 0)) }, "cannot be read"},
		"overlay truncated": {func(w *world, _ string, d vps.SnapshotDisk) { w.must(os.Truncate(d.Overlay, 0)) }, "cut short"},
		"overlay lies on another": {func(w *world, _ string, d vps.SnapshotDisk) {
			data, err := os.ReadFile(d.Base)
			w.must(err)
			w.must(os.WriteFile(d.Base+".other", data, 0o600))
			w.must(w.host.Rebase(ctx, d.Overlay, d.Base+".other", d.BaseFormat))
			w.touched(d.Base)
		}, "lies on"},
		"overlay and undo exchanged": {func(w *world, id string, d vps.SnapshotDisk) {
			w.restore(id)
			d = w.disk(id)
			w.must(w.host.Exchange(ctx, d.Overlay, d.Undo))
		}, "changed places"},
		"disk of another image": {func(w *world, id string, d vps.SnapshotDisk) {
			w.touched(d.Base)
			w.must(w.host.Edit(id, func(dom *hypervisor.Domain) { dom.PersistentDisks[0].Path = d.Base + ".new" }))
		}, "another image"},
		"variables missing": {func(w *world, id string, d vps.SnapshotDisk) {
			w.touched(d.Base)
			w.must(os.Remove(w.snapshot(id).NVRAMSaved))
		}, "UEFI variables"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Off, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib, Format: "raw"})
			w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.NVRAM = w.nvram() }))
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			c.do(w, id, w.disk(id))
			w.touched(filepath.Dir(w.disk(id).Base))
			if w.offersVouch(id) {
				t.Error("doctor offers it")
			}
			snap := w.snapshot(id)
			for _, confirm := range []string{"", snap.ID} {
				_, err := w.daemon.Vouchers.Vouch(ctx, id, confirm, operator)
				w.refuses(vps.CodeVPSChanged, err)
				if told := vps.Readable(err); !strings.Contains(told.Detail, c.why) || !strings.Contains(told.Detail, "web1") {
					t.Errorf("told is %+v", told)
				}
			}
			if after := w.snapshot(id); after.State != snap.State || !slices.Equal(after.Disks, snap.Disks) {
				t.Errorf("the record is %+v, before %+v", after, snap)
			}
		})
	}
}

// TestVouchForARunningVPS (FAULTS row 39): the files were moved while it was off, so that it
// has those open that are there; a base can be seen with nobody, see TestVouch.
func TestVouchForARunningVPS(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off, twoOfEach...)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	for _, d := range w.snapshot(id).Disks {
		w.copied(d.Overlay)
	}
	w.must(w.host.Start(ctx, id, false))
	if !w.offersVouch(id) {
		t.Errorf("doctor does not offer it: %+v", mustCheck(w))
	}
	_, err := w.daemon.Vouchers.Vouch(ctx, id, w.snapshot(id).ID, operator)
	w.must(err)
	w.finds()
	w.delete(id)
	w.sees(id, "vda", 0, 'b')
	w.clean(id)
}

// TestNoRemedyMovesWhatIsInItsPlace (FAULTS row 39): a copy may get the number of a file
// that was removed; doctor took it for that file, and told to put it over another disk.
func TestNoRemedyMovesWhatIsInItsPlace(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off, twoOfEach...)
	w.take(id, vps.TakeRequest{})
	disks := w.snapshot(id).Disks
	// By exchange, which gives each the number of the other, whatever the file system reuses.
	w.must(w.host.Exchange(ctx, disks[0].Overlay, disks[1].Overlay))
	for _, f := range mustCheck(w) {
		for _, r := range f.Remedies {
			for _, c := range r.Commands {
				if c[0] == "mv" {
					t.Errorf("%s of disk %s: %v", f.Code, f.Disk, c)
				}
			}
		}
	}
}

// TestVouchWhenThereIsNothingTo (FAULTS row 39): without a snapshot, without a doubt, and
// while an operation works on the VPS.
func TestVouchWhenThereIsNothingTo(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	_, err := w.daemon.Vouchers.Vouch(ctx, id, "", operator)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Vouchers.Vouch(ctx, "nobody", "", operator)
	w.refuses(vps.CodeNotFound, err)
	w.take(id, vps.TakeRequest{})
	before := w.snapshot(id)
	for _, confirm := range []string{"", before.ID} {
		same, err := w.daemon.Vouchers.Vouch(ctx, id, confirm, operator)
		w.must(err)
		if !same.UpdatedAt.Equal(before.UpdatedAt) || same.State != vps.SnapshotAvailable {
			t.Errorf("with nothing to vouch for the snapshot is %+v", same)
		}
	}
	held, goOn := make(chan struct{}), make(chan struct{})
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "CreateOverlay.before" {
			close(held)
			<-goOn
		}
		return nil
	})
	op, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: before.ID}, operator)
	w.must(err)
	<-held
	_, err = w.daemon.Vouchers.Vouch(ctx, id, before.ID, operator)
	w.refuses(vps.CodeOperationInProgress, err)
	close(goOn)
	w.done(op, nil)
}

// TestVouchBySum (FAULTS row 39): a download has left a sum of a base, which proves it, or
// proves that it is another.
func TestVouchBySum(t *testing.T) {
	for _, format := range []vps.ImageFormat{vps.FormatRaw, vps.FormatQcow2} {
		for _, same := range []bool{true, false} {
			t.Run(string(format), func(t *testing.T) {
				w := newWorld(t, nil)
				id := w.vps("web1", hypervisor.Off, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib, Format: "raw"})
				w.write(id, "vda", 0, 'a')
				w.take(id, vps.TakeRequest{})
				c := w.download(w.link(id, format).Link)
				w.all(c, 0)
				w.must(c.Close())
				w.eventually("the sum is known", func() bool {
					return w.link(id, format).Image.SHA256 != nil
				})
				d := w.disk(id)
				if !same {
					other, err := w.host.Define("other", hypervisor.Disk{Target: "vda", Path: d.Base, Format: "raw"})
					w.must(err)
					w.must(w.host.Start(ctx, other, false))
					w.must(w.host.Write(other, "vda", 0, 'x', 4096))
					w.must(w.host.PowerOff(ctx, other))
					w.must(w.host.Undefine(other))
				}
				w.touched(d.Base)
				_, err := w.daemon.Vouchers.Vouch(ctx, id, "", operator)
				told := vps.Readable(err).Detail
				if same && (vps.CodeOf(err) != vps.CodeConfirmationRequired || !strings.Contains(told, "by the sum of a download")) ||
					!same && (vps.CodeOf(err) != vps.CodeVPSChanged || !strings.Contains(told, "another sum")) {
					t.Errorf("same is %v, told is %v", same, err)
				}
			})
		}
	}
}

// TestVouchCutOff (FAULTS row 39): a daemon that dies before the record knows has vouched
// for nothing; one that dies before the definition has its copy is helped by doctor, and a
// record that is rebuilt from it is whole.
func TestVouchCutOff(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off, twoOfEach...)
	w.write(id, "vdb", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vdb", 0, 'b')
	for _, d := range w.snapshot(id).Disks {
		w.copied(d.Base)
		w.touched(d.Base)
	}
	w.host.FailNext("SetMetadata.before", hypervisor.ErrUnavailable)
	_, err := w.daemon.Vouchers.Vouch(ctx, id, w.snapshot(id).ID, operator)
	w.must(err)
	w.close()
	w.open()
	_, err = w.daemon.Doctor.Repair(ctx, operator)
	w.must(err)
	w.finds()
	w.close()
	w.must(os.Remove(filepath.Join(w.stateDir, "vpssnapd.db")))
	for _, more := range []string{"-wal", "-shm"} {
		if err := os.Remove(filepath.Join(w.stateDir, "vpssnapd.db"+more)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	w.open()
	_, err = w.daemon.Doctor.Repair(ctx, operator)
	w.must(err)
	if snap := w.snapshot(id); snap.State != vps.SnapshotAvailable {
		t.Fatalf("recorded again it is %s: %s", snap.State, snap.Reason)
	}
	w.restore(id)
	w.sees(id, "vdb", 0, 'a')
}
