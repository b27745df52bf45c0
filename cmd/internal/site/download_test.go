package site_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestDownload reads the disks of a snapshot, a linked clone and a raw one, while
// the guest writes: as raw, cut off by the death of the daemon in the middle, as
// qcow2 with vpssnap, cut off by its restart, and at last cut off for good by a
// delete.
func TestDownload(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[download]\nrate = \"4 MiB\"\n")
	ctx := t.Context()
	golden := filepath.Join(h.Lab.ImageDir(), "golden.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", golden, "64M")
	h.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 71 0 4M", golden)
	h.define(lab.Spec{Name: "web", Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 64 << 20, Backing: golden, BackingFormat: "qcow2"},
		{Target: "vdb", SizeBytes: 16 << 20, Format: "raw"}}}, "running")
	frozen := map[string]string{}
	for i, target := range []string{"vda", "vdb"} {
		h.must(h.Lab.WriteDisk(ctx, "web", target, 2<<20, byte('a'+i), 6<<20))
		sum, err := h.Lab.HashDisk(ctx, "web", target)
		h.must(err)
		frozen[target] = sum
	}
	h.take("web", api.TakeRequest{})
	endWriting := h.writing("web", "vda", "vdb")

	raw, err := h.Client.MakeDownload(ctx, "web", api.DownloadRequest{Disk: "vdb", Format: "raw"})
	h.must(err)
	whole := sha256.New()
	have := h.part(raw, 0, whole, 5<<20, func() { h.must(h.KillDaemon()) })
	h.must(h.StartDaemon(ctx))
	have = h.part(raw, have, whole, raw.SizeBytes, nil)
	if got := hex.EncodeToString(whole.Sum(nil)); have != 16<<20 || got != frozen["vdb"] {
		t.Errorf("raw: %d bytes with the sum %s, want %s", have, got, frozen["vdb"])
	}

	file := filepath.Join(t.TempDir(), "web.qcow2")
	type result struct {
		stdout, stderr string
		code           int
	}
	ended := make(chan result, 1)
	go func() {
		stdout, stderr, code := h.CLI(ctx, "download", "web", file, "--disk", "vda")
		ended <- result{stdout, stderr, code}
	}()
	h.eventually("some of it is there", func() bool {
		parts, err := filepath.Glob(file + ".*.part")
		h.must(err)
		info, err := os.Stat(strings.Join(parts, ""))
		return err == nil && info.Size() > 2<<20
	})
	h.must(h.StopDaemon())
	h.must(h.StartDaemon(ctx))
	if r := <-ended; r.code != 0 {
		t.Fatalf("vpssnap download: %d %s %s", r.code, r.stdout, r.stderr)
	}
	h.tool("qemu-img", "check", "-q", "-f", "qcow2", file)
	if got, err := h.Lab.HashImage(ctx, file, "qcow2"); err != nil || got != frozen["vda"] {
		t.Errorf("qcow2: the sum is %s (%v), want %s", got, err, frozen["vda"])
	}
	if info, err := os.Stat(file); err != nil || info.Size() > 12<<20 {
		t.Errorf("8 MiB of data are in a file of %d bytes (%v)", info.Size(), err)
	}

	endWriting()
	now := h.hash("web")
	rest := sha256.New()
	have = h.part(raw, 0, rest, 1<<20, func() {
		if op := h.delete("web"); !strings.Contains(op.Result, "downloads that were cut off: 1") {
			t.Errorf("the deletion says %q", op.Result)
		}
	})
	if have >= raw.SizeBytes {
		t.Error("a download went on although the snapshot was deleted")
	}
	if _, err := h.Client.Download(ctx, raw, have); client.CodeOf(err) != api.CodeNotFound {
		t.Errorf("the link of a deleted snapshot: %v", err)
	}
	h.hashes("after the deletion", "web", now)
	h.clean("web")
	if left := h.exports(); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
}

// part reads an image from some place on until it has so much, then does something,
// and reads on to the end or until it is cut off. It returns how far it came.
func (h *host) part(d api.Download, from int64, to io.Writer, until int64, then func()) int64 {
	h.t.Helper()
	body, err := h.Client.Download(h.t.Context(), d, from)
	h.must(err)
	defer body.Close()
	n, err := io.CopyN(to, body, until-from)
	h.must(err)
	if then == nil {
		return from + n
	}
	then()
	more, err := io.Copy(to, body)
	if !errors.Is(err, io.ErrUnexpectedEOF) && from+n+more < d.SizeBytes {
		h.t.Errorf("it ended after %d bytes as if it were whole (%v)", from+n+more, err)
	}
	return from + n + more
}

// writing lets the guest write until end is called.
func (h *host) writing(name string, targets ...string) (end func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() {
		for n := int64(0); ; n++ {
			for _, target := range targets {
				if ctx.Err() != nil {
					ended <- nil
					return
				}
				// Not with ctx: a write that is begun is to end.
				if err := h.Lab.WriteDisk(h.t.Context(), name, target, n%14<<20, byte('A'+n%26), 1<<20); err != nil {
					ended <- err
					return
				}
			}
		}
	}()
	return func() {
		h.t.Helper()
		cancel()
		h.must(<-ended)
	}
}

// exports are the processes that serve images of this host.
func (h *host) exports() (found []string) {
	h.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	h.must(err)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(line), "qemu-nbd") && strings.Contains(string(line), h.Lab.ImageDir()) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
