package operation

import (
	"fmt"
	"slices"

	"vpssnapd/daemon/vps"
)

// transitions is every change of status there is.
var transitions = map[vps.Status][]vps.Status{
	vps.StatusPending:        {vps.StatusRunning, vps.StatusCancelled, vps.StatusNeedsAttention},
	vps.StatusRunning:        {vps.StatusSucceeded, vps.StatusFailed, vps.StatusCancelled, vps.StatusNeedsAttention},
	vps.StatusNeedsAttention: {vps.StatusRunning, vps.StatusFailed},
}

// move is the only place where an operation's status changes.
func move(op *vps.Operation, to vps.Status) error {
	if !slices.Contains(transitions[op.Status], to) {
		return fmt.Errorf("operation %s cannot go from %s to %s", op.ID, op.Status, to)
	}
	op.Status = to
	return nil
}
