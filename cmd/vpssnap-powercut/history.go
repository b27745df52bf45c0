package main

import (
	"fmt"
	"slices"

	"vpssnapd/api"
)

const (
	blockSize = 64 << 10
	blocks    = 256 // of each disk
	grain     = 4 << 10
)

// disks says what each block of each disk may hold, by target. More than one
// value means that a write was under way.
type disks map[string][][]byte

// newDisks are empty ones: every block holds zeroes.
func newDisks(targets []string) disks {
	d := disks{}
	for _, t := range targets {
		d[t] = make([][]byte, blocks)
		for i := range d[t] {
			d[t][i] = []byte{0}
		}
	}
	return d
}

// clone is a deep copy, to be gone back to.
func (d disks) clone() disks {
	c := disks{}
	for t, all := range d {
		for _, values := range all {
			c[t] = append(c[t], slices.Clone(values))
		}
	}
	return c
}

// compare holds the bytes of one disk against d. In grains of 4 KiB: a write of a block
// may be torn between them, but never within.
func (d disks) compare(target string, data []byte) error {
	for at := 0; at < len(data); at += grain {
		part, may := data[at:at+grain], d[target][at/blockSize]
		if slices.ContainsFunc(part, func(b byte) bool { return b != part[0] }) || !slices.Contains(may, part[0]) {
			return fmt.Errorf("%s holds %#x at %d KiB, allowed is %#x", target, part[0], at>>10, may)
		}
	}
	return nil
}

// act is one thing that was done to a VPS. Times are lengths of the log.
type act struct {
	kind  string // write, option, or an operation's
	vps   string
	began int64
	// accepted is when an operation had been accepted, ended when its success,
	// or that of a write, had been seen.
	accepted, ended int64
	op              string // the operation's id
	steps           []stepSeen

	target string // of a write
	block  int
	value  byte
	during bool // the write fell into a take
}

type stepSeen struct {
	at   int64
	name string
}

// step is the step last seen before the log had a length.
func (a *act) step(at int64) string {
	name := "accepted"
	for _, s := range a.steps {
		if s.at <= at {
			name = s.name
		}
	}
	return name
}

// victim is one VPS and all that was done to it.
type victim struct {
	name    string
	targets []string
	formats []string
	state   string // as virsh says it
	acts    []*act
}

// expected is what must be true of a VPS after a cut.
type expected struct {
	current  disks
	snapshot disks // nil: there is none
	option   bool  // its order has been acknowledged
}

// expect follows the history up to a cut. status tells how each operation stands
// after the recovery; "" is one that is not on record.
func (v *victim) expect(cut int64, status func(op string) api.OperationStatus) (expected, error) {
	e := expected{current: newDisks(v.targets)}
	for _, a := range v.acts {
		// It had not begun.
		if a.began >= cut {
			break
		}
		switch a.kind {
		case "option":
			e.option = a.ended <= cut
		case "write":
			e.write(a, cut)
		default:
			if err := e.operate(a, cut, status(a.op)); err != nil {
				return e, err
			}
		}
	}
	return e, nil
}

// A write that was not acknowledged may be there or not; one within a take may be in the
// snapshot too.
func (e *expected) write(a *act, cut int64) {
	cell := &e.current[a.target][a.block]
	if a.during && e.snapshot != nil {
		e.snapshot[a.target][a.block] = append(e.snapshot[a.target][a.block], a.value)
	}
	if a.ended <= cut {
		*cell = []byte{a.value}
	} else {
		*cell = append(slices.Clone(*cell), a.value)
	}
}

// What was acknowledged holds: an accepted operation is on record, a success stays one.
func (e *expected) operate(a *act, cut int64, status api.OperationStatus) error {
	switch {
	case status == "" && a.accepted <= cut:
		return fmt.Errorf("%s was accepted and is not on record", a.kind)
	case status != api.OperationStatusSucceeded && a.ended <= cut:
		return fmt.Errorf("%s had succeeded and now is %q", a.kind, status)
	case status != api.OperationStatusSucceeded:
		return nil
	}
	switch a.kind {
	case "take":
		e.snapshot = e.current.clone()
	case "restore":
		e.current = e.snapshot.clone()
	case "delete":
		e.snapshot = nil
	}
	return nil
}

// cutShort is the operation that had begun and not ended; nil when there is none.
func cutShort(v *victim, cut int64) *act {
	for _, a := range v.acts {
		if a.op != "" && a.began < cut && cut <= a.ended {
			return a
		}
	}
	return nil
}

// label says what was being done at a cut: the operation and its step.
func label(victims []*victim, cut int64) string {
	for _, v := range victims {
		if a := cutShort(v, cut); a != nil {
			return fmt.Sprintf("%s of %s at %s", a.kind, v.name, a.step(cut))
		}
	}
	return "between operations"
}
