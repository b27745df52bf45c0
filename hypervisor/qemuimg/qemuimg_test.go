package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

const mib = 1 << 20

func open(t *testing.T) *Images {
	t.Helper()
	images, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// writeBase makes a raw image filled with one byte.
func writeBase(t *testing.T, path string, size int, fill byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tool runs one of QEMU's tools beside the code under test.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// makeEncrypted makes an encrypted image. QEMU measures the processor for it, which
// fails now and then on a busy one.
func makeEncrypted(t *testing.T, path string) {
	t.Helper()
	var out []byte
	err := errors.ErrUnsupported
	for try := 0; err != nil && try < 20; try++ {
		out, err = exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x",
			"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M").CombinedOutput()
	}
	if err != nil {
		t.Fatalf("no encrypted image: %v\n%s", err, out)
	}
}

// makeOverlay makes an overlay of the base's size over a raw base.
func makeOverlay(t *testing.T, images *Images, overlay, base string) hypervisor.File {
	t.Helper()
	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	file, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{
		Path: overlay, Base: base, BaseFormat: "raw", SizeBytes: info.Size(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// mountTmpfs mounts a file system of its own, to be filled or to refuse things.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestOverlayNamesAreTakenLiterally(t *testing.T) {
	images := open(t)
	for _, name := range []string{"plain", "a,b", "a:b", "nbd:x", "json:{}", "with space", "-o", "naïve-名前", "%s%n", `q"u'o\te`, "new\nline"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			base, overlay := filepath.Join(dir, name), filepath.Join(dir, name+".overlay")
			writeBase(t, base, mib, 1)
			makeOverlay(t, images, overlay, base)
			image, err := images.Inspect(t.Context(), overlay, "qcow2")
			if err != nil {
				t.Fatal(err)
			}
			want := hypervisor.Image{
				Path: overlay, Format: "qcow2", VirtualSize: mib,
				AllocatedSize: image.AllocatedSize, Backing: base, BackingFormat: "raw",
			}
			if image != want {
				t.Errorf("got %+v, want %+v", image, want)
			}
			tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 4k", overlay)
			if err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"}, nil); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(base)
			if err != nil {
				t.Fatal(err)
			}
			if got[0] != 2 || got[4095] != 2 || got[4096] != 1 || len(got) != mib {
				t.Error("the base does not hold what was written to the overlay")
			}
			other := base + ":other"
			writeBase(t, other, mib, 3)
			if err := images.Rebase(t.Context(), overlay, other, "raw"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestNamesThatAreNoLocalFileAreRefused(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	writeBase(t, base, mib, 1)
	for _, name := range []string{"", "relative", "nbd:unix:/x", "json:{}", "rbd:pool/image", dir + "/../x", dir + "/x\x00y", dir + "/x/"} {
		// A definition or a header may name an image with detours, and then it is read (FAULTS row 33).
		detour := filepath.IsAbs(name) && filepath.Clean(name) != name
		if _, err := images.Inspect(t.Context(), name, "raw"); !errors.Is(err, hypervisor.ErrUnsupported) && !detour {
			t.Errorf("Inspect(%q): %v", name, err)
		}
		if _, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{Path: dir + "/o", Base: name, BaseFormat: "raw", SizeBytes: mib}); !errors.Is(
			err, hypervisor.ErrUnsupported,
		) {
			t.Errorf("CreateOverlay over %q: %v", name, err)
		}
		if _, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{Path: name, Base: base, BaseFormat: "raw", SizeBytes: mib}); !errors.Is(
			err, hypervisor.ErrUnsupported,
		) {
			t.Errorf("CreateOverlay of %q: %v", name, err)
		}
		if err := images.Remove(t.Context(), name, 1); !errors.Is(err, hypervisor.ErrUnsupported) {
			t.Errorf("Remove(%q): %v", name, err)
		}
		if err := images.Rebase(t.Context(), base, name, "raw"); !errors.Is(err, hypervisor.ErrUnsupported) {
			t.Errorf("Rebase onto %q: %v", name, err)
		}
		if err := images.Exchange(t.Context(), base, name); !errors.Is(err, hypervisor.ErrUnsupported) {
			t.Errorf("Exchange with %q: %v", name, err)
		}
	}
	for _, format := range []string{"", "raw,file=x", "-U", "ra w"} {
		if _, err := images.Inspect(t.Context(), base, format); format != "-U" &&
			!errors.Is(err, hypervisor.ErrUnsupported) ||
			err == nil {
			t.Errorf("Inspect as %q: %v", format, err)
		}
	}
	if left := list(t, dir); !slices.Equal(left, []string{"base"}) {
		t.Errorf("files left: %q", left)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestOverlayBelongsToWhomTheBaseBelongs(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, mib, 1)
	if err := os.Chown(base, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o666); err != nil {
		t.Fatal(err)
	}
	file := makeOverlay(t, images, overlay, base)
	var st unix.Stat_t
	if err := unix.Stat(overlay, &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 12345 || st.Gid != 23456 || st.Mode&0o7777 != 0o660 || st.Ino != file.Inode {
		t.Errorf("owner %d:%d, mode %o, inode %d; reported inode %d", st.Uid, st.Gid, st.Mode&0o7777, st.Ino, file.Inode)
	}
}

func TestOverlayNeverTakesAnExistingName(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	writeBase(t, base, mib, 1)
	foreign, link := filepath.Join(dir, "foreign"), filepath.Join(dir, "link")
	if err := os.WriteFile(foreign, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{foreign, link} {
		_, err := images.CreateOverlay(
			t.Context(), hypervisor.Overlay{Path: path, Base: base, BaseFormat: "raw", SizeBytes: mib},
		)
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("overlay at %s: %v", path, err)
		}
		if _, err := images.Copy(t.Context(), base, path); !errors.Is(err, fs.ErrExist) {
			t.Errorf("copy to %s: %v", path, err)
		}
	}
	if got, _ := os.ReadFile(foreign); string(got) != "precious" {
		t.Errorf("the foreign file holds %q", got)
	}
	if names := list(t, dir); !slices.Equal(names, []string{"base", "foreign", "link"}) {
		t.Errorf("files: %q", names)
	}
}

func TestFailedOverlayLeavesNothing(t *testing.T) {
	images := open(t)
	dir := mountTmpfs(t, "size=1m")
	base := filepath.Join(dir, "base")
	writeBase(t, base, 4096, 1)
	_, err := images.CreateOverlay(
		t.Context(),
		hypervisor.Overlay{Path: filepath.Join(dir, "overlay"), Base: base, BaseFormat: "raw", SizeBytes: 100 << 30},
	)
	if !errors.Is(err, hypervisor.ErrNoSpace) {
		t.Errorf("on a full file system: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = images.CreateOverlay(
		ended, hypervisor.Overlay{Path: filepath.Join(dir, "overlay"), Base: base, BaseFormat: "raw", SizeBytes: mib},
	)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_, err = images.CreateOverlay(
		t.Context(),
		hypervisor.Overlay{
			Path:       filepath.Join(dir, "overlay"),
			Base:       filepath.Join(dir, "none"),
			BaseFormat: "raw",
			SizeBytes:  mib,
		},
	)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its base: %v", err)
	}
	if names := list(t, dir); !slices.Equal(names, []string{"base"}) {
		t.Errorf("files left: %q", names)
	}
}

func TestOverlayOfEverySizeReadsAsItsBase(t *testing.T) {
	images := open(t)
	for _, size := range []int64{512, mib, 3*mib + 512, 10 << 30, 200 << 30, preallocateUpTo, preallocateUpTo + 512} {
		dir := t.TempDir()
		base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
		writeBase(t, base, 512, 7)
		if err := os.Truncate(base, size); err != nil {
			t.Fatal(err)
		}
		file := makeOverlay(t, images, overlay, base)
		if file.Allocated > 3*mib && size <= 10<<30 || file.Allocated > 2*mostTables {
			t.Errorf("%d bytes: %d allocated", size, file.Allocated)
		}
		tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 0 512", overlay)
	}
}

// TestOverlayOfAnOldQEMU: one that knows no subclusters makes a plain overlay.
func TestOverlayOfAnOldQEMU(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in *extended_l2*) echo \"Unknown option 'extended_l2'\" >&2; exit 1;; esac\nexec " + images.binary + " \"$@\"\n"
	images.binary = filepath.Join(dir, "qemu-img")
	if err := os.WriteFile(images.binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, mib, 7)
	makeOverlay(t, images, overlay, base)
	tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 0 1M", overlay)
}

func TestInspectTellsWhatAnImageHolds(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", in("snap"), "1M")
	tool(t, "qemu-img", "snapshot", "-c", "a", in("snap"))
	tool(t, "qemu-img", "snapshot", "-c", "b", in("snap"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", in("bitmap"), "1M")
	tool(t, "qemu-img", "bitmap", "--add", in("bitmap"), "one")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data"), in("split"), "1M")
	makeEncrypted(t, in("luks"))
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", in("corrupt"), "1M")
	setIncompatible(t, in("corrupt"), 2)
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", in("dirty"), "1M")
	setIncompatible(t, in("dirty"), 1)
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", in("header"), "1M")
	for _, c := range []struct {
		name, format string
		want         hypervisor.Image
	}{
		{"snap", "qcow2", hypervisor.Image{VirtualSize: mib, InternalSnapshots: 2}},
		{"bitmap", "qcow2", hypervisor.Image{VirtualSize: mib, Bitmaps: 1}},
		{"split", "qcow2", hypervisor.Image{VirtualSize: mib, DataFile: true}},
		{"luks", "qcow2", hypervisor.Image{VirtualSize: mib, Encrypted: true}},
		{"corrupt", "qcow2", hypervisor.Image{VirtualSize: mib, Corrupt: true}},
		{"dirty", "qcow2", hypervisor.Image{VirtualSize: mib, Dirty: true}},
		// A guest may write a qcow2 header into its raw disk: the disk stays raw.
		{"header", "raw", hypervisor.Image{VirtualSize: 196616}},
	} {
		got, err := images.Inspect(t.Context(), in(c.name), c.format)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		c.want.Path, c.want.Format, c.want.AllocatedSize = in(c.name), c.format, got.AllocatedSize
		if c.format == "raw" {
			c.want.VirtualSize = got.VirtualSize
		}
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
	if _, err := images.Inspect(t.Context(), in("none"), "raw"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	writeBase(t, in("raw"), mib, 1)
	if _, err := images.Inspect(t.Context(), in("raw"), "qcow2"); err == nil {
		t.Error("a raw file was read as qcow2")
	}
}

// setIncompatible sets a qcow2 header's incompatible feature flags.
func setIncompatible(t *testing.T, path string, flags byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte{flags}, 79); err != nil {
		t.Fatal(err)
	}
}

func TestInspectOfHostileHeadersOpensNothingElseAndEnds(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(dir, "hostile")
	for _, backing := range []string{fifo, "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", "nbd:unix:/nonexistent"} {
		tool(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", hostile, "1M")
		image, err := images.Inspect(t.Context(), hostile, "qcow2")
		if err != nil || image.Backing != backing {
			t.Errorf("backing %q: %q, %v", backing, image.Backing, err)
		}
		if err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: hostile, Base: backing, BaseFormat: "raw"}, nil); err == nil {
			t.Errorf("merged into %q", backing)
		}
	}
	if _, err := images.Inspect(t.Context(), fifo, "raw"); !errors.Is(err, hypervisor.ErrUnsupported) {
		t.Errorf("a named pipe: %v", err)
	}
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", hostile, "1M")
	whole, err := os.ReadFile(hostile)
	if err != nil {
		t.Fatal(err)
	}
	for offset := range 104 {
		flipped := slices.Clone(whole)
		flipped[offset] ^= 0xff
		if err := os.WriteFile(hostile, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, _ = images.Inspect(t.Context(), hostile, "qcow2")
		if took := time.Since(start); took > 3*shortTime { // qemu-img is ended at shortTime
			t.Errorf("flipped byte %d: took %v", offset, took)
		}
	}
}

func TestMergeKeepsTheOverlayWholeAndMayBeRepeated(t *testing.T) {
	images := open(t)
	for _, place := range []string{t.TempDir(), mountTmpfs(t, "size=64m")} {
		base, overlay := filepath.Join(place, "base"), filepath.Join(place, "overlay")
		writeBase(t, base, 16*mib, 1)
		makeOverlay(t, images, overlay, base)
		tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 6M", "-c", "write -q -P 3 12M 4k", overlay)
		for range 2 {
			var last, total int64
			err := images.MergeOffline(
				t.Context(),
				hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"},
				func(done, all int64) {
					if done < last {
						t.Errorf("progress went back from %d to %d", last, done)
					}
					last, total = done, all
				},
			)
			if err != nil {
				t.Fatal(err)
			}
			if last != total || total < mib || total > 16*mib {
				t.Errorf("progress ended at %d of %d", last, total)
			}
			tool(
				t, "qemu-io", "-f", "raw", "-c", "read -P 2 0 6M", "-c", "read -P 1 6M 6M", "-c", "read -P 3 12M 4k",
				"-c", "read -P 1 12292k 4092k", base,
			)
			writeBase(t, base, 16*mib, 9)
			tool(
				t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 2 0 6M", "-c", "read -P 9 6M 6M", "-c",
				"read -P 3 12M 4k", overlay,
			)
			writeBase(t, base, 16*mib, 1)
		}
	}
}

func TestMergeOfImagesInUseIsBusy(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, mib, 1)
	makeOverlay(t, images, overlay, base)
	user := exec.Command("qemu-io", "-f", "qcow2", overlay)
	input, err := user.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := user.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close()
		if err := user.Wait(); err != nil {
			t.Error(err)
		}
	})
	// The first prompt shows that the image is open.
	if _, err := output.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	err = images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"}, nil)
	if !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("merge: %v", err)
	}
	if err := images.Rebase(t.Context(), overlay, base, "raw"); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("rebase: %v", err)
	}
	if _, err := images.Inspect(t.Context(), overlay, "qcow2"); err != nil {
		t.Errorf("inspect: %v", err)
	}
}

// TestMergeLocksTheOverlay: a QEMU that is started in the middle of a merge must not
// write to what is being copied.
func TestMergeLocksTheOverlay(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, 16*mib, 1)
	makeOverlay(t, images, overlay, base)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 16M", overlay)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var refusal string
	err := images.MergeOffline(
		ctx,
		hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw", BytesPerSecond: mib},
		func(_, _ int64) {
			if refusal == "" {
				out, _ := exec.Command("qemu-io", "-f", "qcow2", "-c", "write 0 512", overlay).CombinedOutput()
				refusal = string(out)
				stop()
			}
		},
	)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("merge: %v", err)
	}
	if !strings.Contains(refusal, "lock") || !strings.Contains(refusal, overlay) {
		t.Errorf("a writer of the overlay was told %q", refusal)
	}
}

// TestMergeByAQEMUWithoutBlkdebug: such a one merges too, only slower.
func TestMergeByAQEMUWithoutBlkdebug(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in *blkdebug*) echo \"Unknown driver 'blkdebug'\" >&2; exit 1;; esac\nexec " + images.binary + " \"$@\"\n"
	images.binary = filepath.Join(dir, "qemu-img")
	if err := os.WriteFile(images.binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, mib, 1)
	makeOverlay(t, images, overlay, base)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 64k", overlay)
	if err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"}, nil); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "read -P 2 0 64k", "-c", "read -P 1 64k 960k", base)
}

