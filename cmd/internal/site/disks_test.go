package site_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestDisksLeftOut takes a snapshot of a VPS with drives that it does not cover.
func TestDisksLeftOut(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	medium := filepath.Join(h.Lab.ImageDir(), "install.iso")
	h.must(os.WriteFile(medium, make([]byte, 2<<20), 0o600))
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20},
		{Target: "vdb", SizeBytes: 16 << 20, ReadOnly: true},
		{Target: "hda", Device: "cdrom", Format: "raw", Path: medium},
		{Target: "hdb", Device: "cdrom", Format: "raw"},
		{Target: "fda", Device: "floppy", Format: "raw", SizeBytes: 1440 << 10},
	}}, "running")
	out, stderr, code := h.CLI(t.Context(), "show", "web1", "-o", "json")
	if code != 0 {
		t.Fatalf("vpssnap show ends with %d: %s", code, stderr)
	}
	var shown api.VPS
	h.must(json.Unmarshal([]byte(out), &shown))
	got := map[string]string{}
	for _, d := range shown.Disks {
		got[d.Target] = fmt.Sprint(d.Included, d.Refused, " ", d.Reason)
	}
	for target, want := range map[string]string{
		"vda": "true false ", "vdb": "false false left out: read-only", "hda": "false false left out: a cdrom",
		"hdb": "false false left out: a cdrom", "fda": "false false left out: a floppy",
	} {
		if got[target] != want {
			t.Errorf("disk %s is shown as %q, want %q", target, got[target], want)
		}
	}
	before := h.look("web1")
	h.take("web1", api.TakeRequest{})
	files, err := h.OurFiles()
	h.must(err)
	if len(files) != 1 || !strings.HasPrefix(files[0], "web1-vda.qcow2.") {
		t.Errorf("the snapshot consists of %v", files)
	}
	h.restore("web1")
	h.delete("web1")
	h.same("after delete", "web1", before)
	h.clean("web1")
}

// TestDisksRefused asks for snapshots that cannot be: the answer names the disk
// and the reason, and nothing is changed.
func TestDisksRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	other := func(kind, source, more string) string {
		return "<disk type='" + kind + "' device='disk'><driver name='qemu' type='raw'/>" + source +
			"<target dev='vdb' bus='virtio'/>" + more + "</disk>"
	}
	for i, c := range []struct {
		spec lab.Spec
		want string
	}{
		{lab.Spec{Disks: []lab.DiskSpec{{Target: "vdb", SizeBytes: 1 << 20, Format: "raw", Shareable: true}}}, "disk vdb: the disk is shareable"},
		{lab.Spec{Disks: []lab.DiskSpec{{Target: "vdb", SizeBytes: 1 << 20, Extra: "<transient/>"}}}, "disk vdb: the disk is transient"},
		{lab.Spec{Devices: other("network", "<source protocol='nbd' name='x'><host name='127.0.0.1' port='10809'/></source>", "")},
			"disk vdb: the disk is of type network"},
		{lab.Spec{Devices: other("block", "<source dev='/dev/no-such-device'/>", "")}, "disk vdb: the disk is of type block"},
		{lab.Spec{Devices: other("file", "<source file='/var/lib/vm/luks.img'><encryption format='luks'>"+
			"<secret type='passphrase' uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/></encryption></source>", "")}, "disk vdb: the disk is encrypted"},
		{lab.Spec{Devices: other("file", "<source file='/var/lib/vm/all.img'><slices><slice type='storage' offset='0' size='1048576'/></slices></source>", "")},
			"disk vdb: the disk is a slice"},
	} {
		c.spec.Name = fmt.Sprintf("web%d", i)
		c.spec.Disks = append([]lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}, c.spec.Disks...)
		h.define(c.spec, "shut off")
		before := h.look(c.spec.Name)
		h.refused(api.CodeUnsupportedDisk, c.want)(h.Client.Take(t.Context(), c.spec.Name, api.TakeRequest{}))
		h.same("after a refused take", c.spec.Name, before)
		h.clean(c.spec.Name)
	}
}

// TestTransientVPS asks for the snapshot of a VPS without a persistent definition.
func TestTransientVPS(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	text, err := h.Lab.DomainXML(
		t.Context(), lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}},
	)
	h.must(err)
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(h.Lab.ImageDir(), "web1-vda.qcow2"), "1M")
	file := filepath.Join(h.Lab.Dir(), "web1.xml")
	h.must(os.WriteFile(file, []byte(text), 0o600))
	h.virsh("create", file)
	h.activate("web1")
	h.refused(api.CodeUnsupportedDisk, "not persistent")(h.Client.Take(t.Context(), "web1", api.TakeRequest{}))
	files, err := h.OurFiles()
	h.must(err)
	if len(files) > 0 || h.state("web1") != "running" {
		t.Errorf("the VPS is %s, with files %v", h.state("web1"), files)
	}
}

// activate activates the option of a VPS as soon as the daemon knows it.
func (h *host) activate(name string) {
	h.t.Helper()
	h.eventually("the daemon knows "+name, func() bool {
		_, err := h.Client.VPS(h.t.Context(), name)
		return err == nil
	})
	_, err := h.Client.PutOption(h.t.Context(), name, api.OptionOrder{State: "active", OrderRef: "order-1"})
	h.must(err)
}
