package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"vpssnapd/hypervisor/lab"
)

// plan is everything that chance decides about one round, drawn from the seed
// and the round's number alone. What really happens also depends on how fast the
// machine is; the same seed tries the same things.
type plan struct {
	turns []turn
	// strikes are the kills at failpoints, in turn.
	strikes []strike
	// sudden is a kill at no point in particular, at a moment after the requests.
	sudden *strike
	moment time.Duration
}

// turn is what one VPS is to do in a round.
type turn struct {
	victim int
	dice   int // chooses among the operations that its state allows
	// cancel: somebody wants the operation stopped, that long after it began.
	cancel      bool
	cancelAfter time.Duration
}

// target is what a strike kills.
type target string

const (
	daemonOnly     target = "daemon"
	libvirtdOnly   target = "libvirtd"
	qemuOnly       target = "QEMU"
	daemonLibvirtd target = "daemon and libvirtd"
	daemonQEMU     target = "daemon and QEMU"
	everything     target = "daemon, libvirtd and QEMU"
	// restart is what an upgrade does to libvirtd: it is asked to end, and started again.
	restart target = "libvirtd restart"
	// withinCall kills libvirtd at some moment of the call that the daemon is about to make.
	withinCall target = "libvirtd kill within a call"
)

func (t target) hits(one target) bool { return strings.Contains(string(t), string(one)) }

// strike is one kill: at the failpoint that at arms.
type strike struct {
	target target
	at     string
	// nth and call say when within a call libvirtd dies, as lab.StrikeLibvirtd wants it.
	nth  int
	call string
}

// maxStrikes bounds the kills at failpoints in one round, so that it ends.
const maxStrikes = 30

// draw makes the plan of a round.
func draw(seed uint64, round, victims int) plan {
	r := rand.New(rand.NewPCG(seed, uint64(round))) //nolint:gosec // a seed that can be repeated
	var p plan
	for _, i := range r.Perm(victims)[:1+r.IntN(4)] {
		p.turns = append(p.turns, turn{
			victim: i, dice: r.IntN(1 << 20),
			cancel: r.IntN(8) == 0, cancelAfter: time.Duration(r.IntN(150)) * time.Millisecond,
		})
	}
	// A take that is struck early is given up: the first strike lets some pass. The
	// others come quickly, so that one operation is struck again and again.
	visits := 20 + 10*len(p.turns)
	for range 2 + r.IntN(maxStrikes-1) {
		p.strikes = append(p.strikes, drawStrike(r, fmt.Sprintf("*:%d", 1+r.IntN(visits))))
		visits = 6
	}
	p.moment = time.Duration(r.IntN(400)) * time.Millisecond
	if r.IntN(3) == 0 {
		sudden := drawStrike(r, "")
		p.sudden = &sudden
	}
	return p
}

func drawStrike(r *rand.Rand, at string) strike {
	s := strike{target: drawTarget(r), at: at, call: lab.AtStatus, nth: 1 + r.IntN(5)}
	if r.IntN(2) == 0 {
		s.call, s.nth = lab.AtMonitor, 1+r.IntN(40)
	}
	return s
}

func drawTarget(r *rand.Rand) target {
	switch n := r.IntN(100); {
	case n < 56:
		return daemonOnly
	case n < 63:
		return restart
	case n < 70:
		return withinCall
	case n < 79:
		return libvirtdOnly
	case n < 88:
		return qemuOnly
	case n < 93:
		return daemonLibvirtd
	case n < 98:
		return daemonQEMU
	}
	return everything
}

// kinds of operations, as a panel, an order system or the clock begins them.
const (
	take        = "take"
	replace     = "replace"
	restore     = "restore"
	undoRestore = "undo_restore"
	remove      = "delete"
	// endOption takes the option away, and the snapshot with it.
	endOption = "option removed"
	// lapse lets the option's paid time and its grace be over.
	lapse = "option lapsed"
)

// kind picks an operation that the VPS's state allows.
func (t turn) kind(v *victim) string {
	if v.snapshot == nil {
		return take
	}
	kinds := []string{restore, restore, remove, remove, remove, replace, replace, endOption, lapse}
	if v.undo != nil {
		kinds = append(kinds, undoRestore, undoRestore, undoRestore)
	}
	return kinds[t.dice%len(kinds)]
}

// forTakes is how many strikes a round of nothing but takes gets at most: each may
// end them all, and without a snapshot there is nothing else to do.
const forTakes = 1

// allowed are the strikes that a round gets.
func allowed(strikes []strike, works []*work) []strike {
	if slices.ContainsFunc(works, func(w *work) bool { return w.kind != take }) {
		return strikes
	}
	return strikes[:min(len(strikes), forTakes)]
}

// ends reports whether a kind leaves no snapshot.
func ends(kind string) bool { return slices.Contains([]string{remove, endOption, lapse}, kind) }
