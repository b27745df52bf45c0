package operation

import (
	"slices"
	"testing"

	"vpssnapd/daemon/vps"
)

// TestTransitions tries every pair of statuses: what is not in the table is
// refused and changes nothing, and nothing leaves a final status.
func TestTransitions(t *testing.T) {
	all := []vps.Status{vps.StatusPending, vps.StatusRunning, vps.StatusSucceeded, vps.StatusFailed,
		vps.StatusCancelled, vps.StatusNeedsAttention, "", "unknown"}
	legal := 0
	for _, from := range all {
		for _, to := range all {
			op := vps.Operation{Status: from}
			err := move(&op, to)
			allowed := slices.Contains(transitions[from], to)
			switch {
			case allowed && (err != nil || op.Status != to):
				t.Errorf("%q to %q: %v", from, to, err)
			case !allowed && (err == nil || op.Status != from):
				t.Errorf("%q to %q was allowed", from, to)
			case allowed && from.Final():
				t.Errorf("%q is final and goes to %q", from, to)
			}
			if allowed {
				legal++
			}
		}
	}
	if legal != 9 {
		t.Errorf("%d legal pairs: the table has changed, and so must what is promised of it", legal)
	}
}