// TestKilledMergeLeavesACleanBase: the VPS may be started then, and QEMU repairs no
// image that it opens to read only, as which it opens the base.
func TestKilledMergeLeavesACleanBase(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", base, "64M")
	if _, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{Path: overlay, Base: base, BaseFormat: "qcow2", SizeBytes: 64 * mib}); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 64M", overlay)
	ctx, kill := context.WithCancel(t.Context())
	merge := hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "qcow2", BytesPerSecond: 16 * mib}
	err := images.MergeOffline(ctx, merge, func(done, total int64) {
		if done > total/4*3 { // well behind what the tool reads ahead
			kill()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the merge was not killed: %v", err)
	}
	if info := tool(t, "qemu-img", "info", "-f", "qcow2", "--output=json", base); strings.Contains(
		info, `"dirty-flag": true`,
	) {
		t.Errorf("the killed merge left a base that only a repair makes safe to write to:\n%s", info)
	}
}

func TestMergeIntoAFullFileSystem(t *testing.T) {
	images := open(t)
	dir, full := t.TempDir(), mountTmpfs(t, "size=2m")
	base, overlay := filepath.Join(full, "base"), filepath.Join(dir, "overlay")
	writeBase(t, base, 0, 0)
	if err := os.Truncate(base, 16*mib); err != nil {
		t.Fatal(err)
	}
	makeOverlay(t, images, overlay, base)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 8M", overlay)
	err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"}, nil)
	if !errors.Is(err, hypervisor.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 2 0 8M", overlay)
}

func TestMergeRefusesAChainOfUnstatedFormat(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	lowest, base, overlay := filepath.Join(dir, "lowest"), filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, lowest, mib, 1)
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "lowest", "-F", "raw", base)
	if _, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{Path: overlay, Base: base, BaseFormat: "qcow2", SizeBytes: mib}); err != nil {
		t.Fatal(err)
	}
	merge := hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "qcow2"}
	if err := images.MergeOffline(t.Context(), merge, nil); err != nil {
		t.Errorf("a relative name with its format stated: %v", err)
	}
	eraseBackingFormat(t, base)
	if err := images.MergeOffline(t.Context(), merge, nil); !errors.Is(err, hypervisor.ErrUnsupported) {
		t.Errorf("an unstated format: %v", err)
	}
	merge.Base = lowest
	if err := images.MergeOffline(t.Context(), merge, nil); !errors.Is(err, hypervisor.ErrReplaced) {
		t.Errorf("another base than the header's: %v", err)
	}
}

