package site_test

import (
	"flag"
	"fmt"
	"syscall"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// strikes are the moments within a call at which libvirtd is struck: before each command to
// QEMU from the first to the last, and before each time that it writes down what it knows.
// Between two of them nothing durable happens.
const (
	// mostCommands and mostWrites are more than any call needs: the last strikes do not
	// come about.
	mostCommands = 60
	mostWrites   = 6
	// perCommand: libvirt's threads wake each other with the same system call, so that each
	// command comes with several.
	perCommand = 2
	// sampled: the suite strikes before one command in so many.
	sampled = 10
)

// everyWindow strikes before each command; it takes an hour (make windows).
var everyWindow = flag.Bool("every-window", false, "kill libvirtd before each command to QEMU, not before every tenth")

// windows calls do for each moment, until there are no more. The suite strikes before so many
// writes: those that follow are another call's.
func windows(writes int, do func(at string, nth int) (struck bool)) {
	if *everyWindow {
		writes = mostWrites
	}
	for nth, struck := 1, true; struck && nth <= writes; nth++ {
		struck = do(lab.AtStatus, nth)
	}
	step := sampled * perCommand
	if *everyWindow {
		step = perCommand
	}
	for nth, struck := 1, true; struck && nth <= mostCommands; nth += step {
		struck = do(lab.AtMonitor, nth)
	}
}

// struckIn begins an operation with a libvirtd that dies at some moment of the call that
// follows a failpoint, and comes again. It returns how the operation ended.
func (h halting) struckIn(
	point, domain, at string, nth int, begin func() (api.Operation, error),
) (op api.Operation, struck bool) {
	h.t.Helper()
	if at == lab.AtStatus {
		domain = "" // any thread does that
	}
	var strike *lab.Strike
	op = h.at(point, begin, func() {
		var err error
		strike, err = h.Lab.StrikeLibvirtd(h.t.Context(), domain, at, nth, syscall.SIGKILL)
		h.must(err)
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = h.Client.WaitOperation(h.t.Context(), op.ID, time.Minute)
	}()
	select {
	case <-strike.Ended():
		struck = true
		h.must(h.Lab.StartLibvirtd(h.t.Context()))
	case <-ended:
		h.must(strike.Close())
	}
	began := time.Now()
	op, cured := h.endedOrCured(op)
	h.t.Logf("%s, struck at %s %d: %v; cured %v; %s %s after %s", op.Kind, at, nth, struck, cured, op.Status, op.Result,
		time.Since(began).Round(time.Millisecond))
	h.reconnected()
	return op, struck
}

// endedOrCured is ended. Where libvirt is wrong about the VPS now, the operation waits for an
// operator, who does what doctor says of that VPS, and nothing else.
func (h halting) endedOrCured(op api.Operation) (_ api.Operation, cured bool) {
	h.t.Helper()
	op, err := h.Client.WaitOperation(h.t.Context(), op.ID, time.Minute)
	h.must(err)
	if !site.IsAstray(op) {
		return h.ended(op), false
	}
	h.t.Logf("%s: %s", op.Error.Detail, op.Error.Remedy)
	h.must(h.CureAstray(h.t.Context(), op.VPSName))
	h.reconnected()
	op, err = h.Client.ResumeOperation(h.t.Context(), op.ID)
	h.must(err)
	return h.ended(op), true
}

// TestLibvirtdDiesInTheTake (FAULTS row 44 a, b) kills libvirtd at each moment within the
// call that switches the disks. The take succeeds or can be asked for again, the guest runs
// on with what it wrote meanwhile, and nobody is asked for help.
func TestLibvirtdDiesInTheTake(t *testing.T) {
	t.Parallel()
	h := newHalting(t)
	spec := twoDisks("web1")
	h.define(spec, "running")
	before := h.look("web1")
	pid, err := h.Lab.QEMUPID("web1")
	h.must(err)
	pattern := byte('a')
	windows(mostWrites, func(at string, nth int) bool {
		pattern = 'a' + (pattern-'a'+1)%26
		h.fill("web1", pattern)
		take := func() (api.Operation, error) { return h.Client.Take(t.Context(), "web1", api.TakeRequest{}) }
		op, struck := h.struckIn("take/switch/SwitchToOverlays/before", "web1", at, nth, take)
		h.holds("web1", pattern)
		if op.Status == "failed" {
			h.clean("web1")
			h.take("web1", api.TakeRequest{})
		}
		h.fill("web1", pattern-32)
		h.delete("web1")
		h.holds("web1", pattern-32)
		h.same(fmt.Sprintf("struck at %s %d", at, nth), "web1", before)
		h.clean("web1")
		if now, err := h.Lab.QEMUPID("web1"); err != nil || now != pid {
			t.Fatalf("the guest was started again: %v", err)
		}
		return struck
	})
}

// TestLibvirtdDiesInTheDelete (FAULTS row 44 b, c) does so within the calls that begin a
// merge and that pivot, and within the one that starts the VPS again after a restore.
func TestLibvirtdDiesInTheDelete(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		point, domain string
		writes        int
	}{
		{"delete/merge/StartMerge/before", "web1", 2}, // one for each disk
		{"delete/pivot/Pivot/before", "web1", mostWrites},
		{"restore/start/Start/before", "", mostWrites}, // its QEMU, and the thread for it, are yet to come
	} {
		t.Run(c.point, func(t *testing.T) {
			t.Parallel()
			h := newHalting(t)
			ctx := t.Context()
			h.define(twoDisks("web1"), "running")
			before := h.look("web1")
			windows(c.writes, func(at string, nth int) bool {
				h.bring("web1", "running")
				pid, err := h.Lab.QEMUPID("web1")
				h.must(err)
				h.fill("web1", 'a')
				h.take("web1", api.TakeRequest{})
				h.fill("web1", 'b')
				begin, want := func() (api.Operation, error) { return h.Client.Delete(ctx, "web1") }, byte('b')
				if c.domain == "" {
					snapshot, err := h.Client.Snapshot(ctx, "web1")
					h.must(err)
					want, begin = 'a', func() (api.Operation, error) {
						return h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: snapshot.ID})
					}
				}
				op, struck := h.struckIn(c.point, c.domain, at, nth, begin)
				if op.Status != "succeeded" {
					t.Errorf("struck at %s %d: %s, %+v", at, nth, op.Status, op.Error)
				}
				h.holds("web1", want)
				if now, err := h.Lab.QEMUPID("web1"); c.domain != "" && (err != nil || now != pid) {
					t.Errorf("struck at %s %d: the guest was started again: %v", at, nth, err)
				}
				if h.has("web1") {
					h.delete("web1")
				}
				// A libvirt that is killed when it has taken the overlay away from QEMU, and has
				// not written that down, kills the guest when it comes again.
				h.bring("web1", "shut off")
				h.holds("web1", want)
				h.same(fmt.Sprintf("struck at %s %d", at, nth), "web1", before)
				h.clean("web1")
				return struck
			})
		})
	}
}
