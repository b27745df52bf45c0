package libvirt_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
)

const (
	mib = int64(1) << 20
	// patience ends every waiting, far above what the slowest machine needs.
	patience = time.Minute
)

// host opens a host that the test closes.
func host(t *testing.T, l *lab.Lab) *libvirt.Host {
	t.Helper()
	h := open(t, l)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// await reads events until the one of that kind and domain.
func await(t *testing.T, h *libvirt.Host, kind hypervisor.EventKind, id string) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case e := <-h.Events():
			if e.Kind == kind && e.Domain == id {
				return
			}
		case <-late:
			t.Fatalf("no event %q of %q came", kind, id)
		}
	}
}

// until asks until the answer is yes.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	late := time.After(patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// define makes a domain with one qcow2 disk.
func define(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	id, err := l.DefineDomain(t.Context(), lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 8 * mib}}})
	must(t, err)
	return id
}

// overlay makes an overlay on the disk that the domain uses now.
func overlay(t *testing.T, l *lab.Lab, h *libvirt.Host, id, name string) (path string, base hypervisor.Disk) {
	t.Helper()
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	path, base = filepath.Join(l.ImageDir(), name), d.Disks[0]
	_, err = h.CreateOverlay(
		t.Context(),
		hypervisor.Overlay{Path: path, Base: base.Path, BaseFormat: base.Format, SizeBytes: base.SizeBytes},
	)
	must(t, err)
	return path, base
}

// take switches vda to a new overlay.
func take(t *testing.T, l *lab.Lab, h *libvirt.Host, id string) hypervisor.Merge {
	t.Helper()
	path, base := overlay(t, l, h, id, "over-"+id)
	must(t, h.SwitchToOverlays(t.Context(), id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: path}}))
	return hypervisor.Merge{Target: "vda", Top: path, Base: base.Path, Active: true}
}

// virsh runs virsh, as an operator would.
func virsh(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	out, err := l.Virsh(t.Context(), args...)
	must(t, err)
	return out
}

func TestOpenNeedsNoLibvirtd(t *testing.T) {
	l := startLab(t)
	id := define(t, l, "web1")
	must(t, l.KillLibvirtd())
	h := host(t, l)
	_, err := h.Domain(t.Context(), id)
	is(t, err, hypervisor.ErrUnavailable)
	is(t, h.Thaw(t.Context(), id, time.Second), hypervisor.ErrUnavailable)
	must(t, l.StartLibvirtd(t.Context()))
	await(t, h, hypervisor.EventConnected, "")
	must(t, h.Start(t.Context(), id, false))
	must(t, h.Suspend(t.Context(), id))
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	images, err := qemuimg.New()
	must(t, err)
	good := libvirt.Config{
		URI:       "qemu:///system",
		ConfigDir: "/etc/libvirt/qemu",
		Images:    images,
		Logger:    slog.New(slog.DiscardHandler),
	}
	for _, spoil := range []func(*libvirt.Config){
		func(c *libvirt.Config) { c.URI = "" },
		func(c *libvirt.Config) { c.ConfigDir = "qemu" },
		func(c *libvirt.Config) { c.Images = nil },
		func(c *libvirt.Config) { c.Logger = nil },
	} {
		c := good
		spoil(&c)
		if _, err := libvirt.Open(t.Context(), c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestKilledLibvirtdIsToldAtOnce(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, h.Start(t.Context(), id, false))
	// A stopped QEMU answers no monitor command: the call hangs in libvirtd.
	must(t, l.StopQEMU("web1"))
	done := make(chan error, 1)
	go func() { done <- h.Suspend(t.Context(), id) }()
	until(
		t, "the call to reach libvirtd",
		func() bool { return strings.Contains(virsh(t, l, "domcontrol", "web1"), "occupied") },
	)
	must(t, l.KillLibvirtd())
	is(t, <-done, hypervisor.ErrUnavailable)
	await(t, h, hypervisor.EventDisconnected, "")
	must(t, l.ContinueQEMU("web1"))
	must(t, l.StartLibvirtd(t.Context()))
	await(t, h, hypervisor.EventConnected, "")
	_, err := h.Domain(t.Context(), id)
	must(t, err)
}

// forEver is longer than any machine is busy: only what waits for ever reaches it.
const forEver = time.Minute

func TestHangingLibvirtdIsGivenUp(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, l.StopLibvirtd())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := h.Domain(ctx, id)
	is(t, err, hypervisor.ErrUnavailable)
	is(t, err, context.DeadlineExceeded)
	_, err = h.Domain(t.Context(), id)
	is(t, err, hypervisor.ErrUnavailable)
	await(t, h, hypervisor.EventDisconnected, "")
	must(t, l.ContinueLibvirtd())
	await(t, h, hypervisor.EventConnected, "")
	_, err = h.Domain(t.Context(), id)
	must(t, err)
}

func TestCloseDoesNotWaitForAHangingLibvirtd(t *testing.T) {
	l := startLab(t)
	h := open(t, l)
	must(t, l.StopLibvirtd())
	begun := time.Now()
	must(t, h.Close())
	must(t, h.Close())
	if took := time.Since(begun); took > forEver {
		t.Errorf("Close took %v", took)
	}
	if _, err := h.List(t.Context()); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	must(t, l.ContinueLibvirtd())
}

func TestEmergencyCallsPassStuckOnes(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	stuck, well := define(t, l, "stuck"), define(t, l, "well")
	must(t, h.Start(t.Context(), stuck, false))
	must(t, h.Start(t.Context(), well, false))
	must(t, l.StopQEMU("stuck"))
	// More calls than libvirtd works on for one connection.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range 8 {
		go func() { _, err := h.Domain(ctx, stuck); done <- err }()
	}
	until(
		t, "the calls to reach libvirtd",
		func() bool { return strings.Contains(virsh(t, l, "domcontrol", "stuck"), "occupied") },
	)
	must(t, h.Suspend(t.Context(), well))
	must(t, h.Resume(t.Context(), well))
	select {
	case err := <-done:
		t.Fatalf("suspend and resume came behind a call that was stuck (%v)", err)
	default:
	}
	cancel()
	for range 8 {
		is(t, <-done, context.Canceled)
	}
	must(t, l.ContinueQEMU("stuck"))
}

