package site_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestNVRAM holds that UEFI variables go back with the disks.
func TestNVRAM(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", UEFI: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "paused")
	h.virsh("destroy", "web1")
	file := h.Lab.NVRAMFile("web1")
	alter := func(pattern byte) string {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		h.must(err)
		_, err = f.WriteAt([]byte{pattern, pattern, pattern}, 100<<10)
		h.must(err)
		h.must(f.Close())
		return h.sum(file)
	}
	holds := func(what, want string) {
		t.Helper()
		if h.sum(file) != want {
			t.Errorf("%s: the variables are not the expected ones", what)
		}
	}
	first := alter('a')
	h.take("web1", api.TakeRequest{})
	second := alter('b')
	h.restore("web1")
	holds("after restore", first)
	h.done(h.Client.UndoRestore(t.Context(), "web1"))
	holds("after undo", second)
	h.restore("web1")
	h.take("web1", api.TakeRequest{Replace: true})
	third := alter('c')
	h.restore("web1")
	holds("after restore of the replaced", first)
	h.done(h.Client.UndoRestore(t.Context(), "web1"))
	h.delete("web1")
	holds("after delete", third)
	h.clean("web1")
	h.virsh("start", "--paused", "web1")
}

// TestTPM asks for the snapshot of a VPS with a TPM. libvirt defines one only
// where swtpm is installed, but it reads such a definition anywhere.
func TestTPM(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	h.must(h.Lab.KillLibvirtd())
	file := filepath.Join(h.Lab.ConfigDir(), "qemu/web1.xml")
	text, err := os.ReadFile(file)
	h.must(err)
	tpm := []byte("<devices><tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>")
	h.must(os.WriteFile(file, bytes.Replace(text, []byte("<devices>"), tpm, 1), 0o600))
	h.must(h.Lab.StartLibvirtd(ctx))
	h.reconnected()
	h.refused(api.CodeUnsupportedDisk, "emulated TPM")(h.Client.Take(ctx, "web1", api.TakeRequest{}))
	h.clean("web1")
}

// TestNVRAMNotMadeYet takes the snapshot of a VPS that has never been started.
func TestNVRAMNotMadeYet(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", UEFI: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "shut off")
	h.take("web1", api.TakeRequest{})
	h.virsh("start", "--paused", "web1")
	h.restore("web1")
	h.delete("web1")
	h.clean("web1")
}
