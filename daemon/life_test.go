package daemon_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestLife is what a customer does, for every state of the VPS and 1 to 3 disks.
func TestLife(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
		for disks := 1; disks <= 3; disks++ {
			t.Run(fmt.Sprintf("%s/%d", state, disks), func(t *testing.T) { life(t, state, disks) })
		}
	}
}

func life(t *testing.T, state hypervisor.State, n int) {
	w := newWorld(t, nil)
	var disks []hypervisor.Disk
	for i := range n {
		disks = append(
			disks,
			hypervisor.Disk{Target: fmt.Sprintf("vd%c", 'a'+i), SizeBytes: 8 * mib, Format: []string{"qcow2", "raw"}[i%2]},
		)
	}
	id := w.vps("web1", state, disks...)
	all := func(do func(target string)) {
		for _, d := range disks {
			do(d.Target)
		}
	}
	all(func(target string) { w.write(id, target, 0, 'a') })

	op := w.take(id, vps.TakeRequest{Description: "before the upgrade"})
	want := map[hypervisor.State]vps.Consistency{
		hypervisor.Running: vps.ConsistencyFilesystem, hypervisor.Paused: vps.ConsistencyCrash, hypervisor.Off: vps.ConsistencyOffline}[state]
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable || s.Consistency != want ||
		s.Description != "before the upgrade" ||
		s.SizeBytes != int64(n)*8*mib {
		t.Errorf("snapshot after %s: %+v", op.Result, s)
	}
	w.standsAs(id, state)
	_, err := w.daemon.Snapshots.Take(context.Background(), id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeSnapshotExists, err)

	all(func(target string) { w.write(id, target, 0, 'b') })
	w.restore(id)
	all(func(target string) { w.sees(id, target, 0, 'a') })
	w.standsAs(id, state)

	w.done(w.daemon.Snapshots.UndoRestore(context.Background(), id, operator))
	all(func(target string) { w.sees(id, target, 0, 'b') })
	w.standsAs(id, state)

	if op := w.take(id, vps.TakeRequest{Replace: true}); !strings.Contains(op.Result, "no longer be undone") {
		t.Errorf("the replace does not say that it ends the undo: %s", op.Result)
	}
	all(func(target string) { w.write(id, target, 4096, 'c') })
	w.restore(id)
	all(func(target string) { w.sees(id, target, 0, 'b'); w.sees(id, target, 4096, 0) })
	all(func(target string) { w.write(id, target, 4096, 'd') })

	if op := w.delete(id); !strings.Contains(op.Result, "no longer be undone") {
		t.Errorf("the delete does not say that it ends the undo: %s", op.Result)
	}
	all(func(target string) { w.sees(id, target, 0, 'b'); w.sees(id, target, 4096, 'd') })
	w.standsAs(id, state)
	w.clean(id)
	_, err = w.daemon.Snapshots.Delete(context.Background(), id, operator)
	w.refuses(vps.CodeNotFound, err)
}

// standsAs fails unless the VPS is in that state, and its guest not frozen.
func (w *world) standsAs(id string, state hypervisor.State) {
	w.t.Helper()
	if got := w.state(id); got != state {
		w.t.Errorf("the VPS is %s, it was %s", got, state)
	}
	if g, err := w.host.Guest(id); err != nil || g.Frozen {
		w.t.Errorf("the guest is frozen (%v)", err)
	}
}

// TestFiftyTimes repeats the whole on one VPS: no chain grows, no file is left.
func TestFiftyTimes(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	for i := range 50 {
		w.write(id, "vda", 0, byte(i))
		w.take(id, vps.TakeRequest{})
		w.write(id, "vda", 0, 'x')
		w.restore(id)
		w.sees(id, "vda", 0, byte(i))
		w.delete(id)
		w.clean(id)
	}
}

// TestOneAtATime: of 100 takes at once one is accepted.
func TestOneAtATime(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	var mu sync.Mutex
	var accepted []vps.Operation
	codes := map[vps.Code]int{}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			op, err := w.daemon.Snapshots.Take(context.Background(), id, vps.TakeRequest{}, operator)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted = append(accepted, op)
				return
			}
			codes[vps.CodeOf(err)]++
		})
	}
	wg.Wait()
	if len(accepted) != 1 || codes[vps.CodeOperationInProgress]+codes[vps.CodeSnapshotExists] != 99 {
		t.Fatalf("%d accepted, refused with %v", len(accepted), codes)
	}
	w.done(accepted[0], nil)
}

// TestRefusals: bad wishes get their code and change nothing.
func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	id := w.vps("web1", hypervisor.Running)
	_, err := w.daemon.Snapshots.Take(ctx, "nobody", vps.TakeRequest{}, operator)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: "x"}, operator)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Snapshots.UndoRestore(ctx, id, operator)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Snapshots.Delete(ctx, id, operator)
	w.refuses(vps.CodeNotFound, err)

	w.take(id, vps.TakeRequest{})
	for _, confirm := range []string{"", "000000000000"} {
		_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: confirm}, operator)
		w.refuses(vps.CodeConfirmationRequired, err)
		if !strings.Contains(err.Error(), "the restore can be undone for 1 hour") {
			t.Errorf("what is asked to be confirmed: %v", err)
		}
	}

	poor, err := w.host.Define("poor", hypervisor.Disk{Target: "vda", SizeBytes: mib})
	w.must(err)
	w.eventually("poor is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, "poor"); return err == nil })
	_, err = w.daemon.Snapshots.Take(ctx, poor, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeOptionRequired, err)
}

// TestUnsupported names the disk and the reason.
func TestUnsupported(t *testing.T) {
	w := newWorld(t, nil)
	for name, edit := range map[string]func(*hypervisor.Domain){
		"shareable":     func(d *hypervisor.Domain) { d.Disks[0].Shareable = true },
		"type network":  func(d *hypervisor.Domain) { d.Disks[0].Type = "network" },
		"type block":    func(d *hypervisor.Domain) { d.Disks[0].Type = "block" },
		"encrypted":     func(d *hypervisor.Domain) { d.Disks[0].Encrypted = true },
		"transient":     func(d *hypervisor.Domain) { d.Disks[0].Transient = true },
		"format vmdk":   func(d *hypervisor.Domain) { d.Disks[0].Format = "vmdk" },
		"persistent":    func(d *hypervisor.Domain) { d.Persistent = false },
		"TPM":           func(d *hypervisor.Domain) { d.TPM = true },
		"UEFI":          func(d *hypervisor.Domain) { d.NVRAMOther = true },
		"libvirt snaps": func(d *hypervisor.Domain) { d.ForeignSnapshots = 1 },
	} {
		id := w.vps("vps-"+name, hypervisor.Running)
		w.must(w.host.Edit(id, edit))
		_, err := w.daemon.Snapshots.Take(context.Background(), id, vps.TakeRequest{}, operator)
		if vps.CodeOf(err) != vps.CodeUnsupportedDisk {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left := w.files(); len(left) > 0 {
		t.Errorf("files made for a refused take: %v", left)
	}
}
