package daemon_test

import (
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"

	"vpssnapd/daemon/vps"
)

// This is what a VPS is to those who use it, one act after the other. Histories
// of many at once, with kills, are checked against it.

// cells are the places that the guest writes to, on two disks.
const cells = 4

type content [cells]byte

// customerView is a VPS as the model knows it. It is comparable.
type customerView struct {
	disk, snapshot, undo content
	snapshotID           string // "" for none
	canUndo              bool
	option               optionPhase
	active               string // the operation in progress, "" for none
	kind                 vps.Kind
	turned               bool // the operation has done what it is for
}

// optionPhase is the option as far as it matters here.
type optionPhase int

const (
	noOption optionPhase = iota
	optionActive
	optionKept // cancelled; the snapshot is kept for a while
	optionOver // cancelled at once; released as soon as there is no snapshot
)

// step is one act, and how it ended. Requests begin an operation; "turned" is the
// moment at which the operation has its effect on the disks, and "ended" the one
// at which the next may begin.
type step struct {
	what      string   // write, read, turned, ended, order, cancel-option; else a kind
	operation string   // of a request that was accepted, of turned and of ended
	code      vps.Code // of a request that was refused
	cell      int
	value     byte
	snapshot  string // that is taken, or confirmed
	replace   bool
	expiry    bool // not asked for by anybody
	succeeded bool
	atOnce    bool
	released  bool // the cancelled option was, at once
}

func (s step) String() string {
	switch s.what {
	case "write", "read":
		return fmt.Sprintf("%s cell %d: %d", s.what, s.cell, s.value)
	case "turned", "ended":
		return fmt.Sprintf("%s %s, succeeded: %v", s.operation, s.what, s.succeeded)
	}
	text := s.what
	if s.replace {
		text += " (replace)"
	}
	if s.atOnce {
		text += " at once"
	}
	if s.expiry {
		text += " by expiry"
	}
	if s.released {
		text += ", released"
	}
	if s.snapshot != "" {
		text += " " + s.snapshot
	}
	if s.code != "" {
		return text + ": refused with " + string(s.code)
	}
	return text + ": " + s.operation
}

var model = porcupine.Model{
	Init: func() any { return customerView{option: optionActive} },
	Step: func(state, input, _ any) (bool, any) {
		v, s := state.(customerView), input.(step)
		next, ok := v.after(s)
		return ok, next
	},
	DescribeOperation: func(input, _ any) string { return input.(step).String() },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

// after returns the VPS after a step, and false when the step is not possible now.
func (v customerView) after(s step) (customerView, bool) {
	switch s.what {
	case "write":
		v.disk[s.cell] = s.value
		return v, true
	case "read":
		return v, v.disk[s.cell] == s.value
	case "turned":
		return v.turn(s)
	case "ended":
		return v.end(s)
	case "order":
		v.option = optionActive
		return v, true
	case "cancel-option":
		return v.cancelOption(s)
	}
	if s.code != "" {
		return v, v.mayRefuse(s)
	}
	return v.begin(s)
}

// mayRefuse reports whether a request may be refused with that code.
func (v customerView) mayRefuse(s step) bool {
	switch s.code {
	case vps.CodeOperationInProgress:
		return v.active != ""
	case vps.CodeOptionRequired:
		return s.what == string(vps.KindTake) && v.option != optionActive
	case vps.CodeSnapshotExists:
		return s.what == string(vps.KindTake) && !s.replace && v.snapshotID != ""
	case vps.CodeConfirmationRequired:
		return s.what == string(vps.KindRestore) && v.snapshotID != "" && v.snapshotID != s.snapshot
	case vps.CodeNotFound:
		if s.what == string(vps.KindUndoRestore) {
			return !v.canUndo || v.active != "" // which may have given it up
		}
		return s.what != string(vps.KindTake) && v.snapshotID == "" && v.kind != vps.KindTake
	}
	return false
}

func (v customerView) begin(s step) (customerView, bool) {
	possible := map[string]bool{
		string(vps.KindTake):        v.option == optionActive && (s.replace || v.snapshotID == ""),
		string(vps.KindRestore):     v.snapshotID != "" && v.snapshotID == s.snapshot,
		string(vps.KindUndoRestore): v.snapshotID != "" && v.canUndo,
		string(vps.KindDelete):      v.snapshotID != "" && (!s.expiry || v.option == optionOver),
	}[s.what]
	if v.active != "" || !possible {
		return v, false
	}
	v.active, v.kind, v.turned = s.operation, vps.Kind(s.what), false
	return v, true
}

func (v customerView) turn(s step) (customerView, bool) {
	if v.active != s.operation || v.turned {
		return v, false
	}
	v.turned = true
	switch v.kind {
	case vps.KindTake:
		v.snapshot, v.snapshotID, v.canUndo, v.undo = v.disk, s.snapshot, false, content{}
	case vps.KindRestore:
		v.undo, v.disk, v.canUndo = v.disk, v.snapshot, true
	case vps.KindUndoRestore:
		v.undo, v.disk = v.disk, v.undo
	case vps.KindDelete:
		v.snapshot, v.undo, v.snapshotID, v.canUndo = content{}, content{}, "", false
	}
	return v, true
}

func (v customerView) end(s step) (customerView, bool) {
	if v.active == s.operation && v.kind == vps.KindDelete && s.succeeded {
		v, _ = v.turn(s) // in the same transaction
	}
	if v.active != s.operation || v.turned != s.succeeded {
		return v, false
	}
	v.active, v.kind, v.turned = "", "", false
	return v, true
}

// cancelOption: an option that is over may be released at any time when there is
// no snapshot.
func (v customerView) cancelOption(s step) (customerView, bool) {
	switch {
	case s.code == vps.CodeNotFound:
		possible := v.option == noOption || v.option == optionOver
		v.option = noOption
		return v, possible
	case s.code != "":
		return v, false
	case s.released: // by this call, or by another that it overlapped
		possible := v.option == noOption || v.snapshotID == "" && v.active == ""
		v.option = noOption
		return v, possible
	case v.option == noOption:
		return v, false
	}
	if v.option != optionOver {
		v.option = optionKept
	}
	if s.atOnce {
		v.option = optionOver
	}
	return v, true
}

// definite are the refusals that a request may meet here; any other says that it
// is not known what came of it.
var definite = []vps.Code{
	vps.CodeOperationInProgress,
	vps.CodeOptionRequired,
	vps.CodeSnapshotExists,
	vps.CodeConfirmationRequired,
	vps.CodeNotFound,
}

func isDefinite(err error) bool { return slices.Contains(definite, vps.CodeOf(err)) }
