package site_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestOthersSee holds what virsh shows against what is promised, at every stage,
// and does with virsh what operators and panels do to a VPS that has a snapshot.
func TestOthersSee(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	for _, state := range []string{"running", "shut off"} {
		name := strings.ReplaceAll(state, " ", "")
		t.Run(name, func(t *testing.T) { (&host{h.Site, t}).othersSee(name, state) })
	}
	t.Run("undefine off", func(t *testing.T) { (&host{h.Site, t}).undefineOff("gone1") })
	t.Run("undefine running", func(t *testing.T) { (&host{h.Site, t}).undefineRunning("gone2") })
}

func (h *host) othersSee(name, state string) {
	const secret = "s3cret"
	h.define(lab.Spec{Name: name, VNCPassword: secret, Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20}, {Target: "vdb", SizeBytes: 16 << 20, Format: "raw"}}}, state)
	before := h.look(name)
	stage := func(what string) {
		h.t.Helper()
		if got := h.state(name); got != state {
			h.t.Errorf("%s: the VPS is %s, it was %s", what, got, state)
		}
		if list := h.virsh("snapshot-list", name, "--name"); strings.TrimSpace(list) != "" {
			h.t.Errorf("%s: libvirt has snapshots: %s", what, list)
		}
		h.virsh("dumpxml", "--migratable", name)
		if !strings.Contains(h.virsh("dumpxml", "--inactive", "--security-info", name), "passwd='"+secret+"'") {
			h.t.Errorf("%s: the VNC password is lost", what)
		}
	}
	h.take(name, api.TakeRequest{})
	stage("after take")
	h.private()
	overlays := h.virsh("domblklist", name)
	if !strings.Contains(overlays, name+"-vda.qcow2.vpssnap-") || !strings.Contains(overlays, name+"-vdb.raw.vpssnap-") {
		h.t.Errorf("after take: the disks are\n%s", overlays)
	}
	if inactive := h.virsh("domblklist", "--inactive", name); inactive != overlays {
		h.t.Errorf("after take: the next boot uses\n%s\ninstead of\n%s", inactive, overlays)
	}
	h.restore(name)
	stage("after restore")
	if got := h.virsh("domblklist", name); got != overlays {
		h.t.Errorf("after restore: the disks are\n%s\nand were\n%s", got, overlays)
	}
	h.private()
	h.done(h.Client.UndoRestore(h.t.Context(), name))
	stage("after undo")
	h.delete(name)
	stage("after delete")
	h.same("after delete", name, before)
	h.clean(name)
}

// private fails if anybody but its owner may read a file of a snapshot. libvirt
// itself makes such files readable for all when the VPS is off (CVE-2025-13193).
func (h *host) private() {
	h.t.Helper()
	files, err := h.OurFiles()
	h.must(err)
	for _, name := range files {
		info, err := os.Stat(filepath.Join(h.Lab.ImageDir(), name))
		if h.must(err); info.Mode().Perm() != 0o600 {
			h.t.Errorf("%s has the mode %o", name, info.Mode().Perm())
		}
	}
}

// undefineOff undefines a VPS that has a snapshot and defines it again, from
// before the snapshot, as a panel does.
func (h *host) undefineOff(name string) {
	ctx := h.t.Context()
	h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "shut off")
	old := h.virsh("dumpxml", name)
	h.take(name, api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'b', 1<<20))
	overlay := h.path(name, "vda")
	h.undefine(name)
	if _, err := os.Stat(overlay); err != nil {
		h.t.Errorf("the overlay of a VPS that was undefined: %v", err)
	}
	h.must(h.Lab.DefineXML(ctx, old))
	h.eventually("the definition names the overlay again", func() bool { return h.path(name, "vda") == overlay })
	h.delete(name)
	h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', 1<<20))
	h.clean(name)
}

// undefineRunning makes a VPS transient that has a snapshot. A delete or a
// restore could not be finished then, so they are refused before they begin.
func (h *host) undefineRunning(name string) {
	ctx := h.t.Context()
	h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	h.take(name, api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'b', 1<<20))
	definition := h.virsh("dumpxml", "--inactive", name)
	h.virsh("undefine", name)
	h.eventually("the daemon sees that it is transient", func() bool {
		v, err := h.Client.VPS(ctx, name)
		return err == nil && !v.Persistent
	})
	h.refused(api.CodeVPSChanged, "persistent")(h.Client.Delete(ctx, name))
	s, err := h.Client.Snapshot(ctx, name)
	h.must(err)
	h.refused(api.CodeVPSChanged, "")(h.Client.Restore(ctx, name, api.RestoreRequest{Confirm: s.ID}))
	if got := h.state(name); got != "running" {
		h.t.Errorf("the VPS is %s", got)
	}
	h.must(h.Lab.DefineXML(ctx, definition))
	h.eventually("the daemon sees that it is persistent", func() bool {
		v, err := h.Client.VPS(ctx, name)
		return err == nil && v.Persistent
	})
	h.delete(name)
	h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', 1<<20))
	h.clean(name)
}

// refused fails unless a call is refused with that code and a word of the reason.
func (h *host) refused(code api.Code, word string) func(api.Operation, error) {
	h.t.Helper()
	return func(op api.Operation, err error) {
		h.t.Helper()
		if client.CodeOf(err) != code || !strings.Contains(err.Error(), word) {
			h.t.Errorf("got %+v, %v; want %s with %q", op, err, code, word)
		}
	}
}

// reconnected waits until the daemon has read everything from a libvirtd that was away.
func (h *host) reconnected() {
	h.t.Helper()
	h.eventually("the daemon has libvirt again", func() bool {
		_, err := h.Client.ListVPS(h.t.Context())
		return err == nil
	})
}
