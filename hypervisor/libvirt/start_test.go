package libvirt_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
)

// TestWhatIsTriedBeforeAStop (FAULTS.md row 34): what would keep a domain off is found while
// it runs, and looking changes neither it nor its definition.
func TestWhatIsTriedBeforeAStop(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	emulator := filepath.Join(l.Dir(), "qemu")
	must(t, os.Symlink("/usr/bin/qemu-system-x86_64", emulator))
	id, err := l.DefineDomain(t.Context(), lab.Spec{
		Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}, VNCPassword: "s<e'c\"&t",
		Devices: `<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
			<source file='/nowhere/optional.iso' startupPolicy='optional'/><target dev='sda' bus='sata'/><readonly/></disk>`,
	})
	must(t, err)
	dump := func() string { return virsh(t, l, "dumpxml", "--inactive", "--security-info", id) }
	text := dump()
	was := text[strings.Index(text, "<emulator>")+len("<emulator>") : strings.Index(text, "</emulator>")]
	must(t, l.DefineXML(t.Context(), strings.Replace(text, was, emulator, 1)))
	must(t, h.Start(t.Context(), id, false))
	before := dump()
	tries := func() error {
		if err := h.SaveDefinition(t.Context(), id); err != nil {
			return err
		}
		return h.CheckStart(t.Context(), id)
	}
	must(t, tries())
	if after := dump(); after != before {
		t.Errorf("the definition was\n%s\nand is\n%s", before, after)
	}
	bridge := "vps" + id[:8]
	for _, c := range []struct {
		name  string
		spoil func() (heal func())
		want  error
	}{
		{"nowhere to save", func() func() { return spoilSaving(t, l, "web1") }, hypervisor.ErrPersistence},
		{"the emulator is gone", func() func() {
			must(t, os.Remove(emulator))
			return func() { must(t, os.Symlink("/usr/bin/qemu-system-x86_64", emulator)) }
		}, hypervisor.ErrPersistence},
		{"the bridge is gone", func() func() {
			nic := filepath.Join(t.TempDir(), "nic.xml")
			must(t, os.WriteFile(nic, []byte("<interface type='bridge'><source bridge='"+bridge+"'/></interface>"), 0o600))
			virsh(t, l, "attach-device", id, nic, "--config")
			return func() { must(t, l.DefineXML(t.Context(), before)) }
		}, hypervisor.ErrNoStart},
	} {
		heal := c.spoil()
		if err := tries(); err == nil {
			t.Errorf("%s: nothing was found", c.name)
		} else {
			is(t, err, c.want)
			t.Logf("%s: %v", c.name, err)
		}
		if d, err := h.Domain(t.Context(), id); err != nil || d.State != hypervisor.Running {
			t.Errorf("%s: it is %s, %v", c.name, d.State, err)
		}
		heal()
		must(t, tries())
	}
}
