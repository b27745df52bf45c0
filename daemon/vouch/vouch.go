// Package vouch makes a snapshot usable again whose files are no longer those that were
// recorded, though they hold the same data: after storage was moved by copying, or a base
// was touched. No program can prove that; an operator vouches for it, once all that can be
// proven has been.
package vouch

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Vouchers takes the word of operators.
type Vouchers struct {
	host       hypervisor.Host
	store      *store.Store
	operations *operation.Operations
	images     *image.Images
	integrity  *integrity.Integrity
	logger     *slog.Logger
}

// New makes the one who takes operators' word for the snapshots of a host.
func New(
	host hypervisor.Host, db *store.Store, operations *operation.Operations, images *image.Images,
	in *integrity.Integrity, logger *slog.Logger,
) *Vouchers {
	return &Vouchers{host: host, store: db, operations: operations, images: images, integrity: in, logger: logger}
}

// Vouch takes over into the record what differs from it about the files of a snapshot, which
// is available then. confirm is the id of the snapshot: without it nothing is done, and the
// error tells what differs, what is proven and what is not. Where nothing differs, nothing is
// done either.
//
// Codes: not_found, confirmation_required, operation_in_progress, vps_changed,
// hypervisor_unavailable.
func (v *Vouchers) Vouch(ctx context.Context, ref, confirm string, actor vps.Actor) (vps.Snapshot, error) {
	ctx = failpoint.Within(ctx, "daemon", "vouch")
	c, err := v.operations.Begin(ctx, ref, actor)
	if err != nil {
		return vps.Snapshot{}, err
	}
	defer c.Release()
	if err := verdict.Refused(verdict.Vouch(c.Domain, c.Record), vps.Words{}); err != nil {
		return vps.Snapshot{}, err
	}
	snap := *c.Record.Snapshot
	found, err := v.examine(ctx, c.Domain, snap)
	if err == nil && found.against == "" && found.differs != nil {
		err = v.compareSums(ctx, found)
	}
	switch {
	case err != nil:
		return snap, fault.Explain(cannot(c.Domain), err)
	case found.against != "":
		return snap, vps.Errorf(vps.CodeVPSChanged, "%s: %s", cannot(c.Domain), found.against).
			WithRemedy("nothing was changed; put that right first (vpssnap doctor)")
	case found.differs == nil:
		return found.snap, v.store.KeepAnswer(ctx, found.snap)
	case confirm != snap.ID:
		return snap, vps.Errorf(vps.CodeConfirmationRequired, "%s", found).
			WithRemedy("send {\"confirm\": \"%s\"} to vouch for it", snap.ID)
	}
	return found.snap, v.record(ctx, c.Domain, found, actor)
}

func cannot(dom hypervisor.Domain) string { return "cannot vouch for the snapshot of " + dom.Name }

// May reports whether an operator could vouch for the files of a snapshot, by all but its
// sums, which take long.
func (v *Vouchers) May(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) bool {
	found, err := v.examine(ctx, dom, snap)
	return err == nil && found.against == "" && found.differs != nil
}

// record makes the files as they are those of the record. The copy in the definition comes
// after it: cut off between them, doctor writes that.
func (v *Vouchers) record(ctx context.Context, dom hypervisor.Domain, found *findings, actor vps.Actor) error {
	snap := &found.snap
	snap.State, snap.Heals, snap.Reason, snap.UpdatedAt = vps.SnapshotAvailable, false, "", v.store.Now()
	err := v.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveSnapshot(ctx, *snap); err != nil {
			return err
		}
		err := tx.AddMessage(ctx, vps.Message{
			VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning, Actor: actor,
			Phrase: vps.PhraseSnapshotVouched, Params: map[string]string{"who": actor.Name}, Detail: found.String(),
		})
		if err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, *snap)
	})
	if err != nil {
		return err
	}
	v.logger.Warn("an operator vouched for a snapshot", vps.LogAttr(dom.ID, dom.Name), "snapshot", snap.ID,
		"by", actor.Name, "found", found.String())
	text, err := metadata.Encode(*snap, metadata.Restoring{})
	if err == nil {
		err = v.host.SetMetadata(ctx, dom.ID, text)
	}
	if err != nil {
		v.logger.Warn("what was vouched for is not yet in the definition", vps.LogAttr(dom.ID, dom.Name), "error", err)
	}
	return nil
}

// findings are what an operator has to know before he vouches for a snapshot.
type findings struct {
	// snap is the snapshot with its files as they are.
	snap vps.Snapshot
	// differs, proven and unproven are told to the operator.
	differs, proven, unproven []string
	// against is why nobody can vouch for it; "" when somebody can.
	against string
}

// String is what an operator is shown.
func (f *findings) String() string {
	var parts []string
	for _, part := range []struct {
		title string
		of    []string
	}{{"differs from the record", f.differs}, {"proven", f.proven}, {"not proven", f.unproven}} {
		if part.of != nil {
			parts = append(parts, part.title+": "+strings.Join(part.of, "; "))
		}
	}
	return strings.Join(parts, ". ")
}

func (f *findings) differ(format string, args ...any) {
	f.differs = append(f.differs, fmt.Sprintf(format, args...))
}

func (f *findings) prove(format string, args ...any) {
	f.proven = append(f.proven, fmt.Sprintf(format, args...))
}

func (f *findings) doubt(format string, args ...any) {
	f.unproven = append(f.unproven, fmt.Sprintf(format, args...))
}

// refuse keeps the first reason, which is the one that an operator can look at.
func (f *findings) refuse(format string, args ...any) {
	if f.against == "" {
		f.against = fmt.Sprintf(format, args...)
	}
}
