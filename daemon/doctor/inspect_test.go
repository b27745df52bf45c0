package doctor

import (
	"testing"

	"vpssnapd/daemon/vps"
)

// TestSnapshotComesWhileItIsCompared: a VPS without a snapshot got one, and its deletion
// began, between the reading of its record and that of its snapshots. The daemon died of it.
func TestSnapshotComesWhileItIsCompared(t *testing.T) {
	i := &inspection{id: "id"}
	i.checkUnfinished(vps.Snapshot{ID: "snap-1", VPS: "id", State: vps.SnapshotDeleting})
	if len(i.findings) != 1 || i.findings[0].Code != vps.CheckUnfinished || i.findings[0].Snapshot != "snap-1" {
		t.Errorf("found %+v", i.findings)
	}
}
