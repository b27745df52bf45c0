package doctor

import (
	"context"
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
func remedy(text string, commands ...vps.Command) vps.Remedy {
	return vps.Remedy{Text: text, Commands: commands}
}

// argv is a command as a list of words. It is never joined to a line here: a path may hold
// blanks or quotes.
func argv(words ...string) vps.Command { return words }

// repairCommand is offered only where Repair is provably safe, see mend.
var repairCommand = argv("vpssnap", "doctor", "--repair")

// remedyRepair is for definitions and metadata: what Repair does to them changes no file.
func remedyRepair() vps.Remedy { return remedy("let the daemon put it right", repairCommand) }

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
		"see why libvirt does not answer", argv("virsh", "uri"),
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
		return remedy("libvirt died when it had not started QEMU yet: put its note of that aside, and restart libvirt, "+
			"which leaves guests alone; the VPS is off then", argv("mv", "-nT", "--", a.Status, a.Status+".put-aside"), restartLibvirt)
	case a.Jobless:
		// What QEMU does is asked of QEMU afterwards; the words only make the note readable.
		return remedy("libvirt died when a merge had ended, and cannot read its note of the VPS: complete that, "+dontStart,
			argv("sed", "-i", "s/<mirror type='file' job=''>/<mirror type='file' job='active-commit' ready='pivot'>/", a.Status),
			restartLibvirt)
	case a.Status != "":
		return remedy("libvirt cannot read its note of the VPS, "+a.Status+", and says why when it starts: cure that, "+
			dontStart, argv("journalctl", "-u", "libvirtd", "-u", "virtqemud"), restartLibvirt)
	}
	return remedy(fmt.Sprintf("libvirt has no note of the VPS any more: have the guest shut itself down, or end its QEMU "+
		"(process %d) when that is agreed with its owner; start it only when that process is gone", a.PID))
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
	resume := remedy(text, argv("vpssnap", "operations", "show", op.ID), argv("vpssnap", "operations", "resume", op.ID))
	switch {
	case !i.gone() && i.d.canTakeBack(op):
		return []vps.Remedy{resume, remedy("or have it undone: all is as before then, and the VPS runs as it did",
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
		return remedy("let the daemon try again to let the guest run", repairCommand)
	}
	return remedy("thaw the guest; the daemon tries too", argv("virsh", "domfsthaw", p.VPS), repairCommand)
}

// remedyBroken is for a snapshot that cannot become whole again. Giving it up loses the
// snapshot and nothing of the VPS, whose own chain is not touched.
func remedyBroken(id string) vps.Remedy {
	return remedy("give the snapshot up; the VPS keeps its present data", argv("vpssnap", "delete", id))
}

// remedyVouch is for files that only look different. It asks before it does anything.
func remedyVouch(id string) vps.Remedy {
	return remedy("if the files hold what they held, and were only moved by copying (cp -a), touched or made sparse, "+
		"vouch for them: it shows what differs and what is proven, and asks", argv("vpssnap", "vouch", id))
}

// remedyDelete goes on with a deletion. There is no way back: from the first byte that was
// merged the base is no longer the snapshot (FAULTS, fact 1).
func remedyDelete(id string) vps.Remedy {
	return remedy("finish the deletion", argv("vpssnap", "delete", id))
}

// remedyLog is for what only a restart, or a person with the log, can cure.
func remedyLog() vps.Remedy {
	return remedy(
		"restart the daemon, which takes up what it finds, and read its log", argv("systemctl", "restart", "vpssnapd"),
		argv("journalctl", "-u", "vpssnapd"),
	)
}

// remedyRenew is for a snapshot that is whole but no longer covers the VPS as it is. It is
// an offer only: the old snapshot may be the one that the customer wants back.
func remedyRenew(id string) vps.Remedy {
	return remedy("if the snapshot shall be of the VPS as it is now, replace it",
		argv("vpssnap", "take", "--replace", id))
}

// giveUp is how a broken snapshot is dropped: the record goes once no disk uses an
// overlay of it, and its files stay. A disk that does is merged by hand before.
func (i *inspection) giveUp(text string, s vps.Snapshot) vps.Remedy {
	w := remedy(text + "; its files stay where they are, and doctor names them then")
	for _, disk := range s.Disks {
		switch use, ok := image.Live(i.dom, disk); {
		case !ok || !use.Is(disk.Overlay):
		case i.dom.State != hypervisor.Off:
			w.Commands = append(w.Commands, mergeByHand(i.id, disk))
		default:
			w.Text += "; disk " + disk.Target + " must name " + disk.Base + " (" + disk.BaseFormat +
				") when it is merged"
			w.Commands = append(
				// "-t none" as in our own merges: with the page cache between, a full disk
				// or an I/O error may show only later.
				w.Commands, argv("qemu-img", "commit", "-f", "qcow2", "-t", "none", disk.Overlay),
				argv("virsh", "edit", i.id),
			)
		}
	}
	w.Commands = append(w.Commands, argv("vpssnap", "delete", i.id))
	return w
}

// mergeByHand merges the overlay of a running VPS.
// Never with --delete: libvirt unlinks the overlay before it has saved the definition.
func mergeByHand(id string, disk vps.SnapshotDisk) vps.Command {
	return argv(
		"virsh", "blockcommit", id, disk.Target, "--top", disk.Overlay, "--base", disk.Base, "--active", "--pivot",
		"--wait", "--verbose",
	)
}

// giveUpGone drops the record of a VPS that is gone.
func giveUpGone(text, id string) vps.Remedy {
	return remedy(text+"; its files stay where they are, and doctor names them then", argv("vpssnap", "delete", id))
}

// remediesMissing looks for a missing file by its inode.
func (i *inspection) remediesMissing(ctx context.Context, disk, path string, inode uint64) []vps.Remedy {
	var ways []vps.Remedy
	if other := i.whereIs(ctx, path, inode); other != "" {
		ways = append(
			ways,
			remedy("the file lies beside its place under another name: put it back",
				// "-n": never over a file that is there by now.
				argv("mv", "-nT", "--", other, path)),
		)
	} else if inode != 0 {
		ways = append(ways, remedy("if it was moved within its file system, find it and move it back to "+path,
			argv("find", filepath.Dir(filepath.Dir(path)), "-xdev", "-inum", fmt.Sprint(inode))))
	}
	// A file that QEMU has open lives on without a name until QEMU ends; a power-off
	// would lose it for good.
	if live, ok := i.dom.Disk(disk); ok && i.present && i.dom.State != hypervisor.Off &&
		(live.Is(path) || live.LiesOn(path)) {
		rescued := image.WithSuffix(path, ".rescued.qcow2")
		ways = append(
			ways,
			remedy(
				"the running VPS still has the removed file open: do not power it off; copy the whole disk into a "+
					"new image and go on with that",
				argv(
					"virsh", "blockcopy", i.id, disk, "--dest", rescued, "--format", "qcow2", "--transient-job",
					"--wait", "--verbose", "--pivot",
				),
				argv("virsh", "domblklist", i.id),
			),
		)
	}
	ways = append(ways, remedy("if it is lost, restore it from your backup; the VPS was not touched"))
	if i.present && i.rec.Snapshot != nil && !i.dom.Uses(path) {
		ways = append(ways, i.giveUp("if the VPS does not need it any more, give the snapshot up", *i.rec.Snapshot))
	}
	return ways
}

// remediesReplaced look for the right inode in the same directory first: a file that was
// moved aside is whole, and no copy is needed.
func (i *inspection) remediesReplaced(ctx context.Context, path string, inode uint64) []vps.Remedy {
	if other := i.whereIs(ctx, path, inode); other != "" {
		return []vps.Remedy{
			remedy(
				"the right file lies beside its place under another name; with the VPS off, put the wrong one aside "+
					"and the right one back",
				argv("virsh", "domstate", i.id),
				argv("mv", "-nT", "--", path, path+".put-aside"),
				argv("mv", "-nT", "--", other, path),
			),
		}
	}
	return []vps.Remedy{
		remedy("find the right file by its inode; with the VPS off, put the wrong one aside and the right one back",
			argv("find", filepath.Dir(filepath.Dir(path)), "-xdev", "-inum", fmt.Sprint(inode))),
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
		if f.Inode == inode && !i.dom.Uses(at) && !i.recorded(at) {
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
func (i *inspection) remedyBaseWritten(disk vps.SnapshotDisk) vps.Remedy {
	w := remedy(
		// Merging would put the guest's writes over blocks that nobody can vouch for.
		"find out who wrote into " + disk.Base +
			": the snapshot, and what the VPS reads through it, can no longer be trusted. If the VPS is well as it " +
			"runs now, merge its disk by hand and give the snapshot up",
	)
	if live, ok := image.Live(i.dom, disk); ok && i.present && i.dom.State != hypervisor.Off &&
		live.Is(disk.Overlay) {
		w.Commands = append(w.Commands, mergeByHand(i.id, disk), argv("vpssnap", "doctor"))
	}
	return w
}

// remedyHeader repairs a header that names another base. The VPS must be off: QEMU reads
// the header at start only and writes it back at will.
func remedyHeader(id string, disk vps.SnapshotDisk) vps.Remedy {
	return remedy("if only the header was changed (qemu-img rebase -u, a moved directory): with the VPS off, "+
		"put it right",
		argv("virsh", "domstate", id),
		// Unsafe mode rewrites the header only; the safe one would copy data according
		// to a wrong header.
		argv("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", disk.Base, "-F", disk.BaseFormat, disk.Overlay))
}

// remedyAttach puts a disk back where it is missing.
func remedyAttach(id string, disk vps.SnapshotDisk, live, config bool) vps.Remedy {
	words := []string{
		"virsh",
		"attach-disk",
		id,
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
	return remedy("attach the disk again", words)
}

// remedyJob looks before it ends anything: the job may be a backup or a migration of the
// operator, which the daemon knows nothing about.
func remedyJob(id string, disk vps.SnapshotDisk) vps.Remedy {
	return remedy("find out whose it is; end it if it was not meant",
		argv("virsh", "blockjob", id, disk.Target, "--info"), argv("virsh", "blockjob", id, disk.Target, "--abort"))
}

// remediesOnBase are for a disk that uses the snapshot's data itself.
func (i *inspection) remediesOnBase(s vps.Snapshot, disk vps.SnapshotDisk, live bool) []vps.Remedy {
	text := "if the data in " + disk.Base + " is what counts, give up the snapshot and what the VPS wrote since it"
	if !live {
		text += ", once its definition names the base"
	}
	return []vps.Remedy{i.giveUp(text, s),
		remedy(
			"if the data in "+disk.Overlay+" is what counts, shut the VPS down, keep a copy of both files, and let "+
				"its definition name the overlay again",
			argv("virsh", "shutdown", i.id), argv("virsh", "edit", i.id),
		)}
}

// remediesMoved are the two ways out when a disk no longer uses its overlay: which image is
// right only the operator knows.
func (i *inspection) remediesMoved(s vps.Snapshot) []vps.Remedy {
	return []vps.Remedy{
		remedy(
			"if the disk should use its overlay, let the definition name it again",
			argv("virsh", "domblklist", "--inactive", i.id), argv("virsh", "edit", i.id),
		),
		i.giveUp("if the new image is right, give the snapshot up", s),
	}
}

// remedyForeignOverlay merges somebody else's layers down onto our overlay.
func (i *inspection) remedyForeignOverlay(disk vps.SnapshotDisk, use hypervisor.Disk, live bool) vps.Remedy {
	text := "merge it into our overlay"
	var lines []vps.Command
	// libvirt commits an active layer only in a running QEMU; paused, the guest writes
	// nothing meanwhile.
	if !live {
		text += "; the VPS is off, so it is started with its processors stopped for that"
		lines = append(lines, argv("virsh", "start", i.id, "--paused"))
	}
	lines = append(
		lines,
		argv(
			"virsh", "blockcommit", i.id, disk.Target, "--top", use.Path, "--base", disk.Overlay, "--active", "--pivot",
			"--wait", "--verbose",
		),
	)
	if !live {
		lines = append(lines, argv("virsh", "destroy", i.id))
	}
	// Their objects name files that are then merged away, and they would go on to forbid
	// migration.
	for _, name := range i.dom.SnapshotNames {
		lines = append(lines, argv("virsh", "snapshot-delete", i.id, "--metadata", "--snapshotname", name))
	}
	return remedy(text+"; "+use.Path+" is of no use any more then", lines...)
}

// remedySnapshotObjects removes snapshots and checkpoints that others keep in libvirt and
// that forbid migration.
func (i *inspection) remedySnapshotObjects() vps.Remedy {
	w := remedy(
		"they keep migration and undefine from working; delete them if nobody needs them",
		argv("virsh", "snapshot-list", i.id),
	)
	for _, name := range i.dom.SnapshotNames {
		w.Commands = append(w.Commands, argv("virsh", "snapshot-delete", i.id, "--snapshotname", name))
	}
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
	return remedy("define it again while it runs", argv("sh", "-c", script, "sh", id))
}

// remedyOrphan never goes by itself: a file that came back with a backup or from
// another host may be the newest data of a VPS.
func remedyOrphan(text, path string) vps.Remedy {
	w := remedy(text + "; the daemon never does")
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
		"the present snapshot can be restored; delete it once it is not needed: that merges both, and the VPS keeps "+
			"its present data",
		argv("vpssnap", "delete", id),
	)
}

// remediesGone are for a record without its VPS.
func (i *inspection) remediesGone(snapshots []vps.Snapshot, other string) []vps.Remedy {
	back := remedy("if the VPS is to come back, define it with its id " + i.id + " and its disks as they were")
	// A panel that gave the VPS a new UUID: its disks are ours, its id is not.
	if other != "" {
		back = remedy("if "+other+" is the same VPS, undefine it and define it with the id "+i.id+" instead",
			argv("virsh", "dumpxml", "--inactive", "--security-info", other))
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
		remedy("if it is gone for good, end its option", argv("vpssnap", "option", "cancel", i.id, "--now")),
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
