package snapshot

import (
	"testing"
	"time"
)

func TestUndoable(t *testing.T) {
	for keep, want := range map[time.Duration]string{
		0:                  "cannot be undone",
		time.Millisecond:   "cannot be undone",
		time.Second:        "can be undone for 1 second",
		90 * time.Second:   "can be undone for 90 seconds",
		90 * time.Minute:   "can be undone for 90 minutes",
		time.Hour:          "can be undone for 1 hour",
		7 * 24 * time.Hour: "can be undone for 168 hours",
	} {
		if got := undoable(keep); got.String() != want {
			t.Errorf("%s: %q, want %q", keep, got, want)
		}
	}
}
