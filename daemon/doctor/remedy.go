package doctor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// The ways out of each drift. VPSes are named by id: a name may be given away.
// No list of commands goes on with something destructive where a command before
// it may have failed.

// remedy is one way out. The text says when it is the right one, because several are often
// offered and only a person can choose; commands may be empty where nothing can be typed.
func remedy(kind vps.RemedyKind, text string, commands ...vps.Command) vps.Remedy {
	return vps.Remedy{Kind: kind, Text: text, Commands: commands}
}

// argv is a command as a list of words. It is never joined to a line here: a path may hold
// blanks or quotes.
func argv(words ...string) vps.Command { return words }

// repairCommand is offered only where Repair is provably safe, see mend.
var repairCommand = argv("vpssnap", "doctor", "--repair")

// remedyRepair is for definitions and metadata: what Repair does to them changes no file.
func remedyRepair() vps.Remedy { return repairBy("let the daemon put it right") }

func repairBy(text string) vps.Remedy { return remedy(vps.RemedyRepair, text, repairCommand) }

// unreachableHost tells that the report is incomplete. Silence of libvirt is no proof that a
// VPS is gone, so no other finding is drawn from it.
func unreachableHost(err error) vps.Finding {
	return vps.Finding{Code: vps.CheckUnreachable, Remedies: []vps.Remedy{remedyUnreachable()},
		Detail: "libvirt does not answer, so only files were compared: " + err.Error()}
}

// remedyUnreachable: the two commands that show why libvirt does not answer, on hosts with
// one daemon and on those with modular ones.
func remedyUnreachable() vps.Remedy {
	return remedy(
		vps.RemedySeeLibvirt, "see why libvirt does not answer", argv("virsh", "uri"),
		argv("systemctl", "status", "--no-pager", "libvirtd", "virtqemud"),
	)
}

// restartLibvirt is for hosts with one daemon and for those with modular ones. Guests run on.
var restartLibvirt = argv("systemctl", "try-restart", "libvirtd", "virtqemud")

// remedyAstray has libvirt know a VPS again, without a restart of the guest where its note of
// it can be put right (FAULTS.md row 44). A start would remove the note.
func remedyAstray(a hypervisor.Astray) vps.Remedy {
	const dontStart = "do not start the VPS, and restart libvirt, which leaves guests alone"
	switch {
	case a.PID == 0:
		return remedy(vps.RemedyNoteAside, "libvirt died when it had not started QEMU yet: put its note of that aside, and "+
			"restart libvirt, which leaves guests alone; the VPS is off then",
			argv("mv", "-nT", "--", a.Status, a.Status+".put-aside"), restartLibvirt)
	case a.Jobless:
		// What QEMU does is asked of QEMU afterwards; the words only make the note readable.
		return remedy(vps.RemedyCompleteNote, "libvirt died when a merge had ended, and cannot read its note of the VPS: "+
			"complete that, "+dontStart,
			argv("sed", "-i", "s/<mirror type='file' job=''>/<mirror type='file' job='active-commit' ready='pivot'>/", a.Status),
			restartLibvirt)
	case a.Status != "":
		return remedy(vps.RemedyRead, "libvirt cannot read its note of the VPS, "+a.Status+", and says why when it starts "+
			"(journalctl -u libvirtd -u virtqemud): cure that, "+dontStart)
	}
	return remedy(vps.RemedyRead, fmt.Sprintf("libvirt has no note of the VPS any more: have the guest shut itself down, or "+
		"end its QEMU (process %d) when that is agreed with its owner; start it only when that process is gone", a.PID))
}

// parkedDetail says where the operation stopped, why, and whether its VPS is still the one
// it was.
func (i *inspection) parkedDetail(op vps.Operation) string {
	detail := fmt.Sprintf("operation %s (%s) stopped at step %s and waits for an operator", op.ID, op.Kind, op.Step)
	if op.Error != nil {
		detail += ": " + op.Error.Detail
	}
	if i.gone() {
		detail += fmt.Sprintf("; libvirt does not know the VPS %s (%s) any more", i.name, i.id)
	}
	if other := i.namesake(); i.gone() && other != "" {
		detail += "; its name now belongs to another VPS, " + other
	}
	return detail
}

