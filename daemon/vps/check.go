package vps

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// CheckCode names one way in which record, libvirt and files can differ. The set
// is part of the REST contract.
type CheckCode string

const (
	// CheckMissingBase: the image that is the snapshot's data is gone.
	CheckMissingBase CheckCode = "missing_base"
	// CheckReplacedBase: another file lies where the snapshot's data was.
	CheckReplacedBase CheckCode = "replaced_base"
	// CheckBaseWritten: the snapshot's data has been written to since.
	CheckBaseWritten CheckCode = "base_written"
	// CheckMissingOverlay: the file that the VPS writes to is gone.
	CheckMissingOverlay CheckCode = "missing_overlay"
	// CheckReplacedOverlay: another file lies where the VPS's present data was.
	CheckReplacedOverlay CheckCode = "replaced_overlay"
	// CheckMissingUndo: the disk from before the last restore is gone or was replaced.
	CheckMissingUndo CheckCode = "missing_undo"
	// CheckMissingNVRAM: the snapshot's copy of the UEFI variables is gone.
	CheckMissingNVRAM CheckCode = "missing_nvram"
	// CheckOverlayHeaderDiffers: the overlay's header names another base, format or size.
	CheckOverlayHeaderDiffers CheckCode = "overlay_header_differs"
	// CheckWrongModeOrOwner: others than those who may use its base can open an overlay, or
	// those cannot; or others can change a file of the daemon, or put another in its place.
	CheckWrongModeOrOwner CheckCode = "wrong_mode_or_owner"
	// CheckForeignSnapshot: somebody else's overlay lies on ours, or libvirt keeps snapshots of its own.
	CheckForeignSnapshot CheckCode = "foreign_snapshot"
	// CheckForeignJob: a block job runs on the disk that is not ours.
	CheckForeignJob CheckCode = "foreign_job"
	// CheckDiskSetChanged: a disk was added or removed since the snapshot.
	CheckDiskSetChanged CheckCode = "disk_set_changed"
	// CheckDiskResized: a disk has another size than at the snapshot.
	CheckDiskResized CheckCode = "disk_resized"
	// CheckDiskMoved: a disk uses another file than its overlay.
	CheckDiskMoved CheckCode = "disk_moved"
	// CheckDefinitionNamesBase: a disk writes, or will write, into the snapshot's data.
	CheckDefinitionNamesBase CheckCode = "definition_names_base"
	// CheckMetadataMissing: the copy of the record in the domain's definition is missing or another.
	CheckMetadataMissing CheckCode = "metadata_missing"
	// CheckOrphanOverlay: a file that is named as ours, and that no record names.
	CheckOrphanOverlay CheckCode = "orphan_overlay"
	// CheckStaleOverlay: a file of a snapshot that is gone.
	CheckStaleOverlay CheckCode = "stale_overlay"
	// CheckUnrecordedSnapshot: a VPS says that it has a snapshot, and the record does not.
	CheckUnrecordedSnapshot CheckCode = "unrecorded_snapshot"
	// CheckSnapshotBroken: the snapshot cannot be trusted, for a reason that no file shows.
	CheckSnapshotBroken CheckCode = "snapshot_broken"
	// CheckUnfinished: a snapshot stands half deleted or half restored and nothing works on it.
	CheckUnfinished CheckCode = "unfinished"
	// CheckVPSGone: there is a record of a VPS that libvirt does not know.
	CheckVPSGone CheckCode = "vps_gone"
	// CheckVPSRedefined: as vps_gone, and another VPS bears the name.
	CheckVPSRedefined CheckCode = "vps_redefined"
	// CheckGuestOwed: a guest that we froze or suspended was not let go yet.
	CheckGuestOwed CheckCode = "guest_owed"
	// CheckOperationParked: an operation waits for an operator.
	CheckOperationParked CheckCode = "operation_parked"
	// CheckRecordDamaged: a row of the record is not as it was written, and is not used.
	CheckRecordDamaged CheckCode = "record_damaged"
	// CheckUnreachable: libvirt or a file does not answer, so something is not known.
	CheckUnreachable CheckCode = "unreachable"
)

// Finding is one thing that is not as the record says.
type Finding struct {
	Code CheckCode
	// VPS is the id, "" when it concerns the host; VPSName the last known name.
	VPS     string
	VPSName string
	// Disk is the target of the disk, "" when it concerns the VPS as a whole.
	Disk string
	// Path is the file that it is about, "" for none.
	Path string
	// Snapshot and Operation are the ids of what is concerned, "" for none.
	Snapshot  string
	Operation string
	// Detail says what is known. For operators: it names host paths.
	Detail string
	// Repairable reports whether Repair can put it right without any risk.
	Repairable bool
	// Remedies are the ways out, the likeliest first. One of them is to be chosen.
	Remedies []Remedy
}

