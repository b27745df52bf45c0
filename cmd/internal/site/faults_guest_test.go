package site_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// TestGuestFaults does to one guest that writes all the time what a take or a
// delete must let it survive.
func TestGuestFaults(t *testing.T) {
	t.Parallel()
	h := newMortal(t, site.Options{Config: "[snapshot]\nfreeze_limit = \"2s\"\n"})
	h.boot(pointVPS)
	h.must(h.Lab.StartRecorder(t.Context(), pointVPS))
	for _, c := range []struct {
		name string
		test func(mortal)
	}{
		{"FAULTS row 5", mortal.diesWhenFrozen}, {"FAULTS row 30", mortal.stoppedWhenFrozen}, {"FAULTS row 29", mortal.silentAgent},
		{"FAULTS row 29, late", mortal.slowFreeze}, {"FAULTS row 20", mortal.powerInMerge},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.test(mortal{&host{h.Site, t}, h.point}) }) {
			return
		}
	}
}

// diesWhenFrozen (FAULTS row 5): the daemon dies right after the freeze.
func (h mortal) diesWhenFrozen() {
	ctx := h.t.Context()
	h.diesAt("take/switch/Freeze/after", h.beginner("take"))
	frozen, err := h.Lab.Acknowledged(pointVPS)
	h.must(err)
	h.must(h.StartDaemon(ctx))
	h.must(h.Lab.WaitAcknowledged(ctx, pointVPS, frozen+2))
	if op := h.last(pointVPS); op.Status != "failed" {
		h.t.Errorf("the take ended as %s", op.Status)
	}
	h.clean(pointVPS)
}

// stoppedWhenFrozen (FAULTS row 30): the daemon is stopped while the guest is
// frozen, and is then killed and started again, as systemd's watchdog does.
func (h mortal) stoppedWhenFrozen() {
	ctx := h.t.Context()
	h.must(
		h.Lab.GuestWriteFile(
			ctx, pointVPS, "/run/hook", []byte("[ $1 = thaw ] || { echo FREEZING >/dev/console; sleep 1; }\n"),
		),
	)
	op, err := h.Client.Take(ctx, pointVPS, api.TakeRequest{})
	h.must(err)
	h.eventually("the freeze is under way", func() bool { return h.printed(pointVPS, "FREEZING") > 0 })
	h.holdDaemon()
	h.eventually("the guest is frozen", func() bool {
		var status string
		return h.Lab.Agent(ctx, pointVPS, "guest-fsfreeze-status", nil, &status) == nil && status == "frozen"
	})
	h.must(h.KillDaemon())
	h.must(h.StartDaemon(ctx))
	h.ended(op)
	h.writes(pointVPS)
	h.must(h.Lab.GuestWriteFile(ctx, pointVPS, "/run/hook", nil))
	if h.has(pointVPS) {
		h.delete(pointVPS)
	}
	h.clean(pointVPS)
}

// silentAgent (FAULTS row 29): the agent is stopped for longer than two takes
// last, and never answers the freeze of the first.
func (h mortal) silentAgent() {
	ctx := h.t.Context()
	h.must(h.Lab.GuestStart(ctx, pointVPS, "sh", "-c", "kill -STOP $(pidof qemu-ga); sleep 30; kill -CONT $(pidof qemu-ga)"))
	op := h.take(pointVPS, api.TakeRequest{Quiesce: "prefer"})
	s, err := h.Client.Snapshot(ctx, pointVPS)
	if h.must(err); s.Consistency != "crash" || !strings.Contains(op.Result, "as after a power cut") {
		h.t.Errorf("the snapshot is %s; the take says %q", s.Consistency, op.Result)
	}
	h.failed(api.CodeGuestUnresponsive)(h.Client.Take(ctx, pointVPS, api.TakeRequest{Quiesce: "require", Replace: true}))
	h.writes(pointVPS)
	h.delete(pointVPS)
	h.clean(pointVPS)
}

// powerInMerge (FAULTS row 20): the guest powers itself off, and another time
// reboots, while its disk is merged and the daemon is away.
func (h mortal) powerInMerge() {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*bootWithin)
	defer cancel()
	for _, c := range []struct {
		how   string
		power func() error
		state string
	}{
		{"poweroff", func() error { return h.Lab.GuestShutdown(ctx, pointVPS) }, "shut off"},
		{"reboot", func() error { return h.reboot(ctx, pointVPS) }, "running"},
	} {
		file := "/mnt/vda/" + c.how
		h.take(pointVPS, api.TakeRequest{})
		h.must(h.Lab.GuestWriteFile(ctx, pointVPS, file, []byte("written after")))
		h.must(h.Lab.GuestSync(ctx, pointVPS))
		h.diesAt("delete/merge/StartMerge/after", h.beginner("delete"))
		h.must(c.power())
		h.must(h.StartDaemon(ctx))
		if op := h.last(pointVPS); op.Status != "succeeded" {
			h.t.Errorf("%s: the delete ended as %s: %+v", c.how, op.Status, op.Error)
		}
		if got := h.state(pointVPS); got != c.state {
			h.t.Errorf("%s: the VPS is %s", c.how, got)
		}
		h.clean(pointVPS)
		h.bring(pointVPS, "running")
		h.must(h.Lab.WaitAgent(ctx, pointVPS))
		h.guestHas(pointVPS, file, "written after")
	}
}

// reboot lets a guest reboot itself, and returns when it has booted.
func (h mortal) reboot(ctx context.Context, name string) error {
	before := h.printed(name, "READY")
	if err := h.Lab.GuestStart(ctx, name, "sh", "-c", "sleep 1; reboot -f"); err != nil {
		return err
	}
	for h.printed(name, "READY") == before {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// printed is how often a word stands on a guest's console.
func (h *host) printed(name, word string) int {
	h.t.Helper()
	text, err := os.ReadFile(h.Lab.ConsoleFile(name))
	h.must(err)
	return bytes.Count(text, []byte(word))
}

// TestOneDiskFails takes the snapshot of three disks with a QEMU that can open no
// more files than the first of them needs (FAULTS row 21): no disk is switched.
func TestOneDiskFails(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	spec := lab.Spec{Name: "web1"}
	for _, target := range []string{"vda", "vdb", "vdc"} {
		spec.Disks = append(spec.Disks, lab.DiskSpec{Target: target, SizeBytes: 1 << 20})
	}
	h.define(spec, "running")
	before, live := h.look("web1"), h.virsh("domblklist", "web1")
	pid, err := h.Lab.QEMUPID("web1")
	h.must(err)
	var limit unix.Rlimit
	h.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit))
	h.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: h.filesAndMore(pid, 3), Max: limit.Max}, nil))
	op, err := h.Client.Take(t.Context(), "web1", api.TakeRequest{})
	h.must(err)
	if op = h.ended(op); op.Status != "failed" {
		t.Errorf("the take ended as %s", op.Status)
	}
	if got := h.virsh("domblklist", "web1"); got != live {
		t.Errorf("after a take that failed the VPS runs on\n%s", got)
	}
	h.same("after a take that failed", "web1", before)
	h.clean("web1")
	h.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil))
	h.take("web1", api.TakeRequest{})
	h.delete("web1")
	h.same("after delete", "web1", before)
	h.clean("web1")
}

// filesAndMore is the limit under which a process can open so many files more.
func (h *host) filesAndMore(pid, more int) uint64 {
	h.t.Helper()
	for n := uint64(0); ; n++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", pid, n)); err == nil {
			continue
		}
		if more--; more < 0 {
			return n
		}
	}
}