func TestPointDisksKeepsSecretsAndForeignParts(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	const secret = `s<e'c"&t`
	id, err := l.DefineDomain(t.Context(), lab.Spec{
		Name: "web1", VNCPassword: secret, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 8 * mib}},
		Extra: `<metadata><x:y xmlns:x="urn:x">é</x:y></metadata><description>one
two &lt;three></description>`,
	})
	must(t, err)
	before := virsh(t, l, "dumpxml", "--inactive", "--security-info", id)
	path, base := overlay(t, l, h, id, "over")
	must(t, h.PointDisks(t.Context(), id, []hypervisor.DiskSource{{Target: "vda", Path: path, Format: "qcow2"}}))
	after := virsh(t, l, "dumpxml", "--inactive", "--security-info", id)
	if want := strings.Replace(before, base.Path, path, 1); after != want {
		t.Errorf("the definition was\n%s\nand is\n%s", before, after)
	}
	if !strings.Contains(after, "passwd='s&lt;e&apos;c&quot;&amp;t'") {
		t.Errorf("the VNC password is lost:\n%s", after)
	}
}

// spoilSaving makes libvirt unable to save a definition, and returns what makes it able again.
func spoilSaving(t *testing.T, l *lab.Lab, name string) (heal func()) {
	t.Helper()
	// libvirt writes the new definition to this file before it renames it.
	block := filepath.Join(l.ConfigDir(), "qemu", name+".xml.new")
	must(t, os.Mkdir(block, 0o700))
	return func() { t.Helper(); must(t, os.Remove(block)) }
}

func TestADefinitionThatCannotBeSaved(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	path, base := overlay(t, l, h, id, "over")
	switches := []hypervisor.DiskSwitch{{Target: "vda", Overlay: path}}
	sources := []hypervisor.DiskSource{{Target: "vda", Path: path, Format: "qcow2"}}
	uses := func(live, next string) {
		t.Helper()
		d, err := h.Domain(t.Context(), id)
		must(t, err)
		if d.Disks[0].Path != live || d.PersistentDisks[0].Path != next {
			t.Errorf("vda is %s, and %s after the next boot", d.Disks[0].Path, d.PersistentDisks[0].Path)
		}
	}
	heal := spoilSaving(t, l, "web1")
	is(t, h.PointDisks(t.Context(), id, sources), hypervisor.ErrPersistence)
	uses(base.Path, base.Path)
	is(t, h.SwitchToOverlays(t.Context(), id, switches), hypervisor.ErrPersistence)
	uses(base.Path, base.Path)
	must(t, h.Start(t.Context(), id, false))
	must(t, h.SwitchToOverlays(t.Context(), id, switches))
	uses(path, path)
	is(t, h.SyncDefinition(t.Context(), id), hypervisor.ErrPersistence)
	heal()
	must(t, h.PointDisks(t.Context(), id, sources))
	must(t, h.SyncDefinition(t.Context(), id))
	uses(path, path)
}

