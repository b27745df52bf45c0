package site_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestRawStaysRaw has a guest that writes a qcow2 header into its raw disk. The
// header names a file of the host, which must never show up in the disk.
func TestRawStaysRaw(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20, Format: "raw"}}}, "shut off")
	base := h.path("web1", "vda")
	secret := filepath.Join(h.Lab.ImageDir(), "secret")
	h.must(os.WriteFile(secret, make([]byte, 1<<20), 0o600))
	forged := filepath.Join(h.Lab.ImageDir(), "forged")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", forged, "1G")
	header, err := os.ReadFile(forged)
	h.must(err)
	f, err := os.OpenFile(base, os.O_WRONLY, 0)
	h.must(err)
	_, err = f.WriteAt(header, 0)
	h.must(err)
	h.must(f.Close())
	first := h.hash("web1")
	look := h.look("web1")
	for _, state := range []string{"running", "shut off"} {
		h.bring("web1", state)
		h.take("web1", api.TakeRequest{})
		chain := h.chain(h.path("web1", "vda"))
		if chain[0].BackingFormat != "raw" || chain[0].VirtualSize != 16<<20 {
			t.Errorf("%s: the overlay is %+v", state, chain[0])
		}
		h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 8<<20, 'b', 1<<20))
		h.restore("web1")
		h.hashes(state+": after restore", "web1", first)
		h.delete("web1")
		h.hashes(state+": after delete", "web1", first)
		h.same(state+": after delete", "web1", look)
		h.clean("web1")
	}
	if h.sum(base) != first {
		t.Error("the image is not what the guest wrote")
	}
}

// TestImagesRefused gives a VPS images that a customer might supply. What the
// header hides is refused by name, and no file is touched.
func TestImagesRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	image := h.path("web1", "vda")
	dir := h.Lab.ImageDir()
	base := filepath.Join(dir, "base.raw")
	h.must(os.WriteFile(base, make([]byte, 1<<20), 0o600))
	create := func(args ...string) [][]string {
		return [][]string{append([]string{"create", "-q", "-f", "qcow2"}, args...)}
	}
	plain := create(image, "1M")
	for _, c := range []struct {
		name string
		make [][]string
		want string
	}{
		{"data file", create("-o", "data_file="+filepath.Join(dir, "data.raw"), image, "1M"), "data_file"},
		{"json backing", create("-u", "-b", `json:{"driver":"nbd","server":{"type":"unix","path":"/x"}}`, "-F", "raw", image, "1M"), "not a plain local file"},
		{"nbd backing", create("-u", "-b", "nbd:unix:/x", "-F", "raw", image, "1M"), "not a plain local file"},
		{"other backing format", create("-u", "-b", base, "-F", "vmdk", image, "1M"), "vmdk"},
		{"missing backing", create("-u", "-b", filepath.Join(dir, "missing.raw"), "-F", "raw", image, "1M"), "cannot be read"},
		{"encrypted", create("--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", image, "1M"), "encrypted"},
		{"internal snapshot", append(plain, []string{"snapshot", "-c", "mine", image}), "1 internal snapshots"},
		{"bitmap", append(plain, []string{"bitmap", "--add", "-f", "qcow2", image, "b1"}), "1 persistent bitmaps"},
	} {
		h.must(os.Remove(image))
		for _, args := range c.make {
			h.make(args...)
		}
		before := h.sum(image)
		t.Run(c.name, func(t *testing.T) {
			h := &host{h.Site, t}
			h.refused(api.CodeUnsupportedDisk, c.want)(h.Client.Take(t.Context(), "web1", api.TakeRequest{}))
			if h.sum(image) != before {
				t.Error("the image was changed")
			}
			h.clean("web1")
		})
	}
	t.Run("not closed", func(t *testing.T) {
		h := &host{h.Site, t}
		h.must(os.Remove(image))
		h.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "1M")
		// It ends itself as if it were killed.
		_ = exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "abort", image).Run()
		h.refused(api.CodeUnsupportedDisk, "not closed")(h.Client.Take(t.Context(), "web1", api.TakeRequest{}))
		h.virsh("start", "web1") // as the remedy says
		h.take("web1", api.TakeRequest{})
		h.delete("web1")
		h.virsh("destroy", "--graceful", "web1")
		h.take("web1", api.TakeRequest{})
		h.delete("web1")
		h.clean("web1")
	})
	t.Run("backing of unknown format", func(t *testing.T) {
		h := &host{h.Site, t}
		h.must(os.Remove(image))
		h.tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", "raw", image, "1M")
		h.forgetBackingFormat(image)
		h.refused(api.CodeUnsupportedDisk, "(none stated)")(h.Client.Take(t.Context(), "web1", api.TakeRequest{}))
		h.clean("web1")
	})
}

