// Package snapshot takes, restores, replaces and deletes the one snapshot of a VPS.
//
// Read take.go for how an operation is built: a request that checks and commits, and a
// list of steps with their undo.
package snapshot

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Policy bounds what follows a restore.
type Policy struct {
	// UndoKeep is how long a restore can be undone.
	UndoKeep time.Duration
	// AgentWait is how long a restore waits for the guest to answer again.
	AgentWait time.Duration
}

// Readers are those who read frozen disks, as downloads do.
type Readers interface {
	// CutOff ends them for one VPS, before a byte changes of what they read. It returns
	// how many were told to customers as downloads.
	CutOff(vpsID, why string) (downloads int)
}

// Snapshots are those of one host.
type Snapshots struct {
	host        hypervisor.Host
	inventory   *inventory.Inventory
	store       *store.Store
	operations  *operation.Operations
	images      *image.Images
	space       *space.Space
	guests      *guest.Guests
	integrity   *integrity.Integrity
	merger      *merge.Merger
	readers     Readers
	stateDir    string // for the file by which hook and merge agree
	policy      func() Policy
	logger      *slog.Logger
	onFrozen    func(time.Duration)
	onDiscarded func()
}

// Parts are what Snapshots is made of.
type Parts struct {
	Host       hypervisor.Host
	Inventory  *inventory.Inventory
	Store      *store.Store
	Operations *operation.Operations
	Images     *image.Images
	Space      *space.Space
	Guests     *guest.Guests
	Integrity  *integrity.Integrity
	Merger     *merge.Merger
	Readers    Readers
	StateDir   string
	Policy     func() Policy
	Logger     *slog.Logger
	// OnDiscarded is called when the record of a VPS that is gone was given up.
	OnDiscarded func()
	// OnFrozen is told how long a guest was frozen for a take that has succeeded.
	OnFrozen func(time.Duration)
}

// New makes the keeper of a host's snapshots, and registers its kinds of operations.
func New(p Parts) *Snapshots {
	s := &Snapshots{
		host:        p.Host,
		inventory:   p.Inventory,
		store:       p.Store,
		operations:  p.Operations,
		images:      p.Images,
		space:       p.Space,
		guests:      p.Guests,
		integrity:   p.Integrity,
		merger:      p.Merger,
		readers:     p.Readers,
		stateDir:    p.StateDir,
		policy:      p.Policy,
		logger:      p.Logger,
		onFrozen:    p.OnFrozen,
		onDiscarded: p.OnDiscarded,
	}
	s.operations.Add(
		operation.Kind{
			Name:        vps.KindTake,
			Verb:        "take the snapshot",
			Plan:        taker{s}.takePlan,
			ChangesBase: true,
			DoneMail:    mail.SnapshotTaken,
		},
		operation.Kind{
			Name:     vps.KindRestore,
			Verb:     "restore the snapshot",
			Plan:     restorer{s}.restorePlan,
			DoneMail: mail.SnapshotRestored,
		},
		operation.Kind{
			Name:     vps.KindUndoRestore,
			Verb:     "undo the restore",
			Plan:     restorer{s}.undoPlan,
			DoneMail: mail.SnapshotRestored,
		},
		operation.Kind{
			Name:        vps.KindDelete,
			Verb:        "delete the snapshot",
			Plan:        deleter{s}.deletePlan,
			ChangesBase: true,
			StopsGuest:  true,
			DoneMail:    mail.SnapshotDeleted,
		},
	)
	s.operations.OnEnded(s.ended)
	return s
}

// ended follows a run up.
func (s *Snapshots) ended(op vps.Operation) {
	if op.Kind != vps.KindTake || op.Status != vps.StatusSucceeded {
		return
	}
	if snap, err := s.store.Snapshot(context.Background(), op.SnapshotID); err == nil &&
		snap.Consistency == vps.ConsistencyFilesystem {
		s.onFrozen(time.Duration(snap.FreezeMS) * time.Millisecond)
	}
}

// Measured adds to a snapshot what was written since. It costs one stat per disk.
func (s *Snapshots) Measured(ctx context.Context, snap vps.Snapshot) vps.Snapshot {
	snap.DeltaBytes = s.deltaBytes(ctx, snap)
	return snap
}

// deltaBytes is what the overlays take on disk, in bytes. A file that cannot be read counts
// as nothing: the figure is for people, and doctor names the file.
func (s *Snapshots) deltaBytes(ctx context.Context, snap vps.Snapshot) int64 {
	var sum int64
	for _, disk := range snap.Disks {
		if file, err := s.host.Stat(ctx, disk.Overlay); err == nil && !disk.Pivoted {
			sum += file.Allocated
		}
	}
	return sum
}

// Snapshot returns the snapshot of a VPS. Codes: not_found.
func (s *Snapshots) Snapshot(ctx context.Context, ref string) (vps.Snapshot, error) {
	id, err := s.inventory.IDOf(ctx, ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	snap, err := s.store.CurrentSnapshot(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		if damaged, err := s.store.DamagedState(ctx, id); err != nil || damaged {
			return snap, cmp.Or(err, error(fault.RecordDamaged(s.inventory.Name(id))))
		}
		return snap, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot")
	}
	return s.Measured(ctx, snap), err
}

// DescribeSnapshot changes the description. Codes: invalid, not_found, precondition_failed.
func (s *Snapshots) DescribeSnapshot(ctx context.Context, ref, description string, _ vps.Actor) (vps.Snapshot, error) {
	if err := vps.CheckDescription(description); err != nil {
		return vps.Snapshot{}, err
	}
	id, err := s.inventory.IDNow(ctx, ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	// What it measures is asked for before: no image is looked at while the database is held.
	before, err := s.Snapshot(ctx, id)
	if err != nil {
		return before, err
	}
	var snap vps.Snapshot
	err = s.store.Write(ctx, func(tx *store.Tx) error {
		have, err := tx.CurrentSnapshot(ctx, id)
		if err != nil {
			return err
		}
		// If-Match is checked within the transaction, against what is changed.
		if err := vps.CallOf(ctx).CheckMatch(have.Version()); err != nil {
			return err
		}
		if err := tx.DescribeSnapshot(ctx, id, description, s.store.Now()); err != nil {
			return err
		}
		if snap, err = tx.CurrentSnapshot(ctx, id); err != nil {
			return err
		}
		if snap.ID == before.ID {
			snap.DeltaBytes = before.DeltaBytes
		}
		return tx.KeepAnswer(ctx, snap)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Snapshot{}, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot")
	}
	return snap, err
}

// cutReaders cuts off everybody who reads the snapshot of a VPS, before the first
// byte of it changes, and tells the customer.
func (s *Snapshots) cutReaders(ctx context.Context, r *operation.Run) error {
	n := s.readers.CutOff(r.Op.VPS, "the snapshot is deleted or replaced")
	if n == 0 {
		return nil
	}
	r.AddResult(fmt.Sprintf("downloads that were cut off: %d", n))
	return r.Record(ctx, func(tx *store.Tx) error {
		return tx.AddMessage(
			ctx,
			vps.Message{
				VPS:       r.Op.VPS,
				VPSName:   r.Op.VPSName,
				Kind:      vps.MessageDownload,
				Actor:     r.Op.Actor,
				Operation: r.Op.ID,
				Phrase:    vps.PhraseDownloadsEnded,
				Params:    map[string]string{"count": fmt.Sprint(n)},
			},
		)
	})
}