func TestAMissingConfigDirIsNoPersistence(t *testing.T) {
	l := startLab(t)
	images, err := qemuimg.New()
	must(t, err)
	h, err := libvirt.Open(t.Context(), libvirt.Config{
		URI: l.URI(), ConfigDir: filepath.Join(l.Dir(), "nowhere"), Images: images, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	id := define(t, l, "web1")
	is(t, h.SyncDefinition(t.Context(), id), hypervisor.ErrPersistence)
}

func TestATransientDomainStaysTransient(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, h.Start(t.Context(), id, false))
	virsh(t, l, "undefine", id)
	is(t, h.PointDisks(t.Context(), id, nil), hypervisor.ErrPersistence)
	is(t, h.SyncDefinition(t.Context(), id), hypervisor.ErrPersistence)
	if d, err := h.Domain(t.Context(), id); err != nil || d.Persistent {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestHostConfinementIsTold(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, h.Start(t.Context(), id, false))
	merge := take(t, l, h, id)
	setImmutable(t, merge.Base, true)
	t.Cleanup(func() { setImmutable(t, merge.Base, false) })
	is(t, h.StartMerge(t.Context(), id, merge), hypervisor.ErrDenied)
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	if d.Disks[0].Path != merge.Top || d.Disks[0].Job || d.State != hypervisor.Running {
		t.Errorf("got %+v", d)
	}
}

// setImmutable makes the kernel deny all writing to a file, to root too, as AppArmor would.
func setImmutable(t *testing.T, path string, on bool) {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	flags, err := unix.IoctlGetUint32(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	must(t, err)
	const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
	flags &^= immutable
	if on {
		flags |= immutable
	}
	must(t, unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, int(flags)))
}

func TestMergeOfAnotherLayerThanMeantIsRefused(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, h.Start(t.Context(), id, false))
	merge := take(t, l, h, id)
	for _, spoil := range []func(*hypervisor.Merge){
		func(m *hypervisor.Merge) { m.Top, m.Base = m.Base, m.Top },
		func(m *hypervisor.Merge) { m.Base = m.Top },
		func(m *hypervisor.Merge) { m.Active = false },
		func(m *hypervisor.Merge) { m.Base += "x" },
		func(m *hypervisor.Merge) { m.Top = "" },
	} {
		bad := merge
		spoil(&bad)
		is(t, h.StartMerge(t.Context(), id, bad), hypervisor.ErrReplaced)
	}
	if job, err := h.MergeJob(t.Context(), id, "vda"); err != nil || job.Found {
		t.Errorf("a merge runs: %+v, %v", job, err)
	}
}

func TestAnotherOnesJobIsForeign(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	must(t, l.WriteDisk(t.Context(), "web1", "vda", 0, 7, 6*mib))
	must(t, h.Start(t.Context(), id, false))
	virsh(t, l, "undefine", id) // libvirt 9.0 copies disks of transient domains only
	virsh(t, l, "blockcopy", id, "vda", "--dest", filepath.Join(l.ImageDir(), "copy"), "--bytes", "--bandwidth", "65536")
	job, err := h.MergeJob(t.Context(), id, "vda")
	if err != nil || !job.Found || !job.Foreign || job.Ready {
		t.Errorf("got %+v, %v", job, err)
	}
	is(t, h.AbortMerge(t.Context(), id, "vda"), hypervisor.ErrBusy)
	is(t, h.Pivot(t.Context(), id, "vda"), hypervisor.ErrNotReady)
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	if !d.Disks[0].Job {
		t.Errorf("got %+v", d.Disks[0])
	}
	virsh(t, l, "blockjob", id, "vda", "--abort")
}

func TestWhatOthersLeftIsTold(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id := define(t, l, "web1")
	virsh(t, l, "autostart", id)
	virsh(t, l, "snapshot-create-as", id, "one")
	virsh(t, l, "snapshot-create-as", id, "two")
	must(t, h.Start(t.Context(), id, false))
	check := func(d hypervisor.Domain) {
		t.Helper()
		if !d.Autostart || d.ForeignSnapshots != 2 || d.Checkpoints != 0 || d.ManagedSave {
			t.Errorf("got %+v", d)
		}
	}
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	check(d)
	list, err := h.List(t.Context())
	must(t, err)
	check(list[0])
	virsh(t, l, "snapshot-delete", id, "one")
	virsh(t, l, "snapshot-delete", id, "two")
	virsh(t, l, "checkpoint-create-as", id, "three")
	for _, read := range []func() (hypervisor.Domain, error){
		func() (hypervisor.Domain, error) { return h.Domain(t.Context(), id) },
		func() (hypervisor.Domain, error) {
			list, err := h.List(t.Context())
			return list[0], err
		},
	} {
		if d, err := read(); err != nil || d.ForeignSnapshots != 0 || d.Checkpoints != 1 {
			t.Errorf("got %+v, %v", d, err)
		}
	}
}

func TestHostileImageNames(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	for i, name := range []string{"a,b", "a:b", "nbd:x", "json:{}", "with space", "-o", "naïve-名前", "%s", `q"u'o\te`, "<&>]]>", "vda[1]"} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(l.ImageDir(), name)
			must(t, os.WriteFile(base, make([]byte, mib), 0o600))
			domain := "web" + string(rune('a'+i))
			id, err := l.DefineDomain(
				t.Context(), lab.Spec{Name: domain, Disks: []lab.DiskSpec{{Target: "vda", Format: "raw", Path: base}}},
			)
			must(t, err)
			top, _ := overlay(t, l, h, id, name+"!")
			must(t, h.SwitchToOverlays(t.Context(), id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: top}}))
			must(t, h.Start(t.Context(), id, false))
			second, _ := overlay(t, l, h, id, name+"?")
			must(t, h.SwitchToOverlays(t.Context(), id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: second}}))
			d, err := h.Domain(t.Context(), id)
			must(t, err)
			below := []hypervisor.Layer{{Path: top, Format: "qcow2"}, {Path: base, Format: "raw"}}
			if !slices.Equal(d.Disks[0].Chain, below) {
				t.Errorf("the chain is %v, want %v", d.Disks[0].Chain, below)
			}
			must(t, h.StartMerge(t.Context(), id, hypervisor.Merge{Target: "vda", Top: top, Base: base}))
			until(t, "the merge below to end", func() bool {
				job, err := h.MergeJob(t.Context(), id, "vda")
				must(t, err)
				return !job.Found
			})
			must(t, h.StartMerge(t.Context(), id, hypervisor.Merge{Target: "vda", Top: second, Base: base, Active: true}))
			until(t, "the merge to be ready", func() bool {
				job, err := h.MergeJob(t.Context(), id, "vda")
				must(t, err)
				return job.Ready
			})
			must(t, h.Pivot(t.Context(), id, "vda"))
			must(t, h.SyncDefinition(t.Context(), id))
			d, err = h.Domain(t.Context(), id)
			must(t, err)
			if d.Disks[0].Path != base || d.PersistentDisks[0].Path != base || len(d.Disks[0].Chain) != 0 {
				t.Errorf("got %+v and %+v", d.Disks, d.PersistentDisks)
			}
			must(t, h.PowerOff(t.Context(), id))
		})
	}
}

func TestVariablesOfUEFIAreFound(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	id, err := l.DefineDomain(
		t.Context(), lab.Spec{Name: "web1", UEFI: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 8 * mib}}},
	)
	must(t, err)
	must(t, l.DefineXML(t.Context(), `<domain type='qemu'><name>auto</name><memory unit='MiB'>64</memory>
		<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features></domain>`))
	auto := strings.TrimSpace(virsh(t, l, "domuuid", "auto"))
	d, err := h.Domain(t.Context(), id)
	must(t, err)
	if d.NVRAM != l.NVRAMFile("web1") || d.NVRAMOther || d.TPM {
		t.Errorf("got %+v", d)
	}
	must(t, h.Start(t.Context(), auto, true))
	d, err = h.Domain(t.Context(), auto)
	must(t, err)
	if !strings.HasSuffix(d.NVRAM, "/auto_VARS.fd") || d.NVRAMOther {
		t.Errorf("got %+v", d)
	}
}