// make makes an image. On a busy machine qemu-img may fail to measure how fast
// LUKS could be ("Unable to get accurate CPU usage"), so it may try again.
func (h *host) make(args ...string) {
	h.t.Helper()
	h.eventually("qemu-img does its work", func() bool {
		out, err := exec.CommandContext(h.t.Context(), "qemu-img", args...).CombinedOutput()
		if err != nil {
			h.t.Logf("%s", out)
		}
		return err == nil
	})
}

// forgetBackingFormat takes the statement of the backing file's format out of a
// qcow2 header; qemu-img no longer makes such images.
func (h *host) forgetBackingFormat(image string) {
	h.t.Helper()
	data, err := os.ReadFile(image)
	h.must(err)
	at := bytes.Index(data[:4096], []byte{0xe2, 0x79, 0x2a, 0xca})
	if at < 0 {
		h.t.Fatal("the header states no backing format")
	}
	copy(data[at:], []byte{0x12, 0x34, 0x56, 0x78})
	h.must(os.WriteFile(image, data, 0o600))
}

// TestSharedImages has an image that two VPS use: no snapshot is taken of it,
// and one that is the base of a snapshot by then is neither merged into nor
// restored.
func TestSharedImages(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	image := h.path("web1", "vda")
	h.define(lab.Spec{Name: "web2", Disks: []lab.DiskSpec{{Target: "vda", Path: image}}}, "shut off")
	h.refused(
		api.CodeUnsupportedDisk, "disk vda: another VPS of this host uses its image too",
	)(
		h.Client.Take(ctx, "web1", api.TakeRequest{}),
	)
	h.undefine("web2")
	h.clean("web1")

	h.take("web1", api.TakeRequest{})
	snapshot, err := h.Client.Snapshot(ctx, "web1")
	h.must(err)
	before := h.sum(image)
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	h.define(lab.Spec{Name: "web3", Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20, Backing: image, BackingFormat: "qcow2"}}}, "shut off")
	for _, state := range []string{"shut off", "running"} {
		h.bring("web3", state)
		op, err := h.Client.Delete(ctx, "web1")
		h.must(err)
		op, err = h.Client.WaitOperation(ctx, op.ID, time.Minute)
		h.must(err)
		if op.Status != "failed" || op.Error == nil || !strings.Contains(op.Error.Detail, "another VPS") {
			t.Errorf("with the other %s the delete ended as %s, %+v", state, op.Status, op.Error)
		}
		h.refused(api.CodeVPSChanged, "another VPS")(h.Client.Take(ctx, "web1", api.TakeRequest{Replace: true}))
	}
	h.refused(api.CodeVPSChanged, "another VPS")(h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: snapshot.ID}))
	if h.sum(image) != before {
		t.Error("the shared image was written to")
	}
	h.virsh("destroy", "web3")
	h.undefine("web3")
	h.restore("web1")
	h.delete("web1")
	h.clean("web1")
}

// undefine takes a VPS away and waits until the daemon knows.
func (h *host) undefine(name string) {
	h.t.Helper()
	h.virsh("undefine", name)
	h.eventually("the daemon knows "+name+" no more", func() bool {
		_, err := h.Client.VPS(h.t.Context(), name)
		return client.CodeOf(err) == api.CodeNotFound
	})
}
