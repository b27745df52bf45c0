// Package hypervisortest is the contract of hypervisor.Host as a suite of
// tests. The real host and the fake both pass it, so what the daemon's tests see
// of the fake holds on the real one.
package hypervisortest

import (
	"testing"

	"vpssnapd/hypervisor"
)

// Fixture is a host under test, with the hands of its guests, its operators and
// of fate. A hand that cannot do its work ends the test.
type Fixture interface {
	// Host is the host under test.
	Host() hypervisor.Host
	// Reopen closes Host and opens another on the same machine, as when the
	// daemon is started again; guests and jobs are left alone.
	Reopen(t testing.TB)
	// ImageDir is where images lie.
	ImageDir() string

	// Define makes a persistent domain that is off, its disks filled with
	// zeros, and returns its id. Guests need no OS, and have no agent.
	Define(t testing.TB, s Spec) string
	// Redefine defines the domain with the very definition of Define again.
	Redefine(t testing.TB, id string)
	// Undefine removes the persistent definition and leaves the images.
	Undefine(t testing.TB, id string)

	// Write writes pattern over a range of a disk, as the guest when it runs, as
	// an operator when it is off. Offset and length are multiples of 4 KiB.
	Write(t testing.TB, id, target string, offset int64, pattern byte, length int64)
	// Read returns what the guest sees of a disk, in any state.
	Read(t testing.TB, id, target string, offset, length int64) []byte
	// ReadImage returns what a guest would see if path were its disk, backing
	// files included. Nobody has path open for writing.
	ReadImage(t testing.TB, path, format string, offset, length int64) []byte

	// KillGuest kills the domain's QEMU process and returns when that is gone.
	KillGuest(t testing.TB, id string)
	// RestartHypervisor kills libvirtd and starts it again; guests live on.
	RestartHypervisor(t testing.TB)
	// Forget is RestartHypervisor after which libvirt has forgotten that the domain runs, as
	// when it died in a pivot; remember is one after which it knows the domain again.
	Forget(t testing.TB, id string) (remember func())
	// AddPool defines a storage pool of a directory, which ends with the test.
	AddPool(t testing.TB, dir string)
	// HangDirectory makes a directory of images not answer, as a mount whose server is
	// gone, until answer.
	HangDirectory(t testing.TB, dir string) (answer func())
	// ManagedSave saves the guest's memory and ends its QEMU process, so that
	// a plain start would resume it.
	ManagedSave(t testing.TB, id string)
}

// Spec is a domain to define.
type Spec struct {
	Name  string
	Disks []DiskSpec
}

// DiskSpec is a disk of a domain to define. The name of the target tells the
// bus: vda is virtio, sda is SATA.
type DiskSpec struct {
	Target string
	Device string // "" is disk; or cdrom
	// Type of the source: "" is file. A domain with a network source is
	// defined and read only, never started.
	Type      string
	Format    string // "" is qcow2; or raw
	SizeBytes int64  // 0: the drive is empty
	// Backing makes a new qcow2 image on top of this one, a linked clone.
	Backing       string
	BackingFormat string
	ReadOnly      bool
	Shareable     bool
	// Path is what the source names, when nothing is to be made.
	Path string
}

// Run runs the suite on the host that open returns. open registers what ends the host
// with t.Cleanup. Tests run one after the other, on domains of their own; the host is
// shared, because a real one takes seconds to come up.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	b := &bench{fixture: open(t), news: make(chan struct{})}
	b.watch()
	t.Cleanup(func() {
		if err := b.fixture.Host().Close(); err != nil {
			t.Errorf("cannot close the host: %v", err)
		}
	})
	for _, group := range [][]test{reading, definition, images, power, taking, merging, offline, restoring, events} {
		for _, c := range group {
			t.Run(c.name, func(t *testing.T) { c.run(newSuite(t, b)) })
		}
	}
}

// test is one part of the contract.
type test struct {
	name string
	run  func(s *suite)
}
