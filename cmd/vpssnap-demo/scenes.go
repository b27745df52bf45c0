package main

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// scenes are the life of a snapshot, in order.
var scenes = []scene{
	{"A host of our own: a private libvirtd, and vpssnapd on it", (*play).open},
	{"A VPS boots; nobody has ordered the snapshot option for it", (*play).boot},
	{"Without an active option no snapshot can be taken", (*play).refuseWithoutOption},
	{"The order system activates the option", (*play).activate},
	{"The customer has a letter, and a program that writes all the time", (*play).write},
	{"The snapshot is taken while the VPS runs", (*play).take},
	{"There is one snapshot per VPS: a second take is refused", (*play).refuseSecond},
	{"An upgrade goes wrong: it adds a file and destroys the letter", (*play).destroy},
	{"A panel asks by REST; what would be lost must be confirmed first", (*play).askByREST},
	{"The restore: asked on a terminal, the VPS is put back and started", (*play).restore},
	{"The restore can be undone", (*play).undo},
	{"The snapshot is deleted while the VPS runs and writes", (*play).delete},
	{"The journal has it all", (*play).journal},
}

// closing is what comes after a pause that the audience may ask for.
var closing = []scene{
	{"Everything is cleaned up", (*play).cleanUp},
}

const letter = "Dear customer, all is well."

// config keeps the demo's room for snapshots small enough for any machine.
const config = `[snapshot]
headroom = "256 MiB"

[offer]
amount = 299
currency = "EUR"
period = "month"
`

func (p *play) open() {
	s, err := site.Open(p.ctx, site.Options{BinDir: p.bin, Config: config})
	p.site = s
	if p.check(err); p.err != nil {
		return
	}
	p.libvirtd, err = s.Lab.LibvirtdPID()
	p.check(err)
	p.shell(0, "virsh", "version")
	p.says(p.vpssnap(0, "host"), "Connected to libvirt")
}

func (p *play) boot() {
	_, err := p.site.Lab.DefineDomain(p.ctx, lab.Spec{
		Name: guest, OS: true,
		Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 1 << 30, Ext4: true}},
	})
	p.check(err)
	p.shell(0, "virsh", "start", guest)
	if p.err != nil {
		return
	}
	p.check(p.site.Lab.WaitAgent(p.ctx, guest))
	p.qemu = p.qemuPID()
	p.note("it has booted, and its guest agent answers; its QEMU is process %d", p.qemu)
	p.image = p.blocks()
	p.says(p.vpssnap(0, "list"), guest, "running")
}

func (p *play) refuseWithoutOption() {
	p.says(p.vpssnap(4, "take", guest), "no active snapshot option")
	p.prove("a take without an active option is refused")
}

func (p *play) activate() {
	printed := p.vpssnap(
		0, "option", "activate", guest, "--order-ref", "A-1001", "--email", "jo@example.com", "--locale", "fr",
	)
	p.says(printed, "active", "2.99 EUR per month", "A-1001")
}

func (p *play) write() {
	p.in(0, "echo '"+letter+"' >letter.txt; sync")
	p.says(p.in(0, "cat letter.txt"), letter)
	p.record()
}

func (p *play) take() {
	before := p.lastRecord()
	printed := p.vpssnap(0, "take", guest, "--description", "before the upgrade")
	p.goesOnAfter("take", before)
	p.says(printed, "the snapshot was taken")
	p.says(p.vpssnap(0, "show", guest), "before the upgrade", "filesystem")
	s := p.current()
	p.snapshot = s.ID
	p.expect(s.Consistency == api.ConsistencyFilesystem, "the guest was not frozen")
	p.prove("it was taken %s with consistency %q: the guest's file systems stood frozen for %d ms",
		s.CreatedAt.Local().Format("2006-01-02 15:04:05 MST"), s.Consistency, s.FreezeMS)
	p.expect(p.blocks() != p.image, "the VPS still writes into %s", p.image)
}

func (p *play) refuseSecond() {
	p.says(p.vpssnap(4, "take", guest), "has a snapshot already")
	p.prove("a second take is refused")
}

func (p *play) destroy() {
	p.in(0, "dd if=/dev/urandom of=upgrade.bin bs=1M count=24 conv=fsync")
	p.in(0, "rm letter.txt; sync")
	p.says(p.in(0, "ls -l"), "upgrade.bin")
	p.says(p.in(1, "cat letter.txt"), "No such file")
	p.says(p.vpssnap(0, "list"), "available", "MiB")
}

func (p *play) askByREST() {
	path := "/v1/vps/" + guest + "/snapshot"
	p.says(p.rest(200, "GET", path, ""), p.snapshot, `"state": "available"`)
	printed := p.rest(422, "POST", path+"/restore", "{}")
	p.says(printed, "confirmation_required", "can be undone", p.snapshot)
	p.expect(p.qemuPID() == p.qemu, "the VPS was restarted")
	p.prove("a restore that was not confirmed does nothing but say what would be lost")
}

func (p *play) restore() {
	p.acknowledged = p.lastRecord()
	printed := p.answering("yes", 0, "restore", guest)
	p.says(printed, "Type yes", "the snapshot was restored", "answers again")
	p.says(p.in(0, "cat letter.txt"), letter)
	p.says(p.in(1, "ls upgrade.bin"), "No such file")
	p.isRestarted()
	p.prove("after the restore the letter is back, and the later file is gone")
}

func (p *play) undo() {
	p.says(p.vpssnap(0, "undo-restore", guest, "--yes"), "the restore was undone")
	p.says(p.in(0, "ls -l"), "upgrade.bin")
	p.in(1, "ls letter.txt")
	p.isRestarted()
	p.complete(p.acknowledged)
	p.prove("the undo brought back the later file, and all %d records that the VPS had flushed", p.acknowledged)
}

func (p *play) delete() {
	p.record()
	before := p.lastRecord()
	printed := p.vpssnap(0, "delete", guest, "--yes")
	p.says(printed, "the snapshot was deleted")
	p.goesOnAfter("delete", before)
	p.complete(p.lastRecord())
	p.says(p.in(0, "ls -l"), "upgrade.bin")
	p.expect(p.blocks() == p.image, "the VPS does not write into %s again", p.image)
	p.noFilesLeft()
	p.says(p.vpssnap(0, "list"), "running")
}

func (p *play) journal() {
	p.says(p.vpssnap(0, "messages", guest), "The snapshot was taken", "was put back", "was undone", "was deleted")
}

func (p *play) cleanUp() {
	pids := []int{p.site.DaemonPID(), p.libvirtd, p.qemu}
	dir := p.site.Lab.Dir()
	p.check(p.close())
	for _, pid := range pids {
		_, err := os.Stat("/proc/" + strconv.Itoa(pid))
		p.expect(errors.Is(err, os.ErrNotExist), "process %d still runs", pid)
	}
	_, err := os.Stat(dir)
	p.expect(errors.Is(err, os.ErrNotExist), "%s is still there", dir)
	mounts, err := os.ReadFile("/proc/self/mounts")
	p.check(err)
	p.expect(!strings.Contains(string(mounts), dir), "something below %s is still mounted", dir)
	p.prove("no process, mount or file of the demo is left")
}