// remediesParked are the ways out of an operation that needs an operator: resume it, or,
// when the VPS is gone for good, give its snapshot up.
func (i *inspection) remediesParked(op vps.Operation) []vps.Remedy {
	text := "cure the cause, then let the operation go on"
	if op.Error != nil && op.Error.Remedy != "" {
		text = op.Error.Remedy
	}
	resume := remedy(vps.RemedyResumeOperation, text, argv("vpssnap", "operations", "show", op.ID), argv("vpssnap", "operations", "resume", op.ID))
	switch {
	case !i.gone() && i.d.canTakeBack(op):
		return []vps.Remedy{resume, remedy(vps.RemedyCancelOperation, "or have it undone: all is as before then, and the VPS runs as it did",
			argv("vpssnap", "operations", "cancel", op.ID))}
	case !i.gone():
		return []vps.Remedy{resume}
	}
	resume.Text = "if the VPS is to come back, define it with its id " + i.id +
		" and its disks as they were, do not start it, and let the operation go on"
	return []vps.Remedy{
		resume,
		giveUpGone("if it is gone for good, end the operation and give up the record of the snapshot", i.id),
	}
}

// owedDetail says what the guest may still be without: its file systems, or its CPUs.
func owedDetail(p store.Debt) string {
	what := "frozen its file systems may be"
	if p.Kind == store.DebtResume {
		what = "suspended it may be"
	}
	return fmt.Sprintf("the guest is owed a %s since %s: %s", p.Kind, p.Since.Format(timeFormat), what)
}

// remedyOwed gives the guest back what it is owed.
func remedyOwed(p store.Debt) vps.Remedy {
	if p.Kind == store.DebtResume {
		// Not virsh resume: before it runs, its definition must name what it will write to.
		return repairBy("let the daemon try again to let the guest run")
	}
	return remedy(vps.RemedyThaw, "thaw the guest; the daemon tries too", argv("virsh", "domfsthaw", p.VPS), repairCommand)
}

// remedyBroken is for a snapshot that cannot become whole again. Giving it up loses the
// snapshot and nothing of the VPS, whose own chain is not touched.
func remedyBroken(id string) vps.Remedy {
	return remedy(vps.RemedyGiveUp, "give the snapshot up; the VPS keeps its present data", argv("vpssnap", "delete", id))
}

// remedyVouch is for files that only look different. It asks before it does anything.
func remedyVouch(id string) vps.Remedy {
	return remedy(vps.RemedyVouch, "if the files hold what they held, and were only moved by copying (cp -a), touched or made sparse, "+
		"vouch for them: it shows what differs and what is proven, and asks", argv("vpssnap", "vouch", id))
}

// remedyDelete goes on with a deletion. There is no way back: from the first byte that was
// merged the base is no longer the snapshot (FAULTS, fact 1).
func remedyDelete(id string) vps.Remedy {
	return remedy(vps.RemedyFinishDeletion, "finish the deletion", argv("vpssnap", "delete", id))
}

// remedyRenew is for a snapshot that is whole but no longer covers the VPS as it is. It is
// an offer only: the old snapshot may be the one that the customer wants back.
func remedyRenew(id string) vps.Remedy {
	return remedy(vps.RemedyReplaceSnapshot, "if the snapshot shall be of the VPS as it is now, replace it",
		argv("vpssnap", "take", "--replace", id))
}

// off reports whether libvirt says that the VPS is off; on, that it is not.
func (i *inspection) off() bool { return i.present && i.dom.State == hypervisor.Off }
func (i *inspection) on() bool  { return i.present && i.dom.State != hypervisor.Off }

// shutDown comes before what can be done to a VPS that is off only. What is right then is
// printed then: a list of commands would go on while the VPS still runs.
func (i *inspection) shutDown(text string) vps.Remedy {
	return remedy(vps.RemedyShutDown, text+": shut the VPS down, and ask doctor again when it is off",
		argv("virsh", "shutdown", i.id))
}

// unshared reports whether no other VPS uses one of the files, by whatever name. What
// is merged into, moved or removed must be nobody else's.
func (i *inspection) unshared(ctx context.Context, paths ...string) bool {
	images := map[string]string{}
	for _, path := range paths {
		images[path] = path
	}
	return i.d.images.CheckUnshared(ctx, i.dom, images) == nil
}

// asRecorded reports whether a disk's base and overlay are the files of the record, one on
// the other, and nobody else's. A merge would otherwise write into a file that has no name
// any more, or into another's.
func (i *inspection) asRecorded(ctx context.Context, disk vps.SnapshotDisk) bool {
	base, err1 := i.d.host.Stat(ctx, disk.Base)
	overlay, err2 := i.d.host.Stat(ctx, disk.Overlay)
	img, err3 := i.d.host.Inspect(ctx, disk.Overlay, "qcow2")
	return errors.Join(err1, err2, err3) == nil && base.Inode == disk.BaseInode && overlay.Inode == disk.OverlayInode &&
		img.LiesOn(disk.Base, disk.BaseFormat) && i.unshared(ctx, disk.Base, disk.Overlay)
}

