package fake

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vpssnapd/hypervisor"
)

// Hook is asked at every point of every call of hypervisor.Host. A point is the
// method's name and a stage: "Pivot.before", where an error prevents the effect;
// "Pivot.after", where an error hides it; and for some calls "Pivot.half", where
// an error leaves it half done, as if the doer had died there:
//
//	SwitchToOverlays.half  the running guest has switched, the persistent definition is not saved
//	Pivot.half             the same
//	MergeOffline.half      a part of the overlay is in the base
//	CreateOverlay.half     the file exists and is empty
//	Copy.half              the file exists and is cut short
//
// subject is the domain's id, or the path for Images calls. No lock is held: a
// hook may use the host and all hands.
type Hook func(ctx context.Context, point, subject string) error

// faults is what goes wrong on one connection.
type faults struct {
	connected  bool
	closed     bool
	cut        bool
	hook       Hook
	next       map[string][]error
	mergePolls int
	outrun     bool
	free       int64 // of Space; negative: what the file system says
	hung       map[string]bool
}

// errHang in the queue of failures means to wait for the end of the context.
var errHang = errors.New("hang")

// SetHook sets the hook; nil removes it.
func (h *Host) SetHook(hook Hook) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.faults.hook = hook
}

// FailNext makes the next call that comes to point fail with err. Called n times it
// fails n calls. With the effect or without it, as the stage says: "Pivot.after" fails a
// pivot that has happened.
func (h *Host) FailNext(point string, err error) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	if h.faults.next == nil {
		h.faults.next = map[string][]error{}
	}
	h.faults.next[point] = append(h.faults.next[point], err)
}

// HangNext makes the next call that comes to point wait until its context ends. So hangs
// a call into a QEMU that does not answer: nothing ends it but the caller's patience.
func (h *Host) HangNext(point string) { h.FailNext(point, errHang) }

// Disconnect takes libvirt away: every Domains call is ErrUnavailable, guests and jobs go on.
func (h *Host) Disconnect() { h.setConnected(false, hypervisor.EventDisconnected) }

// Connect brings libvirt back.
func (h *Host) Connect() { h.setConnected(true, hypervisor.EventConnected) }

func (h *Host) setConnected(connected bool, kind hypervisor.EventKind) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	if h.faults.closed || h.faults.connected == connected {
		return
	}
	h.faults.connected = connected
	h.events.Put(hypervisor.Event{Kind: kind})
}

// Cut ends the process that uses this Host, as far as the host can tell: no call, of
// Images neither, has any effect from now on. The hands still work. A killed daemon can
// still have calls under way; those end without an effect too.
func (h *Host) Cut() {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.faults.cut = true
}

// SetFree makes Space report so many free bytes; negative: what the file system says.
func (h *Host) SetFree(bytes int64) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.faults.free = bytes
}

// HangDirectory makes each call on the files of dir fail, as a mount whose server is gone
// does on the real host, until answer.
func (h *Host) HangDirectory(dir string) (answer func()) {
	set := func(hung bool) {
		h.faultMu.Lock()
		defer h.faultMu.Unlock()
		if h.faults.hung == nil {
			h.faults.hung = map[string]bool{}
		}
		h.faults.hung[dir] = hung
	}
	set(true)
	return func() { set(false) }
}

// answers fails when one of the paths, or directories, lies in one that hangs.
func (h *Host) answers(paths ...string) error {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	for _, path := range paths {
		for dir, hung := range h.faults.hung {
			if hung && (path == dir || strings.HasPrefix(path, dir+"/")) {
				return &hypervisor.StorageError{Dir: dir}
			}
		}
	}
	return nil
}

// Never given to MergeReadyAfter makes merges wait for FinishMerge.
const Never = -1

// MergeReadyAfter makes merges started from now on become ready (or end, in the middle
// of a chain) after so many calls of MergeJob; 0, the default: at once. Polls instead of
// time, so that no test waits for a clock.
func (h *Host) MergeReadyAfter(polls int) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.faults.mergePolls = polls
}

func (h *Host) mergePolls() int {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	return h.faults.mergePolls
}

// OutrunMerges makes guests write faster than the merges started from now on copy. They
// become ready only when the guest is suspended, as was seen under heavy writes.
func (h *Host) OutrunMerges() {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.faults.outrun = true
}

func (h *Host) outrun() bool {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	return h.faults.outrun
}

func (h *Host) connected() bool {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	return h.faults.connected && !h.faults.cut
}

// fate decides whether a call passes a point. Plans come before the hook, in the order
// in which they were made.
func (h *Host) fate(ctx context.Context, point, subject string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.faultMu.Lock()
	cut, hook := h.faults.cut, h.faults.hook
	var planned error
	if next := h.faults.next[point]; len(next) > 0 {
		planned = next[0]
		h.faults.next[point] = next[1:]
	}
	// Free for the hook, which may set faults itself.
	h.faultMu.Unlock()
	switch {
	case cut:
		return hypervisor.ErrUnavailable
	case errors.Is(planned, errHang):
		<-ctx.Done()
		return ctx.Err()
	case planned != nil:
		return planned
	case hook == nil:
		return h.answers(subject)
	}
	if err := hook(ctx, point, subject); err != nil {
		return err
	}
	// The hook may have cut the process off: its own call has no effect either.
	if h.isCut() {
		return hypervisor.ErrUnavailable
	}
	return h.answers(subject)
}

func (h *Host) isCut() bool {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	return h.faults.cut
}

// reach is fate for the calls that go to libvirt. Calls of Images work without libvirt,
// so they pass fate only.
func (h *Host) reach(ctx context.Context, point, id string) error {
	if !h.connected() {
		return hypervisor.ErrUnavailable
	}
	err := h.fate(ctx, point, id)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	}
	// libvirtd may have gone while the hook held the call.
	if err == nil && !h.connected() {
		return hypervisor.ErrUnavailable
	}
	return err
}
