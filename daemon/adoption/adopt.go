package adoption

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// ErrChanged: it is no longer as it was found.
var ErrChanged = errors.New("it has changed since it was found")

// Adopt records a snapshot that a VPS has and no record knows, as far as what is
// there proves it; or takes leftover metadata away. It says what was done. The VPS's
// lock is held.
func (a *Adopter) Adopt(ctx context.Context, id string, actor vps.Actor) (string, error) {
	rec, err := a.store.Record(ctx, id)
	if err != nil {
		return "", err
	}
	if rec.Snapshot != nil || rec.Operation != nil {
		return "", ErrChanged
	}
	dom, err := a.inventory.Read(ctx, id)
	if err != nil {
		return "", err
	}
	if !Speaks(dom) {
		return "", ErrChanged
	}
	r, err := a.Reconstruct(ctx, dom)
	if err != nil {
		return "", err
	}
	switch {
	case r.Hopeless:
		return "", errors.New(r.Why)
	case !r.Exists && !r.Leftover:
		return "", errors.New(r.Why)
	case !r.Exists:
		return "the leftover metadata was removed", a.host.SetMetadata(ctx, id, "")
	}
	// The record first: a VPS with a record and old metadata is repaired later, by the
	// record.
	if err := a.store.Write(ctx, func(tx *store.Tx) error { return a.record(ctx, tx, dom, r, actor) }); err != nil {
		return "", err
	}
	if r.Snap.State != vps.SnapshotAvailable {
		return "the snapshot was recorded as " + string(r.Snap.State) + ": " + r.Why, nil
	}
	return "the record was made anew", a.integrity.RightMetadata(ctx, dom, r.Snap)
}

// record makes the record of what reconstruct found.
func (a *Adopter) record(
	ctx context.Context, tx *store.Tx, dom hypervisor.Domain, r Reconstruction, actor vps.Actor,
) error {
	// An old definition that came back must not revive a snapshot whose overlays were
	// merged into the base.
	if known, err := tx.Snapshot(ctx, r.Snap.ID); err == nil && (MergedAway(known) || known.VPS != dom.ID) {
		return fmt.Errorf("the snapshot %s is recorded already, as %s and of the VPS %s",
			known.ID, known.State, known.VPS)
	}
	if err := tx.SaveSnapshot(ctx, r.Snap); err != nil {
		return err
	}
	m := vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning, Actor: actor,
		Phrase: vps.PhraseSnapshotFound,
		Detail: "state " + string(r.Snap.State)}
	if r.Why != "" {
		m.Detail += ": " + r.Why
	}
	for _, disk := range r.Snap.Disks {
		m.Detail += "; " + disk.Target + " " + filepath.Base(disk.Overlay)
	}
	return tx.AddMessage(ctx, m)
}

// Found is a snapshot that was found on the host, or why it could not be recorded.
type Found struct {
	VPSName  string
	Snapshot vps.Snapshot
	Recorded bool
	// Why says why it is not available, or not recorded.
	Why string
}

// rebuilder is the author of a record that a rebuild has found.
var rebuilder = vps.Actor{Name: "vpssnapd rebuild", Way: vps.WayRecovery}

// Refill fills an empty record with every snapshot that the host tells of, all in one
// transaction, and returns them.
func (a *Adopter) Refill(ctx context.Context, domains []hypervisor.Domain) ([]Found, error) {
	all, records := a.findAll(ctx, domains)
	err := a.store.Write(ctx, func(tx *store.Tx) error {
		for _, dom := range domains {
			if err := tx.SawVPS(ctx, store.KnownVPS{ID: dom.ID, Name: dom.Name, LastSeen: tx.Now()}); err != nil {
				return err
			}
			if r, ok := records[dom.ID]; ok {
				if err := a.record(ctx, tx, dom, r, rebuilder); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot record what was found: %w", err)
	}
	for _, dom := range domains {
		// Only of those that are available: the metadata of the others is evidence.
		if r, ok := records[dom.ID]; ok && r.Snap.State == vps.SnapshotAvailable {
			if err := a.integrity.RightMetadata(ctx, dom, r.Snap); err != nil {
				a.logger.Warn("metadata not put right", vps.LogAttr(dom.ID, dom.Name), "error", err)
			}
		}
	}
	a.inventory.Saw(domains...)
	return all, nil
}

// findAll reads what every VPS tells, and what can be recorded of it, by id.
func (a *Adopter) findAll(ctx context.Context, domains []hypervisor.Domain) (
	all []Found, records map[string]Reconstruction,
) {
	records = map[string]Reconstruction{}
	// By snapshot: a definition that was copied with its metadata claims the files of
	// the original.
	claimed := map[string]string{}
	for _, dom := range domains {
		if !Speaks(dom) {
			continue
		}
		r, err := a.Reconstruct(ctx, dom)
		recorded := err == nil && r.Exists && !r.Hopeless
		if err != nil {
			r.Why = "its files cannot be looked at now: " + err.Error() + "; when they can be, vpssnap doctor --repair records it"
		}
		if other := claimed[r.Snap.ID]; recorded && other != "" {
			recorded, r.Why = false, "the VPS "+other+" uses its files too"
		}
		if recorded {
			records[dom.ID], claimed[r.Snap.ID] = r, dom.Name
		}
		all = append(all, Found{VPSName: dom.Name, Snapshot: r.Snap, Recorded: recorded, Why: r.Why})
	}
	return all, records
}