// giveUp is how a broken snapshot is dropped: the record goes once no disk uses an
// overlay of it, and its files stay. A disk that does is merged by hand before.
func (i *inspection) giveUp(ctx context.Context, text string, s vps.Snapshot) vps.Remedy {
	w := remedy(vps.RemedyMergeAndGiveUp, text+"; its files stay where they are, and doctor names them then")
	for _, disk := range s.Disks {
		switch use, ok := image.Live(i.dom, disk); {
		case !ok || !use.Is(disk.Overlay):
		case !i.asRecorded(ctx, disk):
			return remedy(vps.RemedyRead, text+", but put disk "+use.Target+" right before: its files are not those of "+
				"the record, or another VPS uses them, and it cannot be merged as it is")
		case i.on():
			w.Commands = append(w.Commands, mergeByHand(i.id, use.Target, disk))
		default:
			w.Text += "; disk " + use.Target + " must name " + disk.Base + " (" + disk.BaseFormat +
				") when it is merged"
			w.Commands = append(
				// "-t none" as in our own merges: with the page cache between, a full disk
				// or an I/O error may show only later. "-b" as the header may be changed until
				// this is run; it also leaves the overlay as it is.
				w.Commands, argv("qemu-img", "commit", "-f", "qcow2", "-t", "none", "-b", disk.Base, disk.Overlay),
				argv("virsh", "edit", i.id),
			)
		}
	}
	w.Commands = append(w.Commands, argv("vpssnap", "delete", i.id))
	return w
}

// mergeByHand merges the overlay of a running VPS, whose disk has that name now.
// Never with --delete: libvirt unlinks the overlay before it has saved the definition.
func mergeByHand(id, target string, disk vps.SnapshotDisk) vps.Command {
	return argv(
		"virsh", "blockcommit", id, target, "--top", disk.Overlay, "--base", disk.Base, "--active", "--pivot",
		"--wait", "--verbose",
	)
}

// giveUpGone drops the record of a VPS that is gone.
func giveUpGone(text, id string) vps.Remedy {
	return remedy(vps.RemedyGiveUpGone, text+"; its files stay where they are, and doctor names them then", argv("vpssnap", "delete", id))
}

// remediesMissing looks for a missing file by its inode.
func (i *inspection) remediesMissing(ctx context.Context, disk vps.SnapshotDisk, path string, inode uint64) []vps.Remedy {
	var ways []vps.Remedy
	if other := i.whereIs(ctx, path, inode); other != "" {
		ways = append(
			ways,
			remedy(vps.RemedyPutBack, "the file lies beside its place under another name: put it back",
				// "-n": never over a file that is there by now.
				argv("mv", "-nT", "--", other, path)),
		)
	} else if inode != 0 {
		ways = append(ways, findByInode("if it was moved within its file system, find it and move it back to "+path, path, inode))
	}
	ways = append(ways, i.rescue(disk, path)...)
	ways = append(ways, remedy(vps.RemedyRead, "if it is lost, restore it from your backup; the VPS was not touched"))
	// The snapshot itself is whole without what an undone restore would bring back.
	if i.present && i.rec.Snapshot != nil && !i.dom.Uses(path) && !pathname.Same(path, disk.Undo) {
		ways = append(ways, i.giveUp(ctx, "if the VPS does not need it any more, give the snapshot up", *i.rec.Snapshot))
	}
	return ways
}

func findByInode(text, path string, inode uint64) vps.Remedy {
	return remedy(vps.RemedyFindFile, text,
		argv("find", filepath.Dir(filepath.Dir(path)), "-xdev", "-inum", fmt.Sprint(inode)))
}

