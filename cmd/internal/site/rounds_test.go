package site_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestRounds uses the snapshot of a running VPS again and again: nothing grows.
func TestRounds(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	before := h.look("web1")
	var files, memory int
	for round := range 25 {
		h.write(byte(round))
		h.take("web1", api.TakeRequest{})
		if n := len(h.chain(h.path("web1", "vda"))); n != 2 {
			t.Fatalf("round %d: the chain has %d images", round, n)
		}
		if round%5 == 4 {
			h.write(0xff)
			h.restore("web1")
			h.must(h.Lab.CheckDisk(t.Context(), "web1", "vda", 0, byte(round), 64<<10))
		}
		h.delete("web1")
		if round%5 == 4 { // looking takes longer than the rest
			h.same(fmt.Sprintf("round %d", round), "web1", before)
		}
		if round == 9 {
			files, memory = h.openFiles(), h.memory()
		}
	}
	h.must(h.Lab.CheckDisk(t.Context(), "web1", "vda", 0, 24, 64<<10))
	if n := h.openFiles(); n > files+3 {
		t.Errorf("the daemon has %d files open, it had %d after 10 rounds", n, files)
	}
	if n := h.memory(); n > memory+(16<<10) {
		t.Errorf("the daemon holds %d KiB, it held %d after 10 rounds", n, memory)
	}
	h.clean("web1")
}

// write fills the beginning of web1's disk as the guest would. lab.WriteDisk
// does the same with care, and takes more time than a whole take.
func (h *host) write(pattern byte) {
	h.t.Helper()
	_, err := h.Lab.HMP(h.t.Context(), "web1",
		fmt.Sprintf("qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P %d 0 64k\"", pattern))
	h.must(err)
}

// openFiles is how many files the daemon has open.
func (h *host) openFiles() int {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(h.DaemonPID()), "fd"))
	h.must(err)
	return len(entries)
}

// memory is the daemon's resident memory in KiB.
func (h *host) memory() int {
	h.t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(h.DaemonPID()), "status"))
	h.must(err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	_, err = fmt.Sscan(rest, &kib)
	h.must(err)
	return kib
}
