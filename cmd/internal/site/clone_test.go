package site_test

import (
	"os"
	"path/filepath"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestLinkedClones has two VPS whose disks lie on one golden image: the image
// never changes, and afterwards each chain is as it was.
func TestLinkedClones(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	golden := filepath.Join(h.Lab.ImageDir(), "golden.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", golden, "64M")
	h.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 71 0 8M", golden)
	h.must(os.Chmod(golden, 0o444))
	before := h.sum(golden)
	for _, c := range []struct{ name, state, format string }{{"clone1", "running", "qcow2"}, {"clone2", "shut off", "qcow2"}} {
		h.define(lab.Spec{Name: c.name, Disks: []lab.DiskSpec{
			{Target: "vda", SizeBytes: 64 << 20, Backing: golden, BackingFormat: c.format}}}, c.state)
	}
	for _, name := range []string{"clone1", "clone2"} {
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 1<<20, 'a', 1<<20))
		look := h.look(name)
		first := h.hash(name)
		h.take(name, api.TakeRequest{})
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 2<<20, 'b', 1<<20))
		second := h.hash(name)
		h.restore(name)
		h.hashes("after restore", name, first)
		h.done(h.Client.UndoRestore(ctx, name))
		h.hashes("after undo", name, second)
		h.take(name, api.TakeRequest{Replace: true})
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 3<<20, 'c', 1<<20))
		third := h.hash(name)
		h.delete(name)
		h.hashes("after delete", name, third)
		h.same("after delete", name, look)
		h.clean(name)
	}
	if h.sum(golden) != before {
		t.Error("the golden image has changed")
	}
}

// hash is the hash of the first disk as the guest sees it.
func (h *host) hash(name string) string {
	h.t.Helper()
	sum, err := h.Lab.HashDisk(h.t.Context(), name, "vda")
	h.must(err)
	return sum
}

// hashes fails unless the first disk hashes to want.
func (h *host) hashes(what, name, want string) {
	h.t.Helper()
	if got := h.hash(name); got != want {
		h.t.Errorf("%s: the disk of %s hashes to %s, want %s", what, name, got, want)
	}
}