// rescue copies what a running VPS reads out of a file that is not in its place any more.
// A file that QEMU has open lives on without a name until QEMU ends; a power-off would
// lose it for good.
func (i *inspection) rescue(disk vps.SnapshotDisk, path string) []vps.Remedy {
	// By the image, as a panel may have given the disk another name (FAULTS row 38).
	live, ok := image.Live(i.dom, disk)
	if !i.on() || !ok || !live.Is(path) && !live.LiesOn(path) {
		return nil
	}
	rescued := image.WithSuffix(path, ".rescued.qcow2")
	return []vps.Remedy{remedy(
		vps.RemedyRescueDisk, "the running VPS may still have the removed file open: do not power it off; copy the "+
			"whole disk into a new image and go on with that",
		argv(
			"virsh", "blockcopy", i.id, live.Target, "--dest", rescued, "--format", "qcow2", "--transient-job",
			"--wait", "--verbose", "--pivot",
		),
		argv("virsh", "domblklist", i.id),
	)}
}

// remediesReplaced look for the right inode in the same directory first: a file that was
// moved aside is whole, and no copy is needed.
func (i *inspection) remediesReplaced(ctx context.Context, disk vps.SnapshotDisk, path string, inode uint64) []vps.Remedy {
	const exchange = "put the wrong one aside and the right one back"
	switch other := i.whereIs(ctx, path, inode); {
	case other == "":
		return append(i.rescue(disk, path), findByInode("find the right file by its inode; with the VPS off, "+exchange, path, inode))
	case i.on():
		return []vps.Remedy{i.shutDown("the right file lies beside its place under another name, " + other + "; to " + exchange)}
	case !i.off() && !i.gone() || !i.unshared(ctx, path):
		return []vps.Remedy{remedy(vps.RemedyRead, "the right file lies beside its place under another name, "+other+
			"; the one in its place is another VPS's, or libvirt does not tell whose: find that out first")}
	default:
		aside := i.unusedName(ctx, path+".put-aside")
		return []vps.Remedy{remedy(
			vps.RemedyPutAside, "the right file lies beside its place under another name; while the VPS is off, "+exchange,
			argv("virsh", "domstate", i.id),
			argv("mv", "-nT", "--", path, aside),
			argv("mv", "-nT", "--", other, path),
		)}
	}
}

// unusedName is the name, with a number if there is a file of it: mv -n would do nothing,
// and say nothing.
func (i *inspection) unusedName(ctx context.Context, name string) string {
	for n, try := 2, name; ; n++ {
		if _, err := i.d.host.Stat(ctx, try); err != nil {
			return try
		}
		try = fmt.Sprintf("%s-%d", name, n)
	}
}

// whereIs finds a file beside its place by its inode, "" when it is not there.
func (i *inspection) whereIs(ctx context.Context, path string, inode uint64) string {
	// Other file systems use the same numbers for other files, hence the same directory
	// only.
	files, err := i.d.host.Files(ctx, filepath.Dir(path))
	if err != nil || inode == 0 {
		return ""
	}
	for _, f := range files {
		at := filepath.Join(filepath.Dir(path), f.Name)
		// A copy may have got the number of a file that was removed: what is in its own
		// place is never told to be moved (seen with two disks and cp -a, FAULTS row 39).
		if f.Inode == inode && !i.dom.Uses(at) && !i.recorded(at) && i.unshared(ctx, at) {
			return at
		}
	}
	return ""
}

// recorded reports whether the snapshot has a file of this name.
func (i *inspection) recorded(path string) bool {
	return i.rec.Snapshot != nil && slices.ContainsFunc(i.rec.Snapshot.Disks, func(d vps.SnapshotDisk) bool {
		return pathname.Same(d.Base, path) || pathname.Same(d.Overlay, path) || d.Undo != "" && pathname.Same(d.Undo, path)
	})
}

// remedyBaseWritten: nothing of ours merges or restores over a base that somebody
// wrote into. What the VPS sees can be kept by hand.
func (i *inspection) remedyBaseWritten(ctx context.Context, disk vps.SnapshotDisk) vps.Remedy {
	// Merging would put the guest's writes over blocks that nobody can vouch for.
	const untrusted = ": the snapshot, and what the VPS reads through it, can no longer be trusted"
	text := "find out who wrote into " + disk.Base + untrusted
	if live, ok := image.Live(i.dom, disk); ok && i.on() && live.Is(disk.Overlay) && i.asRecorded(ctx, disk) {
		return remedy(vps.RemedyMergeByHand, text+". If the VPS is well as it runs now, merge its disk by hand and give "+
			"the snapshot up", mergeByHand(i.id, live.Target, disk), argv("vpssnap", "doctor"))
	}
	return remedy(vps.RemedyRead, text)
}

