package libvirt_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/hypervisortest"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
)

func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Fixture {
		l := startLab(t)
		return &fixture{Lab: l, host: open(t, l), guests: map[string]guest{}}
	})
}

// startLab gives the test a libvirtd that ends with it.
func startLab(t testing.TB) *lab.Lab {
	t.Helper()
	l, err := lab.Start(context.Background(), lab.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	return l
}

func open(t testing.TB, l *lab.Lab) *libvirt.Host {
	t.Helper()
	images, err := qemuimg.New()
	must(t, err)
	h, err := libvirt.Open(context.Background(), libvirt.Config{
		URI:       l.URI(),
		ConfigDir: filepath.Join(l.ConfigDir(), "qemu"),
		Images:    images,
		Logger:    slog.New(slog.DiscardHandler),
	})
	must(t, err)
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture lends the lab's hands to the contract suite.
type fixture struct {
	*lab.Lab
	host   *libvirt.Host
	guests map[string]guest
}

// guest is what the fixture remembers of a domain: its definition, as libvirt
// wrote it down first.
type guest struct{ name, xml string }

func (f *fixture) Host() hypervisor.Host { return f.host }

func (f *fixture) Reopen(t testing.TB) {
	t.Helper()
	must(t, f.host.Close())
	f.host = open(t, f.Lab)
}

func (f *fixture) Define(t testing.TB, s hypervisortest.Spec) string {
	t.Helper()
	spec := lab.Spec{Name: s.Name}
	for _, d := range s.Disks {
		if d.Type == "network" {
			spec.Devices += fmt.Sprintf(`<disk type='network' device='disk'><driver name='qemu' type='%s'/>
				<source protocol='nbd' name='x'><host name='localhost' port='10809'/></source>
				<target dev='%s' bus='virtio'/></disk>`, d.Format, d.Target)
			continue
		}
		spec.Disks = append(spec.Disks, lab.DiskSpec{
			Target: d.Target, Device: d.Device, Format: d.Format, SizeBytes: d.SizeBytes,
			Path: d.Path, Backing: d.Backing, BackingFormat: d.BackingFormat, ReadOnly: d.ReadOnly, Shareable: d.Shareable,
		})
	}
	id, err := f.DefineDomain(t.Context(), spec)
	must(t, err)
	xml, err := f.Virsh(t.Context(), "dumpxml", "--inactive", "--security-info", id)
	must(t, err)
	f.guests[id] = guest{s.Name, xml}
	return id
}

func (f *fixture) AddPool(t testing.TB, dir string) {
	t.Helper()
	_, err := f.Virsh(t.Context(), "pool-define-as", "templates", "dir", "--target", dir)
	must(t, err)
	t.Cleanup(func() {
		_, err := f.Virsh(context.Background(), "pool-undefine", "templates")
		must(t, err)
	})
}

func (f *fixture) Redefine(t testing.TB, id string) {
	t.Helper()
	must(t, f.DefineXML(t.Context(), f.guests[id].xml))
}

func (f *fixture) Forget(t testing.TB, id string) (remember func()) {
	t.Helper()
	again, err := f.ForgetDomain(t.Context(), f.guests[id].name)
	must(t, err)
	return func() { t.Helper(); must(t, again()) }
}

func (f *fixture) Undefine(t testing.TB, id string) {
	t.Helper()
	// Also called when the test is over and its context with it.
	_, err := f.Virsh(context.Background(), "undefine", "--managed-save", id)
	must(t, err)
}

func (f *fixture) Write(t testing.TB, id, target string, offset int64, pattern byte, length int64) {
	t.Helper()
	must(t, f.WriteDisk(t.Context(), id, target, offset, pattern, length))
}

func (f *fixture) Read(t testing.TB, id, target string, offset, length int64) []byte {
	t.Helper()
	data, err := f.ReadDisk(t.Context(), id, target, offset, length)
	must(t, err)
	return data
}

func (f *fixture) ReadImage(t testing.TB, path, format string, offset, length int64) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-U", "-f", format, "-O", "raw", path, raw).
		CombinedOutput()
	if err != nil {
		t.Fatalf("cannot read %s: %v: %s", path, err, strings.TrimSpace(string(out)))
	}
	file, err := os.Open(raw)
	must(t, err)
	defer file.Close()
	data := make([]byte, length)
	_, err = file.ReadAt(data, offset)
	must(t, err)
	return data
}

func (f *fixture) KillGuest(t testing.TB, id string) {
	t.Helper()
	must(t, f.KillQEMU(f.guests[id].name))
}

func (f *fixture) HangDirectory(t testing.TB, dir string) (answer func()) {
	t.Helper()
	end, err := lab.HangDirectory(dir)
	must(t, err)
	answer = sync.OnceFunc(func() { must(t, end()) })
	t.Cleanup(answer)
	return answer
}

func (f *fixture) RestartHypervisor(t testing.TB) {
	t.Helper()
	must(t, f.KillLibvirtd())
	must(t, f.StartLibvirtd(t.Context()))
}

func (f *fixture) ManagedSave(t testing.TB, id string) {
	t.Helper()
	_, err := f.Virsh(t.Context(), "managedsave", id)
	must(t, err)
}