// RemedyKind names one way out. The set is part of the REST contract, and a test runs each
// in its situation.
type RemedyKind string

const (
	// With commands, in the order of what they touch: nothing, the record, a definition, files.

	RemedySeeLibvirt      RemedyKind = "see_libvirt"
	RemedyFindFile        RemedyKind = "find_file"
	RemedyLeaveFile       RemedyKind = "leave_file"
	RemedyLookAtLayers    RemedyKind = "look_at_layers"
	RemedyShutDown        RemedyKind = "shut_down"
	RemedyRepair          RemedyKind = "repair"
	RemedyThaw            RemedyKind = "thaw"
	RemedyResumeOperation RemedyKind = "resume_operation"
	RemedyCancelOperation RemedyKind = "cancel_operation"
	RemedyVouch           RemedyKind = "vouch"
	RemedyGiveUp          RemedyKind = "give_up"
	RemedyGiveUpGone      RemedyKind = "give_up_gone"
	RemedyFinishDeletion  RemedyKind = "finish_deletion"
	RemedyDeleteOldLayer  RemedyKind = "delete_old_layer"
	RemedyReplaceSnapshot RemedyKind = "replace_snapshot"
	RemedyDefineGone      RemedyKind = "define_gone"
	RemedyCancelOption    RemedyKind = "cancel_option"
	RemedyOrderOption     RemedyKind = "order_option"
	RemedyRevokeToken     RemedyKind = "revoke_token"
	RemedyDefineAgain     RemedyKind = "define_again"
	RemedyUseOverlay      RemedyKind = "use_overlay"
	RemedyUseBase         RemedyKind = "use_base"
	RemedyAttachDisk      RemedyKind = "attach_disk"
	RemedyRemoveMetadata  RemedyKind = "remove_metadata"
	RemedyForgetSnapshots RemedyKind = "forget_libvirt_snapshots"
	RemedyEndJob          RemedyKind = "end_job"
	RemedyMergeByHand     RemedyKind = "merge_by_hand"
	RemedyMergeAndGiveUp  RemedyKind = "merge_and_give_up"
	RemedyMergeForeign    RemedyKind = "merge_foreign_overlay"
	RemedyRescueDisk      RemedyKind = "rescue_disk"
	RemedyPutBack         RemedyKind = "put_back"
	RemedyPutAside        RemedyKind = "put_aside"
	RemedyRewriteHeader   RemedyKind = "rewrite_header"
	RemedySetRights       RemedyKind = "set_rights"
	RemedyTakeRightsAway  RemedyKind = "take_rights_away"
	RemedyRemoveFile      RemedyKind = "remove_file"
	RemedyNoteAside       RemedyKind = "put_note_aside"
	RemedyCompleteNote    RemedyKind = "complete_note"

	// RemedyRead has a text only: what is to be done cannot be typed.
	RemedyRead RemedyKind = "read"
)

// Remedy is one way out: when it is the right one, and the commands for it.
type Remedy struct {
	Kind     RemedyKind
	Text     string
	Commands []Command
}

// Repair is what was done about a Finding.
type Repair struct {
	Code    CheckCode
	VPS     string
	VPSName string
	Path    string
	// Done reports whether it succeeded.
	Done bool
	// Text says what was done, or why it was not.
	Text string
}

// Report is the outcome of comparing records, libvirt and files.
type Report struct {
	At time.Time
	// VPSCount and SnapshotCount say how much was compared.
	VPSCount      int
	SnapshotCount int
	Findings      []Finding
	// Repairs is set by a repair only.
	Repairs []Repair
}

// Command is a program and its arguments.
type Command []string

// harmless is what no shell gives a meaning to.
var harmless = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// String writes the command as a line for a POSIX shell; a word that cannot be
// shown on one line is written in the way of bash, $'...'.
func (c Command) String() string {
	words := make([]string, len(c))
	for i, w := range c {
		words[i] = quote(w)
	}
	return strings.Join(words, " ")
}

func quote(word string) string {
	switch {
	case harmless.MatchString(word):
		return word
	case showable(word):
		return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for i := range len(word) {
		if c := word[i]; c < 0x20 || c >= 0x7f || c == '\'' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteString("'")
	return b.String()
}

// showable reports whether a terminal shows the word as it is.
func showable(word string) bool {
	if !utf8.ValidString(word) {
		return false
	}
	for _, r := range word {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return false
		}
	}
	return true
}