// remedyHeader repairs a header that names another base. The VPS must be off: QEMU reads
// the header at start only and writes it back at will.
func (i *inspection) remedyHeader(ctx context.Context, disk vps.SnapshotDisk) vps.Remedy {
	const text = "if only the header was changed (qemu-img rebase -u, a moved directory)"
	base, err := i.d.host.Stat(ctx, disk.Base)
	switch {
	case err != nil || base.Inode != disk.BaseInode:
		return remedy(vps.RemedyRead, text+", put the base right first, then ask doctor again")
	case !i.off():
		return i.shutDown(text + ", it is put right with the VPS off")
	}
	return remedy(vps.RemedyRewriteHeader, text+", put it right while the VPS is off",
		argv("virsh", "domstate", i.id),
		// Unsafe mode rewrites the header only; the safe one would copy data according
		// to a wrong header.
		argv("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", disk.Base, "-F", disk.BaseFormat, disk.Overlay))
}

// remedyAttach puts a disk back where it is missing.
func (i *inspection) remedyAttach(ctx context.Context, disk vps.SnapshotDisk, live, config bool) vps.Remedy {
	if !i.unshared(ctx, disk.Overlay) {
		return remedy(vps.RemedyRead, "another VPS uses the disk's overlay: take it away from there, then ask doctor again")
	}
	words := []string{
		"virsh",
		"attach-disk",
		i.id,
		disk.Overlay,
		disk.Target,
		"--sourcetype",
		"file",
		"--driver",
		"qemu",
		"--subdriver",
		"qcow2",
	}
	if live {
		words = append(words, "--live")
	}
	if config {
		words = append(words, "--config")
	}
	return remedy(vps.RemedyAttachDisk, "attach the disk again", words)
}

// remedyJob looks before it ends anything: the job may be a backup or a migration of the
// operator, which the daemon knows nothing about.
func remedyJob(id, target string) vps.Remedy {
	return remedy(vps.RemedyEndJob, "find out whose it is; end it if it was not meant",
		argv("virsh", "blockjob", id, target, "--info"), argv("virsh", "blockjob", id, target, "--abort"))
}

// remediesOnBase are for a disk that uses the snapshot's data itself.
func (i *inspection) remediesOnBase(
	ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk, live bool,
) []vps.Remedy {
	const base = "if the data in the base is what counts, give up the snapshot and what the VPS wrote since it"
	overlay := i.useOverlay("if the data in " + disk.Overlay + " is what counts, keep a copy of both files, and let the " +
		"definition name the overlay again")
	if i.on() && !live {
		// Merged now, what the VPS runs on would go over the data that counts.
		return []vps.Remedy{i.shutDown(base), overlay}
	}
	return []vps.Remedy{i.giveUp(ctx, base, s), overlay}
}

// useOverlay lets the next boot use the overlay again. A VPS that runs writes elsewhere
// until it goes off.
func (i *inspection) useOverlay(text string) vps.Remedy {
	w := remedy(vps.RemedyUseOverlay, text, argv("virsh", "domblklist", "--inactive", i.id))
	if i.on() {
		w.Commands = append(w.Commands, argv("virsh", "shutdown", i.id))
	}
	w.Commands = append(w.Commands, argv("virsh", "edit", i.id))
	return w
}

// remediesMoved are the two ways out when a disk no longer uses its overlay: which image is
// right only the operator knows.
func (i *inspection) remediesMoved(ctx context.Context, s vps.Snapshot) []vps.Remedy {
	return []vps.Remedy{
		i.useOverlay("if the disk should use its overlay, let the definition name it again"),
		i.giveUp(ctx, "if the new image is right, give the snapshot up", s),
	}
}

// remedyForeignOverlay merges somebody else's layers down onto our overlay.
func (i *inspection) remedyForeignOverlay(
	ctx context.Context, disk vps.SnapshotDisk, use hypervisor.Disk, live bool,
) vps.Remedy {
	switch {
	case i.on() && !live:
		// It was told to be started and destroyed for the merge, while it ran.
		return i.useOverlay("the VPS runs without it: let the definition name " + disk.Overlay + " again")
	case !i.unshared(ctx, use.Path, disk.Overlay):
		return remedy(vps.RemedyRead, "another VPS uses one of the two, too: give it a disk of its own first")
	}
	text := "merge it into our overlay"
	merge := argv("virsh", "blockcommit", i.id, use.Target, "--top", use.Path, "--base", disk.Overlay, "--active",
		"--pivot", "--wait", "--verbose")
	if !live {
		text += "; the VPS is off, so it is started with its processors stopped for that"
		// libvirt commits an active layer only in a running QEMU; paused, the guest writes
		// nothing meanwhile. One that somebody else has started by now is not ended.
		const script = `id=$1; shift; virsh start "$id" --paused && { "$@"; virsh destroy "$id"; }`
		merge = append(argv("sh", "-c", script, "sh", i.id), merge...)
	}
	w := remedy(vps.RemedyMergeForeign, text+"; "+use.Path+" is of no use any more then", merge)
	// Their objects name files that are then merged away, and they would go on to forbid
	// migration.
	w.Commands = append(w.Commands, i.forgetSnapshots()...)
	return w
}

