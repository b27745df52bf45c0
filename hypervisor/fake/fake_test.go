package fake_test

import (
	"testing"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
	"vpssnapd/hypervisor/hypervisortest"
)

func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Fixture {
		dir := t.TempDir()
		return &fixture{dir: dir, host: open(t, dir)}
	})
}

func open(t testing.TB, dir string) *fake.Host {
	t.Helper()
	h, err := fake.Open(dir)
	must(t, err)
	h.MergeReadyAfter(2)
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture lends the fake's hands to the contract suite.
type fixture struct {
	dir  string
	host *fake.Host
}

func (f *fixture) Host() hypervisor.Host { return f.host }

func (f *fixture) Reopen(t testing.TB) {
	t.Helper()
	must(t, f.host.Close())
	f.host = open(t, f.dir)
}

func (f *fixture) ImageDir() string { return f.host.ImageDir() }

func (f *fixture) Define(t testing.TB, s hypervisortest.Spec) string {
	t.Helper()
	var disks []hypervisor.Disk
	for _, d := range s.Disks {
		disk := hypervisor.Disk{
			Target: d.Target, Device: d.Device, Type: d.Type, Format: d.Format,
			SizeBytes: d.SizeBytes, Path: d.Path, ReadOnly: d.ReadOnly, Shareable: d.Shareable,
		}
		if d.Backing != "" {
			disk.Chain = []hypervisor.Layer{{Path: d.Backing, Format: d.BackingFormat}}
		}
		disks = append(disks, disk)
	}
	id, err := f.host.Define(s.Name, disks...)
	must(t, err)
	return id
}

func (f *fixture) AddPool(t testing.TB, dir string) { t.Helper(); must(t, f.host.AddPool(dir)) }

func (f *fixture) Redefine(t testing.TB, id string)    { t.Helper(); must(t, f.host.Redefine(id)) }
func (f *fixture) Undefine(t testing.TB, id string)    { t.Helper(); must(t, f.host.Undefine(id)) }
func (f *fixture) KillGuest(t testing.TB, id string)   { t.Helper(); must(t, f.host.KillGuest(id)) }
func (f *fixture) ManagedSave(t testing.TB, id string) { t.Helper(); must(t, f.host.ManagedSave(id)) }

func (f *fixture) Forget(t testing.TB, id string) (remember func()) {
	t.Helper()
	must(t, f.host.Forget(id))
	f.RestartHypervisor(t)
	return func() { t.Helper(); must(t, f.host.Remember(id)); f.RestartHypervisor(t) }
}

func (f *fixture) HangDirectory(_ testing.TB, dir string) (answer func()) {
	return f.host.HangDirectory(dir)
}

func (f *fixture) RestartHypervisor(testing.TB) {
	f.host.Disconnect()
	f.host.Connect()
}

func (f *fixture) Write(t testing.TB, id, target string, offset int64, pattern byte, length int64) {
	t.Helper()
	must(t, f.host.Write(id, target, offset, pattern, length))
}

func (f *fixture) Read(t testing.TB, id, target string, offset, length int64) []byte {
	t.Helper()
	data, err := f.host.Read(id, target, offset, length)
	must(t, err)
	return data
}

func (f *fixture) ReadImage(t testing.TB, path, format string, offset, length int64) []byte {
	t.Helper()
	data, err := f.host.ReadImage(path, format, offset, length)
	must(t, err)
	return data
}
