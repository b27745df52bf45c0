package libvirt_test

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
)

// soon is far above what libvirt needs for anything here, and far below the
// time for which it holds calls to a QEMU that hangs.
const soon = 15 * time.Second

// hang starts a domain and stops its QEMU.
func hang(t *testing.T, l *lab.Lab, h *libvirt.Host, name string) string {
	t.Helper()
	id := define(t, l, name)
	must(t, h.Start(t.Context(), id, false))
	must(t, l.StopQEMU(name))
	return id
}

// occupied waits until a call hangs in libvirtd on the domain's QEMU.
func occupied(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	until(t, "a call to reach the QEMU of "+name, func() bool {
		return strings.Contains(virsh(t, l, "domcontrol", name), "occupied")
	})
}

func TestHangingQEMUsHoldNobodyUp(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	well := define(t, l, "well")
	must(t, h.Start(t.Context(), well, false))
	done := make(chan error, 32)
	names := []string{"stuck1", "stuck2", "stuck3", "stuck4", "stuck5"}
	for _, name := range names {
		id := hang(t, l, h, name)
		for range 4 {
			go func() { _, err := h.Domain(t.Context(), id); done <- err }()
		}
		go func() { _, err := h.MergeJob(t.Context(), id, "vda"); done <- err }()
		go func() { done <- h.Suspend(t.Context(), id) }()
		occupied(t, l, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	_, err := h.Info(ctx)
	must(t, err)
	list, err := h.List(ctx)
	must(t, err)
	if len(list) != 1+len(names) {
		t.Errorf("the list has %d domains", len(list))
	}
	for _, d := range list {
		hangs := d.ID != well
		if d.Silent != hangs || (d.State == hypervisor.Running) == hangs || len(d.Disks) != 1 || len(d.PersistentDisks) != 1 {
			t.Errorf("%s is listed as %+v", d.Name, d)
		}
	}
	path, base := overlay(t, l, h, well, "over")
	must(t, h.SwitchToOverlays(ctx, well, []hypervisor.DiskSwitch{{Target: "vda", Overlay: path}}))
	must(t, h.StartMerge(ctx, well, hypervisor.Merge{Target: "vda", Top: path, Base: base.Path, Active: true}))
	until(t, "the merge", func() bool {
		job, err := h.MergeJob(ctx, well, "vda")
		must(t, err)
		return job.Ready
	})
	must(t, h.Suspend(ctx, well))
	must(t, h.Pivot(ctx, well, "vda"))
	must(t, h.Resume(ctx, well))
	must(t, h.PowerOff(ctx, well))
	must(t, h.Start(ctx, well, false))
	select {
	case err := <-done:
		t.Fatalf("a call to a QEMU that hangs came back: %v", err)
	default:
	}
	for _, name := range names {
		must(t, l.ContinueQEMU(name))
	}
	for range 6 * len(names) {
		must(t, <-done)
	}
}

// What is read of a domain must be what came of an earlier call that nobody
// waits for any more, and calls to it must not pile up in libvirtd.
func TestAnAbandonedCallIsOutwaited(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := hang(t, l, h, "stuck")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	is(t, h.Suspend(short, id), hypervisor.ErrUnavailable)
	for range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		is(t, h.Suspend(ctx, id), hypervisor.ErrUnavailable)
		cancel()
	}
	if calls := underWay(); calls != 1 {
		t.Errorf("%d calls to one domain are under way", calls)
	}
	resumed := make(chan error, 1)
	go func() { resumed <- h.Resume(t.Context(), id) }()
	must(t, l.ContinueQEMU("stuck"))
	must(t, <-resumed)
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	if d.State != hypervisor.Running {
		t.Errorf("the abandoned suspend came after the resume: %s", d.State)
	}
}

func TestCallsOfALostConnectionEnd(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	var ids []string
	for _, name := range []string{"web1", "web2", "web3"} {
		ids = append(ids, define(t, l, name))
	}
	must(t, l.StopLibvirtd())
	done := make(chan error, 32)
	for _, id := range ids {
		for range 3 {
			go func() { _, err := h.Domain(t.Context(), id); done <- err }()
		}
	}
	for range 3 * len(ids) {
		is(t, <-done, hypervisor.ErrUnavailable)
	}
	await(t, h, hypervisor.EventDisconnected, "")
	must(t, l.ContinueLibvirtd())
	await(t, h, hypervisor.EventConnected, "")
	for _, id := range ids {
		_, err := h.Domain(t.Context(), id)
		must(t, err)
	}
	until(t, "the calls of before to end", func() bool { return underWay() == 0 })
}

// underWay counts this process's calls in libvirt.
func underWay() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "created by vpssnapd/hypervisor/libvirt.await")
}