// forgetSnapshots takes away what libvirt knows of others' snapshots. Without --metadata
// libvirt 9.9 and later merge the layers of an external one, and one of those may be the
// base of ours.
func (i *inspection) forgetSnapshots() (commands []vps.Command) {
	for _, name := range i.dom.SnapshotNames {
		commands = append(commands, argv("virsh", "snapshot-delete", i.id, "--metadata", "--snapshotname", name))
	}
	return commands
}

// remedySnapshotObjects removes snapshots and checkpoints that others keep in libvirt and
// that forbid migration.
func (i *inspection) remedySnapshotObjects() vps.Remedy {
	w := remedy(
		vps.RemedyForgetSnapshots, "they keep migration and undefine from working; if nobody needs them, let libvirt "+
			"forget them: no image is changed by that",
		argv("virsh", "snapshot-list", i.id),
	)
	w.Commands = append(w.Commands, i.forgetSnapshots()...)
	if i.dom.Checkpoints > 0 {
		w.Commands = append(w.Commands, argv("virsh", "checkpoint-list", i.id))
	}
	return w
}

// remedyDefineAgain makes a running VPS persistent again, by its live definition.
// --security-info keeps the VNC password, which a plain dumpxml leaves out.
func remedyDefineAgain(id string) vps.Remedy {
	script := `f=$(mktemp) && virsh dumpxml --security-info --migratable "$1" > "$f" && ` +
		`virsh define "$f"; rm -f -- "$f"`
	return remedy(vps.RemedyDefineAgain, "define it again while it runs", argv("sh", "-c", script, "sh", id))
}

// remedyOrphan never goes by itself: a file that came back with a backup or from
// another host may be the newest data of a VPS.
func remedyOrphan(text, path string) vps.Remedy {
	w := remedy(vps.RemedyRemoveFile, text+"; the daemon never does")
	// "-U" reads without QEMU's lock, as a VPS may have the file open.
	if strings.HasSuffix(path, ".qcow2") {
		w.Commands = append(w.Commands, argv("qemu-img", "info", "-U", "-f", "qcow2", path))
	}
	w.Commands = append(w.Commands, argv("rm", "-i", "--", path))
	return w
}

// remedyOldLayer merges what a failed replace left between overlay and base.
func remedyOldLayer(id string) vps.Remedy {
	return remedy(
		vps.RemedyDeleteOldLayer, "the present snapshot can be restored; delete it once it is not needed: that merges both, and the VPS keeps "+
			"its present data",
		argv("vpssnap", "delete", id),
	)
}

// remediesGone are for a record without its VPS.
func (i *inspection) remediesGone(snapshots []vps.Snapshot, other string) []vps.Remedy {
	back := remedy(vps.RemedyDefineGone, "if the VPS is to come back, define it with its id "+i.id+" and its disks as they were")
	// A panel that gave the VPS a new UUID: its disks are ours, its id is not.
	if other != "" {
		back.Text = "if " + other + " is the same VPS, undefine it and define it with the id " + i.id + " instead"
		back.Commands = []vps.Command{argv("virsh", "dumpxml", "--inactive", "--security-info", other)}
	}
	if len(snapshots) == 1 {
		back.Text += ": " + overlayList(snapshots[0])
	}
	if len(snapshots) > 0 {
		return []vps.Remedy{back, giveUpGone("if it is gone for good, give up the record of the snapshot", i.id)}
	}
	return []vps.Remedy{
		back,
		// Otherwise the customer would go on paying for a VPS that is gone.
		remedy(vps.RemedyCancelOption, "if it is gone for good, end its option", argv("vpssnap", "option", "cancel", i.id, "--now")),
	}
}

// overlayList names each disk with its overlay, for a sentence.
func overlayList(s vps.Snapshot) string {
	var list []string
	for _, disk := range s.Disks {
		list = append(list, disk.Target+" "+disk.Overlay)
	}
	return strings.Join(list, ", ")
}