// eraseBackingFormat turns the header extension that states the backing format into an unknown one.
func eraseBackingFormat(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data[:4096], []byte{0xe2, 0x79, 0x2a, 0xca})
	if at < 0 {
		t.Fatal("no backing format in the header")
	}
	copy(data[at:], "none")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestExchange(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeBase(t, a, 1, 'a')
	writeBase(t, b, 1, 'b')
	if err := images.Exchange(t.Context(), a, b); err != nil {
		t.Fatal(err)
	}
	gotA, _ := os.ReadFile(a)
	gotB, _ := os.ReadFile(b)
	if string(gotA) != "b" || string(gotB) != "a" {
		t.Errorf("a holds %q, b holds %q", gotA, gotB)
	}
	if err := images.Exchange(t.Context(), a, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with a missing file: %v", err)
	}
	if err := images.Exchange(t.Context(), a, filepath.Join(t.TempDir(), "a")); !errors.Is(err, hypervisor.ErrUnsupported) {
		t.Errorf("with another directory: %v", err)
	}
}

func TestRemoveTakesOnlyTheRecordedFile(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	writeBase(t, path, 1, 'x')
	file, err := images.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := images.Remove(t.Context(), path, file.Inode+1); !errors.Is(err, hypervisor.ErrReplaced) {
		t.Errorf("another inode: %v", err)
	}
	if err := images.Remove(t.Context(), path, 0); !errors.Is(err, hypervisor.ErrReplaced) {
		t.Errorf("inode 0: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := images.Remove(t.Context(), link, file.Inode); !errors.Is(err, hypervisor.ErrReplaced) {
		t.Errorf("a link to it: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
	for range 2 {
		if err := images.Remove(t.Context(), path, file.Inode); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := images.Remove(t.Context(), filepath.Join(dir, "no", "directory"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory says nothing of the file: %v", err)
	}
}

// A removed file takes up its room for as long as somebody has it open.
func TestRemoveGivesTheRoomBack(t *testing.T) {
	images := open(t)
	path := filepath.Join(t.TempDir(), "file")
	writeBase(t, path, 1, 'x')
	file, err := images.Stat(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := images.Remove(t.Context(), path, file.Inode); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(10 * time.Second); heldOpen(t, path); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the removed file is still open")
		}
	}
}

// heldOpen reports whether this process has a file open, also one that is removed.
func heldOpen(t *testing.T, path string) bool {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(open, func(fd os.DirEntry) bool {
		name, err := os.Readlink("/proc/self/fd/" + fd.Name())
		return err == nil && strings.TrimSuffix(name, " (deleted)") == path
	})
}

func TestCopyKeepsContentModeAndOwner(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	content := strings.Repeat("variables", 100_000)
	if err := os.WriteFile(src, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(src, 12345, 23456); err != nil {
		t.Fatal(err)
	}
	file, err := images.Copy(t.Context(), src, dst)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dst, &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 12345 || st.Gid != 23456 || st.Mode&0o7777 != 0o640 || st.Ino != file.Inode ||
		file.Size != int64(len(content)) {
		t.Errorf("owner %d:%d, mode %o, %+v", st.Uid, st.Gid, st.Mode&0o7777, file)
	}
	if got, _ := os.ReadFile(dst); string(got) != content {
		t.Error("the content differs")
	}
	if _, err := images.Copy(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "x")); !errors.Is(
		err, fs.ErrNotExist,
	) {
		t.Errorf("of a missing file: %v", err)
	}
	small := mountTmpfs(t, "size=64k")
	if _, err := images.Copy(t.Context(), src, filepath.Join(small, "dst")); !errors.Is(err, hypervisor.ErrNoSpace) {
		t.Errorf("to a full file system: %v", err)
	}
	if names := list(t, small); len(names) != 0 {
		t.Errorf("files left: %q", names)
	}
}

func TestSpace(t *testing.T) {
	images := open(t)
	dir := mountTmpfs(t, "size=8m")
	before, err := images.Space(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	writeBase(t, filepath.Join(dir, "file"), 2*mib, 1)
	after, err := images.Space(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if before.Total != 8*mib || before.Free-after.Free != 2*mib || before.Device != after.Device {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if _, err := images.Space(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a missing directory: %v", err)
	}
}

func TestProgressIsReadInAnyPortions(t *testing.T) {
	text := "    (0.00/100%)\r    (12.50/100%)\r    (12.50/100%)\rnoise (50/100%)\r    (200.00/100%)\r    (NaN/100%)\r    (100.00/100%)\r\nImage committed.\n"
	for portion := 1; portion < len(text); portion++ {
		var got []int64
		r := &progressReader{total: 1000, report: func(done, _ int64) { got = append(got, done) }}
		for part := range slices.Chunk([]byte(text), portion) {
			if _, err := r.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, []int64{125, 1000}) {
			t.Fatalf("in portions of %d: %v", portion, got)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(
		[]byte(
			`{"format":"qcow2","virtual-size":1048576,"actual-size":1,"backing-filename":"/a","backing-filename-format":"raw",
		"snapshots":[{"name":"a"}],"format-specific":{"type":"qcow2","data":{"corrupt":true,"data-file":"x","bitmaps":[{}],"encrypt":{}}}}`,
		),
	)
	f.Add([]byte(`{"format":"qcow2","virtual-size":-1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		image, err := parseInfo(data, "qcow2")
		if err == nil && (image.VirtualSize < 0 || image.Format != "qcow2") {
			t.Errorf("accepted %+v", image)
		}
	})
}

// TestRoomComesBack: after AwaitRoom nothing of ours holds what was removed. Its room
// may take its time: another one's removal under way keeps its waiters.
func TestRoomComesBack(t *testing.T) {
	images, dir := open(t), t.TempDir()
	for n := range 50 {
		path := filepath.Join(dir, strconv.Itoa(n))
		writeBase(t, path, mib, 1)
		file, err := images.Stat(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := images.Remove(t.Context(), path, file.Inode); err != nil {
			t.Fatal(err)
		}
	}
	if err := images.AwaitRoom(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, dir+"/") {
			t.Errorf("%s is held open", to)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	device := info.Sys().(*syscall.Stat_t).Dev
	images.removals.pending[make(chan struct{})] = device
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := images.AwaitRoom(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("what is still under way was waited for with %v", err)
	}
	hung, release := context.WithTimeout(t.Context(), time.Minute)
	defer release()
	if err := images.AwaitRoom(hung, "/proc"); err != nil {
		t.Errorf("another file system: %v", err)
	}
}

// FuzzExtents: whatever qemu-img says, what is visited is in order and apart.
func FuzzExtents(f *testing.F) {
	f.Add(
		`[{"start":0,"length":65536,"depth":1,"present":true,"zero":false,"data":true,"offset":327680},{"start":65536,"length":512,"zero":true}]`,
	)
	f.Add(`[{"start":0,"length":1,"zero":false}`)
	f.Add(`[{"start":0,"length":9223372036854775807},{"start":9223372036854775807,"length":1}]`)
	f.Add(`{"start":0}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, text string) {
		end := int64(0)
		err := parseExtents(strings.NewReader(text), func(e extent) error {
			if e.Start < end || e.Length <= 0 || e.Start+e.Length < e.Start {
				t.Errorf("%d bytes at %d follow %d", e.Length, e.Start, end)
			}
			end = e.Start + e.Length
			return nil
		})
		if err == nil && !strings.Contains(text, "]") {
			t.Errorf("%q was taken for a whole answer", text)
		}
	})
}

// FuzzNBD: whatever a server sends, a reader gets an error, or what was asked for.
func FuzzNBD(f *testing.F) {
	hello := "NBDMAGICIHAVEOPT\x00\x03"
	size := "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x03"
	ack := "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00"
	f.Add([]byte(hello + size + ack + "\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01abcd"))
	f.Add([]byte(hello + size + ack + "\x67\x44\x66\x98\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte(hello + ack))
	f.Fuzz(func(t *testing.T, answers []byte) {
		here, there := net.Pipe()
		defer here.Close()
		go io.Copy(io.Discard, there) //nolint:errcheck // it ends with the pipe
		go func() {
			_, _ = there.Write(answers)
			there.Close()
		}()
		got, err := negotiate(here)
		if err != nil {
			return
		}
		e := &export{conn: here, size: got}
		p := make([]byte, 4)
		if n, err := e.ReadAt(p, 0); err == nil && (n != 4 || !bytes.Contains(answers, p)) || n > 4 {
			t.Errorf("of %d bytes %d were read: %q (%v)", got, n, p, err)
		}
	})
}

// TestOutputIsLimited: an image can hold as many and as long names as it likes, and
// what a tool says of them must not fill the memory of the daemon.
func TestOutputIsLimited(t *testing.T) {
	for _, size := range []int{0, 999, 1000, 1001, 300_000} {
		out := &limitedBuffer{limit: 1000}
		cmd := command(t.Context(), "/usr/bin/head", "-c", strconv.Itoa(size), "/dev/zero")
		cmd.Stdout = out
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if out.Len() != min(size, 1000) || out.truncated != (size > 1000) {
			t.Errorf("of %d bytes %d are kept, truncated: %v", size, out.Len(), out.truncated)
		}
	}
}
