package notify

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
)

// reluctant is a target that wants to be left alone for ten minutes, and then is gone.
type reluctant struct{ tries int }

func (r *reluctant) Send(context.Context, vps.Delivery) error {
	if r.tries++; r.tries > 1 {
		return &vps.DeliveryError{Err: errors.New("gone"), Final: true}
	}
	return &vps.DeliveryError{Err: errors.New("busy"), After: 10 * time.Minute}
}

// TestTargetsAreForgotten (FAULTS row 48): a target that asked to be left alone is left
// alone, and forgotten when that time is over, also when nothing is sent to it again.
func TestTargetsAreForgotten(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	group := work.NewGroup()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	o := NewOutbox(db, group, map[vps.DeliveryKind]Sender{vps.DeliveryWebhook: &reluctant{}},
		func(vps.Delivery) {}, slog.New(slog.DiscardHandler))
	err = db.Write(t.Context(), func(tx *store.Tx) error {
		return tx.AddDelivery(t.Context(), vps.Delivery{Kind: vps.DeliveryWebhook, Target: "w", Payload: []byte("{}"), CreatedAt: now})
	})
	if err != nil {
		t.Fatal(err)
	}
	o.deliverTo(t.Context(), vps.DeliveryWebhook, "w")
	if !o.isHeld(vps.DeliveryWebhook, "w") {
		t.Fatal("the target is not left alone")
	}
	o.forgetHeld()
	if !o.isHeld(vps.DeliveryWebhook, "w") {
		t.Error("the target was forgotten too soon")
	}
	mu.Lock()
	now = now.Add(11 * time.Minute)
	mu.Unlock()
	o.Look(t.Context())
	group.Wait()
	o.held.Range(func(key, _ any) bool {
		t.Errorf("%v is still kept", key)
		return true
	})
}
