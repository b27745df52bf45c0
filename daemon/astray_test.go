package daemon_test

import (
	"errors"
	"strings"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestForgottenVPSIsLeftAlone (FAULTS row 44): of a VPS that runs and is off for libvirt no
// disk is touched, on or off, with locks or without; whoever asks is told why, doctor
// tells the way out, and what waited goes on when libvirt knows the VPS again.
func TestForgottenVPSIsLeftAlone(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	told := func(err error) {
		t.Helper()
		w.refuses(vps.CodeVPSChanged, err)
		if err != nil && !strings.Contains(err.Error(), "its QEMU runs (process ") {
			t.Errorf("refused with %q", err)
		}
	}
	w.must(w.host.Forget(id))
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	told(err)
	w.must(w.host.Remember(id))
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')

	w.must(w.host.Forget(id))
	before := w.files()
	_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	told(err)
	_, err = w.daemon.Snapshots.Delete(ctx, id, operator)
	told(err)
	said := w.finds(vps.CheckUnreachable)[0]
	if len(said.Remedies) != 1 || len(said.Remedies[0].Commands) != 2 || !strings.Contains(said.Remedies[0].Text, "do not start") {
		t.Errorf("doctor says %+v", said)
	}
	if after := w.files(); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("the files were %v and are %v", before, after)
	}
	w.must(w.host.Remember(id))
	w.finds()

	// In the middle of a deletion.
	w.once("Pivot.before", func() { w.must(w.host.Forget(id)) })
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	op = w.ended(op, err)
	if op.Status != vps.StatusNeedsAttention || !strings.Contains(op.Error.Detail, "its QEMU runs (process ") {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.must(w.host.Remember(id))
	op, err = w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.done(op, err)
	w.sees(id, "vda", 0, 'b')
	if got := w.state(id); got != hypervisor.Running {
		t.Errorf("the guest is %s", got)
	}
	w.clean(id)
}

// TestRebuildOfAForgottenVPS (FAULTS row 44): what its disks hold cannot be told, and a record
// that is made again must not say so.
func TestRebuildOfAForgottenVPS(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.must(w.host.Forget(id))
	w.loseRecord()
	_, err := w.rebuild()
	if err == nil || !strings.Contains(err.Error(), "its QEMU runs (process ") {
		t.Errorf("rebuilt: %v", err)
	}
	host, err := fake.Open(w.hostDir)
	w.must(err)
	w.must(errors.Join(host.Remember(id), host.Close()))
	done, err := w.rebuild()
	w.must(err)
	if len(done.Snapshots) != 1 || !done.Snapshots[0].Recorded {
		t.Errorf("rebuilt is %+v", done.Snapshots)
	}
	w.open()
	w.delete(id)
	w.clean(id)
}
