package vps

import (
	"slices"
	"testing"
	"time"
)

// Operations are in the order in which they were begun, also when the clock goes back, stands
// still or was once far ahead.
func TestOperationsSortByTheirSequence(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ids := []string{"op-of another form"}
	for _, d := range []time.Duration{0, 0, 0, -time.Hour, time.Millisecond, 50 * 365 * 24 * time.Hour, 0, -time.Hour, time.Hour} {
		ids = append(ids, NewOperationID(now.Add(d), ids[len(ids)-1]))
	}
	if ids = ids[1:]; !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("they are not in order: %q", ids)
	}
}
