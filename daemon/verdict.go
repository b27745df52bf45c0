package daemon

import (
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// verdicts says which actions are open to a VPS now. The panel shows them, and
// the calls obey them.
func verdicts(dom hypervisor.Domain, rec record, now time.Time) vps.Actions {
	if dom.State == hypervisor.Unknown {
		silent := no(vps.CodeHypervisorUnavailable, "%s does not answer its host", dom.Name)
		return vps.Actions{Take: silent, Restore: silent, UndoRestore: silent, Delete: silent}
	}
	if dom.MigratedAway {
		away := no(vps.CodeVPSChanged, "%s was migrated to another host", dom.Name)
		return vps.Actions{Take: away, Restore: away, UndoRestore: away, Delete: away}
	}
	return vps.Actions{
		Take:        takeVerdict(dom, rec, false),
		Restore:     restoreVerdict(dom, rec),
		UndoRestore: undoVerdict(dom, rec, now),
		Delete:      deleteVerdict(dom, rec),
	}
}

func no(code vps.Code, format string, args ...any) vps.Verdict {
	return vps.Verdict{Code: code, Reason: vps.Say(format, args...)}
}

func takeVerdict(dom hypervisor.Domain, rec record, replace bool) vps.Verdict {
	switch {
	case rec.option == nil || rec.option.State != vps.OptionActive:
		return no(vps.CodeOptionRequired, "%s has no active snapshot option", dom.Name)
	case rec.operation != nil:
		return busy(dom, rec)
	case rec.snapshot != nil && !replace:
		return no(vps.CodeSnapshotExists, "%s has a snapshot already, from %s", dom.Name, rec.snapshot.CreatedAt.Format(time.RFC3339))
	case rec.snapshot != nil && rec.snapshot.State != vps.SnapshotAvailable:
		return no(vps.CodeSnapshotExists, "the snapshot of %s is %s and cannot be replaced", dom.Name, rec.snapshot.State)
	}
	if why := unsupported(dom); why != nil {
		return vps.Verdict{Code: vps.CodeUnsupportedDisk, Reason: *why}
	}
	return vps.Verdict{Allowed: true}
}

func restoreVerdict(dom hypervisor.Domain, rec record) vps.Verdict {
	switch {
	case rec.snapshot == nil:
		return no(vps.CodeNotFound, "%s has no snapshot", dom.Name)
	case rec.operation != nil:
		return busy(dom, rec)
	case rec.snapshot.State == vps.SnapshotBroken:
		return no(vps.CodeVPSChanged, "the snapshot of %s is broken: %s", dom.Name, rec.snapshot.Reason)
	case rec.snapshot.State != vps.SnapshotAvailable:
		return no(vps.CodeVPSChanged, "the snapshot of %s is %s and cannot be restored", dom.Name, rec.snapshot.State)
	case dom.ForeignSnapshots > 0:
		return foreign(dom)
	}
	return vps.Verdict{Allowed: true, Reason: vps.Say("everything written since %s is taken back", rec.snapshot.CreatedAt.Format(time.RFC3339))}
}

func undoVerdict(dom hypervisor.Domain, rec record, now time.Time) vps.Verdict {
	switch {
	case rec.snapshot == nil || rec.snapshot.UndoUntil == nil || !undoIsKept(*rec.snapshot):
		return no(vps.CodeNotFound, "%s has no restore that can be undone", dom.Name)
	case rec.operation != nil:
		return busy(dom, rec)
	case rec.snapshot.State != vps.SnapshotAvailable:
		return no(vps.CodeVPSChanged, "the snapshot of %s is %s", dom.Name, rec.snapshot.State)
	case !now.Before(*rec.snapshot.UndoUntil):
		return no(vps.CodeNotFound, "the time to undo the restore of %s ended at %s", dom.Name, rec.snapshot.UndoUntil.Format(time.RFC3339))
	}
	return vps.Verdict{Allowed: true, Reason: vps.Say("possible until %s", rec.snapshot.UndoUntil.Format(time.RFC3339))}
}

func deleteVerdict(dom hypervisor.Domain, rec record) vps.Verdict {
	switch {
	case rec.snapshot == nil:
		return no(vps.CodeNotFound, "%s has no snapshot", dom.Name)
	case rec.operation != nil:
		return busy(dom, rec)
	case rec.snapshot.State == vps.SnapshotBroken && !givenUp(*rec.snapshot):
		return no(vps.CodeVPSChanged, "the snapshot of %[1]s is broken: %[2]s; an operator of the host can do away with it once %[1]s has other disks",
			dom.Name, rec.snapshot.Reason)
	case rec.snapshot.State != vps.SnapshotAvailable && rec.snapshot.State != vps.SnapshotDeleting && !givenUp(*rec.snapshot):
		return no(vps.CodeVPSChanged, "the snapshot of %s is %s: %s", dom.Name, rec.snapshot.State, rec.snapshot.Reason)
	case dom.ManagedSave:
		return no(vps.CodeVPSChanged, "the memory of %s is saved to disk (managed save) and belongs to the disks as they are; start it or drop the saved memory first (virsh managedsave-remove)", dom.Name)
	case dom.ForeignSnapshots > 0:
		return foreign(dom)
	case !dom.Persistent:
		return no(vps.CodeVPSChanged, "%s is not persistent any more: there is no definition that could name its merged disks; define it again (virsh define)", dom.Name)
	case undoIsKept(*rec.snapshot):
		return vps.Verdict{Allowed: true, Reason: vps.Say("this ends the possibility to undo the last restore")}
	}
	return vps.Verdict{Allowed: true}
}

// foreign: snapshots that somebody made with libvirt lie in our overlay, or on
// top of it, and would be lost with it.
func foreign(dom hypervisor.Domain) vps.Verdict {
	return no(vps.CodeVPSChanged, "%[1]s has %[2]d libvirt snapshots of its own that would be lost; delete them first (virsh snapshot-list %[1]s)",
		dom.Name, dom.ForeignSnapshots)
}

// givenUp says that a snapshot is broken for good, though the VPS's own chain may
// be whole: the delete makes sure of that before it merges.
func givenUp(s vps.Snapshot) bool { return s.State == vps.SnapshotBroken && !s.Heals }

func busy(dom hypervisor.Domain, rec record) vps.Verdict {
	if rec.operation.Status == vps.StatusNeedsAttention {
		return no(vps.CodeOperationInProgress, "operation %s of %s waits for an operator", rec.operation.ID, dom.Name)
	}
	return no(vps.CodeOperationInProgress, "%s has an operation in progress (%s, %s)", dom.Name, rec.operation.Kind, rec.operation.ID)
}

// undoIsKept says whether the disks from before the last restore are still there.
func undoIsKept(s vps.Snapshot) bool {
	for _, d := range s.Disks {
		if d.Undo != "" {
			return true
		}
	}
	return false
}
