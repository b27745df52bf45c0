package storetest_test

import (
	"path/filepath"
	"testing"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/store/storetest"
	"vpssnapd/daemon/vps"
)

// What is measured is a history that the store can read.
func TestAddHistory(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "x.db")
	s, err := store.Open(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := storetest.AddHistory(ctx, path, []storetest.VPS{{ID: "id-1", Name: "web1"}, {ID: "id-2", Name: "web2"}}, 40); err != nil {
		t.Fatal(err)
	}
	operations, err := s.Operations(ctx, vps.OperationQuery{VPS: "id-1", Limit: 100})
	if err != nil || len(operations.Operations) != 40 ||
		operations.Operations[0].CreatedAt.Before(operations.Operations[1].CreatedAt) {
		t.Fatalf("%d operations (%v)", len(operations.Operations), err)
	}
	if snap, err := s.Snapshot(ctx, operations.Operations[0].SnapshotID); err != nil || snap.State != vps.SnapshotGone ||
		len(snap.Disks) != 1 {
		t.Errorf("the snapshot of an operation is %+v (%v)", snap, err)
	}
	messages, err := s.Messages(ctx, vps.MessageQuery{VPS: "id-2", Limit: 100})
	if err != nil || len(messages.Messages) != 80 {
		t.Errorf("%d messages (%v)", len(messages.Messages), err)
	}
	if changes, err := s.OptionHistory(ctx, vps.OptionQuery{VPS: "id-2", Limit: 100}); err != nil ||
		len(changes.Changes) != 1 {
		t.Errorf("%d changes (%v)", len(changes.Changes), err)
	}
}
