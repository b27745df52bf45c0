package site_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// moment lets a random time pass, up to what most operations take.
func (h *host) moment() {
	d := rand.N(500 * time.Millisecond)
	h.t.Logf("killed after %s", d)
	time.Sleep(d)
}

// ended waits for an operation that was disturbed and fails if an operator
// would have to look at it.
func (h *host) ended(op api.Operation) api.Operation {
	h.t.Helper()
	op, err := h.Client.WaitOperation(h.t.Context(), op.ID, time.Minute)
	h.must(err)
	if op.Status != "succeeded" && op.Status != "failed" {
		h.t.Fatalf("%s of %s ended as %s at %s: %+v", op.Kind, op.VPSName, op.Status, op.Step, op.Error)
	}
	return op
}

// has reports whether a VPS has a snapshot.
func (h *host) has(name string) bool {
	h.t.Helper()
	_, err := h.Client.Snapshot(h.t.Context(), name)
	if client.CodeOf(err) != api.CodeNotFound {
		h.must(err)
	}
	return err == nil
}

// TestDaemonKilled kills the daemon in the middle of takes and deletes of a
// guest that writes all the time. Everything ends by itself, and whatever the
// guest was told is on the disk stays there.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.boot("web1")
	before := h.look("web1")
	h.must(h.Lab.StartRecorder(ctx, "web1"))
	for range 6 {
		begin := h.Client.Delete
		if !h.has("web1") {
			h.clean("web1")
			begin = func(ctx context.Context, name string) (api.Operation, error) {
				return h.Client.Take(ctx, name, api.TakeRequest{})
			}
		}
		op, err := begin(ctx, "web1")
		h.must(err)
		h.moment()
		h.must(h.KillDaemon())
		h.must(h.StartDaemon(ctx))
		op = h.ended(op)
		t.Logf("%s: %s, %s", op.Kind, op.Status, op.Result)
		h.writes("web1")
	}
	if h.has("web1") {
		h.delete("web1")
	}
	h.same("at the end", "web1", before)
	h.clean("web1")
	h.must(h.Lab.KillQEMU("web1"))
	acknowledged, err := h.Lab.Acknowledged("web1")
	h.must(err)
	h.must(h.Lab.WaitState(ctx, "web1", "shut off"))
	h.virsh("start", "web1")
	booting, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	h.must(h.Lab.WaitAgent(booting, "web1"))
	records, err := h.Lab.Records(ctx, "web1")
	h.must(err)
	for i, n := range records {
		if n != i+1 {
			t.Fatalf("record %d is %d", i+1, n)
		}
	}
	if len(records) < acknowledged {
		t.Errorf("%d records were acknowledged, %d are there", acknowledged, len(records))
	}
}

// halting is a host whose daemon halts at a failpoint until the test lets it go on.
type halting struct {
	mortal
	halts *net.UnixListener
}

func newHalting(t *testing.T) halting {
	t.Helper()
	halts, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "halts")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { halts.Close() })
	environment := func() []string { return []string{"VPSSNAP_FAILPOINT_SOCKET=" + halts.Addr().String()} }
	return halting{newMortal(t, site.Options{Env: environment}), halts}
}

// at begins an operation, and does something while the daemon halts at that point of it.
func (h halting) at(point string, begin func() (api.Operation, error), do func()) api.Operation {
	h.t.Helper()
	*h.point = point
	h.restart()
	*h.point = ""
	op, err := begin()
	h.must(err)
	h.must(h.halts.SetDeadline(time.Now().Add(bootWithin)))
	conn, err := h.halts.Accept()
	if err != nil {
		h.t.Fatalf("the daemon did not come to %s: %v", point, err)
	}
	do()
	_, err = conn.Write([]byte("\n"))
	h.must(errors.Join(err, conn.Close()))
	return op
}

// TestLibvirtdKilled kills libvirtd around every call of every operation that changes
// something. The daemon finds out from the new one what has become of it (FAULTS row 14).
func TestLibvirtdKilled(t *testing.T) {
	t.Parallel()
	h := newHalting(t)
	ctx := t.Context()
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 64 << 20}}}, "running")
	before := h.look("web1")
	disturbed := func(point string, begin func() (api.Operation, error)) api.Operation {
		op := h.at(point, begin, func() {
			h.must(h.Lab.KillLibvirtd())
			h.must(h.Lab.StartLibvirtd(ctx))
		})
		op = h.ended(op)
		t.Logf("%s, killed at %s: %s, %s", op.Kind, point, op.Status, op.Result)
		h.reconnected()
		return op
	}
	for _, points := range []struct{ take, restore, delete string }{
		{"switch/SwitchToOverlays/before", "stop/SetMetadata/before", "queue/AllowMerge/before"},
		{"switch/SwitchToOverlays/after", "stop/PowerOff/before", "merge/StartMerge/before"},
		{"verify/SyncDefinition/before", "stop/PowerOff/after", "merge/StartMerge/after"},
		{"verify/SyncDefinition/after", "exchange/Exchange/before", "pivot/Suspend/before"},
		{"metadata/SetMetadata/before", "definition/PointDisks/before", "pivot/Pivot/before"},
		{"metadata/SetMetadata/after", "start/Start/before", "pivot/Pivot/after"},
		{"overlays/CreateOverlay/after", "start/Start/after", "settle/PointDisks/before"},
		{"switch/commit/before", "tidy/SetMetadata/before", "resume/Resume/before"},
		{"verify/commit/before", "tidy/SetMetadata/after", "unlink/SetMetadata/before"},
	} {
		h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'a', 4<<20))
		take := func() (api.Operation, error) { return h.Client.Take(ctx, "web1", api.TakeRequest{}) }
		if disturbed("take/"+points.take, take).Status == "failed" {
			h.clean("web1")
			h.take("web1", api.TakeRequest{})
		}
		h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 4<<20))
		snapshot, err := h.Client.Snapshot(ctx, "web1")
		h.must(err)
		pattern := byte('a')
		restore := func() (api.Operation, error) {
			return h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: snapshot.ID})
		}
		if disturbed("restore/"+points.restore, restore).Status == "failed" {
			pattern = 'b'
		}
		h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, pattern, 4<<20))
		h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'c', 16<<20))
		disturbed("delete/"+points.delete, func() (api.Operation, error) { return h.Client.Delete(ctx, "web1") })
		if h.has("web1") {
			h.delete("web1")
		}
		h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'c', 16<<20))
		if got := h.state("web1"); got != "running" {
			t.Errorf("the VPS is %s", got)
		}
		h.same("at the end", "web1", before)
		h.clean("web1")
	}
}

// TestQEMUKilledInMerge kills the guest's QEMU while it merges. The VPS is off
// then, and the merge is finished without it (FAULTS row 18).
func TestQEMUKilledInMerge(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[merge]\nbandwidth = \"8 MiB\"\n")
	ctx := t.Context()
	const much = 128 << 20
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: much}}}, "running")
	before := h.look("web1")
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', much))
	op, err := h.Client.Delete(ctx, "web1")
	h.must(err)
	h.at(op, "merge")
	h.must(h.Lab.StopQEMU("web1"))
	h.at(op, "merge")
	h.must(h.Lab.KillQEMU("web1"))
	h.done(op, nil)
	if got := h.state("web1"); got != "shut off" {
		t.Errorf("the VPS is %s", got)
	}
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', much))
	h.same("after delete", "web1", before)
	h.clean("web1")
	h.virsh("start", "web1")
}
