package main

import (
	"strings"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// blocks shows the VPS's disk as libvirt sees it, and returns the image that is
// written to.
func (p *play) blocks() string {
	printed := p.shell(0, "virsh", "domblklist", guest)
	for line := range strings.Lines(printed) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == "vda" {
			return words[1]
		}
	}
	p.expect(false, "virsh names no image of disk vda")
	return ""
}

// qemuPID is the process that runs the VPS.
func (p *play) qemuPID() int {
	if p.err != nil {
		return 0
	}
	pid, err := p.site.Lab.QEMUPID(guest)
	p.check(err)
	return pid
}

// current is the snapshot as the API tells it.
func (p *play) current() api.Snapshot {
	if p.err != nil {
		return api.Snapshot{}
	}
	s, err := p.site.Client.Snapshot(p.ctx, guest)
	p.check(err)
	return s
}

// record starts the program in the VPS that writes number after number, each
// flushed to the disk.
func (p *play) record() {
	if p.err != nil {
		return
	}
	last := p.lastRecord()
	p.prompt("guest# ", "record "+lab.RecordsFile+" &")
	p.check(p.site.Lab.StartRecorder(p.ctx, guest))
	p.awaitRecord(last + 1)
	p.note("it writes 1, 2, 3, ... and flushes each number to the disk")
}

// lastRecord is the last number that the VPS said is on its disk.
func (p *play) lastRecord() int {
	if p.err != nil {
		return 0
	}
	n, err := p.site.Lab.Acknowledged(guest)
	p.check(err)
	return n
}

func (p *play) awaitRecord(n int) {
	if p.err == nil {
		p.check(p.site.Lab.WaitAcknowledged(p.ctx, guest, n))
	}
}

// goesOnAfter proves that the VPS ran throughout what was done since it wrote
// the record before.
func (p *play) goesOnAfter(what string, before int) {
	p.awaitRecord(before + 1)
	pid, last := p.qemuPID(), p.lastRecord()
	p.expect(pid == p.qemu, "the VPS was restarted: its QEMU was process %d and is %d", p.qemu, pid)
	p.prove(
		"the VPS ran throughout the %s: QEMU is still process %d, records %d to %d were written meanwhile", what, pid,
		before, last,
	)
}

// isRestarted expects a new QEMU.
func (p *play) isRestarted() {
	pid := p.qemuPID()
	p.expect(pid != p.qemu, "the VPS was not restarted")
	p.note("the VPS was started anew: its QEMU was process %d and is %d", p.qemu, pid)
	p.qemu = pid
}

// complete expects every record up to n at least, without a gap.
func (p *play) complete(n int) {
	if p.err != nil {
		return
	}
	records, err := p.site.Lab.Records(p.ctx, guest)
	p.check(err)
	for i, r := range records {
		p.expect(r == i+1, "record %d of the VPS is %d", i+1, r)
	}
	p.expect(len(records) >= n, "the VPS has %d records; it had flushed %d", len(records), n)
	p.note("the VPS has its records 1 to %d, none missing", len(records))
}

// noFilesLeft expects that nothing of a snapshot lies beside the images.
func (p *play) noFilesLeft() {
	if p.err != nil {
		return
	}
	p.shell(0, "ls", p.site.Lab.ImageDir())
	files, err := p.site.OurFiles()
	p.check(err)
	p.expect(len(files) == 0, "files of the snapshot are left: %v", files)
}
