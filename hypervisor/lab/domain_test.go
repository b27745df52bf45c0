package lab

import (
	"os"
	"strings"
	"testing"
)

func TestImagesArePrivateAndNeverOverwritten(t *testing.T) {
	l := startLab(t)
	spec := Spec{Name: "web1", Disks: []DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20},
		{Target: "vdb", SizeBytes: 16 << 20, Format: "raw", Ext4: true},
		{Target: "vdc", SizeBytes: 16 << 20, Ext4: true},
	}}
	_, err := l.DefineDomain(t.Context(), spec)
	must(t, err)
	entries, err := os.ReadDir(l.ImageDir())
	must(t, err)
	if len(entries) != len(spec.Disks) {
		t.Errorf("%d disks made %d files", len(spec.Disks), len(entries))
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	before := hashDisk(t, l, "web1", "vdc")
	if _, err := l.DefineDomain(t.Context(), spec); err == nil {
		t.Error("an image that exists is made anew")
	}
	if hashDisk(t, l, "web1", "vdc") != before {
		t.Error("an image was overwritten")
	}
}

func TestDefinitionHoldsWhatWasAsked(t *testing.T) {
	l := startLab(t)
	spec := smallGuest("web<1>&'\"")
	spec.VNCPassword = "geh&im"
	spec.Extra = "<metadata><x:y xmlns:x='urn:x'/></metadata>"
	spec.Disks[0].Extra = "<iotune><total_bytes_sec>1048576</total_bytes_sec></iotune>"
	id, err := l.DefineDomain(t.Context(), spec)
	must(t, err)
	_, err = l.Virsh(t.Context(), "start", id)
	must(t, err)
	if name, err := l.Virsh(t.Context(), "domname", id); err != nil || strings.TrimSpace(name) != spec.Name {
		t.Errorf("the guest is called %q, %v", name, err)
	}
	text, err := l.Virsh(t.Context(), "dumpxml", "--security-info", id)
	must(t, err)
	for _, want := range []string{"geh&amp;im", "urn:x", "1048576"} {
		if !strings.Contains(text, want) {
			t.Errorf("the definition lacks %s", want)
		}
	}
	if _, err := l.DefineDomain(t.Context(), Spec{Name: "../web1"}); err == nil {
		t.Error("a path is taken for a guest's name")
	}
}

func TestUEFIGuestKeepsItsVariablesBesideItsDisks(t *testing.T) {
	l := startLab(t)
	spec := smallGuest("web1")
	spec.UEFI = true
	startGuest(t, l, spec)
	text, err := l.Virsh(t.Context(), "dumpxml", "web1")
	must(t, err)
	if !strings.Contains(text, l.NVRAMFile("web1")) {
		t.Error("the definition does not name the file with the variables")
	}
	if info, err := os.Stat(l.NVRAMFile("web1")); err != nil || info.Size() == 0 {
		t.Errorf("no variables: %v", err)
	}
}
