package snapshot

import (
	"context"
	"errors"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Nothing is stopped before everything that can be tried has been tried (FAULTS.md row 34).

// What could not be done, and why.
const (
	cannotTake    = "cannot take a snapshot of %s: %s"
	cannotRestore = "cannot restore %s: %s"
)

// tryRestore tries, while the VPS runs, what the next steps will do, and then records that
// the files are about to change places.
func (s restorer) tryRestore(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if dom.MigratedAway {
		return fault.Migrated(dom)
	}
	notes.Found, notes.FoundReason = dom.State, dom.PauseReason
	if err := s.checkRestorable(ctx, dom, snap); err != nil {
		return err
	}
	if err := s.host.SaveDefinition(ctx, dom.ID); err != nil {
		return err
	}
	if start, _ := notes.powerAfter(); start {
		if err := s.tryStart(ctx, dom, snap); err != nil {
			return err
		}
	}
	snap.State, snap.UpdatedAt = vps.SnapshotRestoring, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return r.SetPlan(notes)
}

// tryStart makes sure that the VPS will run again, as far as can be told.
func (s restorer) tryStart(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	err := s.host.CheckStart(ctx, dom.ID)
	if errors.Is(err, hypervisor.ErrNoStart) {
		return vps.Errorf(vps.CodeVPSChanged, cannotRestore, dom.Name,
			vps.Say("it could not be started again afterwards")).
			WithRemedy("nothing was stopped; put back what is missing, or take it out of the definition "+
				"(virsh edit %s)", dom.Name).
			Because(err)
	}
	if err != nil {
		return err
	}
	return s.space.CheckRoom(ctx, "cannot restore "+dom.Name, snap)
}
