// Package verdict tells which actions are open to a VPS now, from the record and its
// definition alone, and why the others are not.
package verdict

import (
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Of says which actions are open to a VPS now. The panel shows them, and
// the calls obey them.
func Of(dom hypervisor.Domain, rec store.Record, now time.Time) vps.Actions {
	// Nothing is known of it, so nothing is allowed; the next look may tell otherwise.
	if dom.State == hypervisor.Unknown {
		silent := refuse(vps.CodeHypervisorUnavailable, "%s does not answer its host", dom.Name)
		return vps.Actions{Take: silent, Restore: silent, UndoRestore: silent, Delete: silent}
	}
	// Its files are on shared storage and belong to the other host now.
	if dom.MigratedAway {
		away := refuse(vps.CodeVPSChanged, "%s was migrated to another host", dom.Name)
		return vps.Actions{Take: away, Restore: away, UndoRestore: away, Delete: away}
	}
	if rec.StateDamaged {
		damaged := refuse(vps.CodeVPSChanged, "the record of %s is damaged, so nothing is done to it", dom.Name)
		return vps.Actions{Take: damaged, Restore: damaged, UndoRestore: damaged, Delete: damaged}
	}
	return vps.Actions{
		Take:        Take(dom, rec, false),
		Restore:     Restore(dom, rec),
		UndoRestore: Undo(dom, rec, now),
		Delete:      Delete(dom, rec),
	}
}

// refuse keeps the sentence as words, not as text: it is shown in the language of its reader.
func refuse(code vps.Code, format string, args ...any) vps.Verdict {
	return vps.Verdict{Code: code, Reason: vps.Say(format, args...)}
}

// Take reports from the record alone whether a snapshot may be taken now. It asks in
// the order in which a customer would mend things: the option first.
func Take(dom hypervisor.Domain, rec store.Record, replace bool) vps.Verdict {
	switch {
	case rec.OptionDamaged:
		return refuse(vps.CodeOptionRequired, "the record of the snapshot option of %s is damaged", dom.Name)
	case rec.Option == nil || rec.Option.State != vps.OptionActive:
		return refuse(vps.CodeOptionRequired, "%s has no active snapshot option", dom.Name)
	case rec.Operation != nil:
		return busy(dom, rec)
	case rec.Snapshot != nil && !replace:
		return refuse(
			vps.CodeSnapshotExists, "%s has a snapshot already, from %s", dom.Name,
			rec.Snapshot.CreatedAt.Format(time.RFC3339),
		)
	case rec.Snapshot != nil && rec.Snapshot.State != vps.SnapshotAvailable:
		return refuse(vps.CodeSnapshotExists, "the snapshot of %s is %s and cannot be replaced",
			dom.Name, rec.Snapshot.State)
	}
	if why := image.Unsupported(dom); why != nil {
		return vps.Verdict{Code: vps.CodeUnsupportedDisk, Reason: *why}
	}
	return vps.Verdict{Allowed: true}
}

// Restore reports from the record alone whether the snapshot may be restored now.
func Restore(dom hypervisor.Domain, rec store.Record) vps.Verdict {
	switch {
	case rec.Snapshot == nil:
		return refuse(vps.CodeNotFound, "%s has no snapshot", dom.Name)
	case rec.Operation != nil:
		return busy(dom, rec)
	case rec.Snapshot.State == vps.SnapshotBroken:
		return refuse(vps.CodeVPSChanged, "the snapshot of %s is broken: %s", dom.Name, rec.Snapshot.Reason)
	case rec.Snapshot.State != vps.SnapshotAvailable:
		return refuse(vps.CodeVPSChanged, "the snapshot of %s is %s and cannot be restored",
			dom.Name, rec.Snapshot.State)
	case dom.ForeignSnapshots > 0:
		return foreign(dom)
	}
	return vps.Verdict{
		Allowed: true,
		Reason:  vps.Say("everything written since %s is taken back", rec.Snapshot.CreatedAt.Format(time.RFC3339)),
	}
}

// Undo reports from the record alone whether the last restore may be undone at now.
func Undo(dom hypervisor.Domain, rec store.Record, now time.Time) vps.Verdict {
	switch {
	case rec.Snapshot == nil || rec.Snapshot.UndoUntil == nil || !UndoIsKept(*rec.Snapshot):
		return refuse(vps.CodeNotFound, "%s has no restore that can be undone", dom.Name)
	case rec.Operation != nil:
		return busy(dom, rec)
	case rec.Snapshot.State != vps.SnapshotAvailable:
		return refuse(vps.CodeVPSChanged, "the snapshot of %s is %s", dom.Name, rec.Snapshot.State)
	case !now.Before(*rec.Snapshot.UndoUntil):
		return refuse(
			vps.CodeNotFound, "the time to undo the restore of %s ended at %s", dom.Name,
			rec.Snapshot.UndoUntil.Format(time.RFC3339),
		)
	}
	return vps.Verdict{Allowed: true, Reason: vps.Say("possible until %s", rec.Snapshot.UndoUntil.Format(time.RFC3339))}
}

// Delete reports from the record alone whether the snapshot may be deleted now.
func Delete(dom hypervisor.Domain, rec store.Record) vps.Verdict {
	switch {
	case rec.Snapshot == nil:
		return refuse(vps.CodeNotFound, "%s has no snapshot", dom.Name)
	case rec.Operation != nil:
		return busy(dom, rec)
	case rec.Snapshot.State == vps.SnapshotBroken && !givenUp(*rec.Snapshot):
		return refuse(
			vps.CodeVPSChanged,
			"the snapshot of %[1]s is broken: %[2]s; an operator of the host can do away with it once %[1]s has other disks",
			dom.Name, rec.Snapshot.Reason,
		)
	// One that is half deleted may be asked for again, which finishes the deletion.
	case rec.Snapshot.State != vps.SnapshotAvailable && rec.Snapshot.State != vps.SnapshotDeleting &&
		!givenUp(*rec.Snapshot):
		return refuse(vps.CodeVPSChanged, "the snapshot of %s is %s: %s", dom.Name,
			rec.Snapshot.State, rec.Snapshot.Reason)
	// A merge changes the disks under the saved memory, and the guest would wake up on
	// others.
	case dom.ManagedSave:
		return refuse(
			vps.CodeVPSChanged,
			"the memory of %s is saved to disk (managed save) and belongs to the disks as they are; start it or drop the saved memory first (virsh managedsave-remove)",
			dom.Name,
		)
	case dom.ForeignSnapshots > 0:
		return foreign(dom)
	case !dom.Persistent:
		return refuse(
			vps.CodeVPSChanged,
			"%s is not persistent any more: there is no definition that could name its merged disks; define it again (virsh define)",
			dom.Name,
		)
	case UndoIsKept(*rec.Snapshot):
		return vps.Verdict{Allowed: true, Reason: vps.Say("this ends the possibility to undo the last restore")}
	}
	return vps.Verdict{Allowed: true}
}

// Vouch reports from the record alone whether an operator may vouch for the snapshot now.
func Vouch(dom hypervisor.Domain, rec store.Record) vps.Verdict {
	switch {
	case rec.Snapshot == nil:
		return refuse(vps.CodeNotFound, "%s has no snapshot", dom.Name)
	case rec.Operation != nil:
		return busy(dom, rec)
	case rec.Snapshot.State != vps.SnapshotAvailable && rec.Snapshot.State != vps.SnapshotBroken:
		return refuse(vps.CodeVPSChanged, "the snapshot of %s is %s", dom.Name, rec.Snapshot.State)
	}
	return vps.Verdict{Allowed: true}
}

// foreign: snapshots that somebody made with libvirt lie in our overlay, or on
// top of it, and would be lost with it.
func foreign(dom hypervisor.Domain) vps.Verdict {
	return refuse(
		vps.CodeVPSChanged,
		"%[1]s has %[2]d libvirt snapshots of its own that would be lost; delete them first (virsh snapshot-list %[1]s)",
		dom.Name, dom.ForeignSnapshots,
	)
}

// givenUp reports whether a snapshot is broken for good, though the VPS's own chain may
// be whole: the delete makes sure of that before it merges.
func givenUp(s vps.Snapshot) bool { return s.State == vps.SnapshotBroken && !s.Heals }

// busy tells an operation that goes on, which ends by itself, from one that waits for an
// operator.
func busy(dom hypervisor.Domain, rec store.Record) vps.Verdict {
	if rec.Operation.Status == vps.StatusNeedsAttention {
		return refuse(vps.CodeOperationInProgress, "operation %s of %s waits for an operator",
			rec.Operation.ID, dom.Name)
	}
	return refuse(
		vps.CodeOperationInProgress, "%s has an operation in progress (%s, %s)", dom.Name, rec.Operation.Kind,
		rec.Operation.ID,
	)
}

// UndoIsKept reports whether the disks from before the last restore are still there.
func UndoIsKept(s vps.Snapshot) bool {
	for _, disk := range s.Disks {
		if disk.Undo != "" {
			return true
		}
	}
	return false
}

// Refused turns a verdict into the error of a call.
func Refused(v vps.Verdict, remedy vps.Words) error {
	if v.Allowed {
		return nil
	}
	return vps.Refuse(v.Code, v.Reason, remedy)
}
