package qemuimg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"vpssnapd/hypervisor"
)

// mergeRounds is enough for every kind of base and overlay to meet.
const mergeRounds = 12

// TestMergeEqualsCommit holds MergeOffline against qemu-img commit, with overlays
// that were written, zeroed and discarded at random, and with a merge that was
// stopped somewhere and done again.
func TestMergeEqualsCommit(t *testing.T) {
	for seed := range uint64(mergeRounds) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			newMergeRound(t, seed).play()
		})
	}
}

// mergeRound is an overlay over a base with random content, twice.
type mergeRound struct {
	*testing.T
	random   *rand.Rand
	images   *Images
	ours     hypervisor.OfflineMerge
	theirs   hypervisor.OfflineMerge
	baseSize int64
	size     int64 // of the overlay
}

func newMergeRound(t *testing.T, seed uint64) *mergeRound {
	r := &mergeRound{T: t, random: rand.New(rand.NewPCG(seed, 6)), images: open(t)}
	dir, twin := t.TempDir(), t.TempDir()
	r.baseSize = 2*mib + r.random.Int64N(5)*512
	r.size = []int64{r.baseSize, r.baseSize, r.baseSize + mib + 512, r.baseSize - mib}[seed%4]
	r.ours = hypervisor.OfflineMerge{
		Overlay:    dir + "/over",
		Base:       dir + "/ba,se",
		BaseFormat: []string{"qcow2", "raw", "qcow2"}[seed%3],
	}
	r.theirs = hypervisor.OfflineMerge{Overlay: twin + "/over", Base: twin + "/ba,se", BaseFormat: r.ours.BaseFormat}
	r.makeBase(seed%3 == 2)
	r.makeOverlay(seed%5 == 4)
	r.twin()
	return r
}

// makeBase fills the base with data; of a linked clone it overwrites a part of a
// golden image, which may be smaller or larger.
func (r *mergeRound) makeBase(clone bool) {
	args := []string{"create", "-q", "-f", r.ours.BaseFormat}
	if clone {
		golden := filepath.Join(r.TempDir(), "golden")
		writeBase(r.T, golden, int(r.baseSize)+(r.random.IntN(3)-1)*mib, 0xee)
		args = append(args, "-b", golden, "-F", "raw")
	}
	tool(r.T, "qemu-img", append(args, r.ours.Base, strconv.FormatInt(r.baseSize, 10))...)
	if !clone {
		r.io(r.ours.Base, r.ours.BaseFormat, fmt.Sprintf("write -q -P 1 0 %d", r.baseSize))
	}
	r.change(r.ours.Base, r.ours.BaseFormat, r.baseSize, 6)
}

// makeOverlay makes an overlay as we do, or as libvirt does.
func (r *mergeRound) makeOverlay(plain bool) {
	if plain {
		tool(
			r.T, "qemu-img", "create", "-q", "-f", "qcow2", "-b", r.ours.Base, "-F", r.ours.BaseFormat, r.ours.Overlay,
			strconv.FormatInt(r.size, 10),
		)
	} else {
		_, err := r.images.CreateOverlay(r.Context(), hypervisor.Overlay{Path: r.ours.Overlay, Base: r.ours.Base, BaseFormat: r.ours.BaseFormat, SizeBytes: r.size})
		r.must(err)
	}
	r.change(r.ours.Overlay, "qcow2", r.size, 12)
}

// change writes, zeroes and discards at random, often at the edges of clusters
// and of subclusters.
func (r *mergeRound) change(path, format string, size int64, n int) {
	var commands []string
	for range n {
		unit := []int64{512, 4096, 8192, 64 << 10, 128 << 10}[r.random.IntN(5)]
		from := r.random.Int64N(size/unit) * unit
		length := min(unit*(1+r.random.Int64N(4)), size-from)
		verb := []string{"write -q -P %d", "write -q -z", "write -q -z -u", "discard -q", "write -q -P 0"}[r.random.IntN(5)]
		if verb == "write -q -P %d" {
			verb = fmt.Sprintf(verb, 2+r.random.IntN(200))
		}
		commands = append(commands, fmt.Sprintf("%s %d %d", verb, from, length))
	}
	r.io(path, format, commands...)
}

func (r *mergeRound) io(path, format string, commands ...string) {
	args := []string{"-d", "unmap", "-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	tool(r.T, "qemu-io", append(args, path)...)
}

// twin copies both layers, for qemu-img commit.
func (r *mergeRound) twin() {
	for from, to := range map[string]string{r.ours.Base: r.theirs.Base, r.ours.Overlay: r.theirs.Overlay} {
		data, err := os.ReadFile(from)
		r.must(err)
		r.must(os.WriteFile(to, data, 0o600))
	}
	r.must(r.images.Rebase(r.Context(), r.theirs.Overlay, r.theirs.Base, r.theirs.BaseFormat))
}

func (r *mergeRound) play() {
	before := r.content(r.ours.Overlay, "qcow2")
	whole := func(when string) {
		r.Helper()
		if r.content(r.ours.Overlay, "qcow2") != before {
			r.Fatalf("%s the disk reads otherwise through its overlay", when)
		}
		r.compares(when)
	}
	whole("before the merge")
	// As slow as that, it is stopped in the midst of it.
	stopped, stop := context.WithCancelCause(r.Context())
	slow := r.ours
	slow.BytesPerSecond = 4 * mib
	err := r.images.MergeOffline(stopped, slow, func(done, total int64) {
		if done > total/4 {
			stop(errStopped)
		}
	})
	if err != nil && !errors.Is(err, errStopped) {
		r.Fatal(err)
	}
	stop(nil)
	whole("after a merge that was stopped")
	tool(r.T, "qemu-img", "commit", "-q", "-d", "-f", "qcow2", r.theirs.Overlay)
	want := r.content(r.theirs.Base, r.theirs.BaseFormat)
	for range 2 {
		r.must(r.images.MergeOffline(r.Context(), r.ours, nil))
		if r.content(r.ours.Base, r.ours.BaseFormat) != want {
			r.Fatalf(
				"the base is not what qemu-img commit makes of it: %+v, base of %d bytes, overlay of %d", r.ours,
				r.baseSize, r.size,
			)
		}
		whole("after the merge")
	}
	if r.ours.BaseFormat == "qcow2" {
		tool(r.T, "qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", r.ours.Base)
	}
}

// TestMergeOfZeroesBeyondAGoldenImage: convert leaves zeroes out beyond the end of
// a new target's backing file. Here the base is not new, and holds data there.
func TestMergeOfZeroesBeyondAGoldenImage(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	golden, base, overlay := filepath.Join(dir, "golden"), filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	writeBase(t, golden, mib, 1)
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", golden, "-F", "raw", base, "4M")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 2M 1M", base)
	if _, err := images.CreateOverlay(t.Context(), hypervisor.Overlay{Path: overlay, Base: base, BaseFormat: "qcow2", SizeBytes: 4 * mib}); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -z 2M 512k", "-c", "write -q -z 0 4k", overlay)
	if err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "qcow2"}, nil); err != nil {
		t.Fatal(err)
	}
	tool(
		t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0 0 4k", "-c", "read -P 1 4k 1020k", "-c",
		"read -P 0 1M 1536k", "-c", "read -P 2 2560k 512k", base,
	)
	tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", golden)
}

// TestMergeKeepsTheSizeOfARawBase: QEMU fills up the last block that it writes
// directly, and the VPS would find its disk larger than before.
func TestMergeKeepsTheSizeOfARawBase(t *testing.T) {
	images := open(t)
	dir := t.TempDir()
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	const size = mib + 512
	tool(t, "truncate", "-s", strconv.Itoa(size), base) // a hole at its begin lets QEMU take its blocks for large ones
	makeOverlay(t, images, overlay, base)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 1M 512", overlay)
	if err := images.MergeOffline(t.Context(), hypervisor.OfflineMerge{Overlay: overlay, Base: base, BaseFormat: "raw"}, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(base); err != nil || info.Size() != size {
		t.Errorf("the base of %d bytes has %d now (%v)", size, info.Size(), err)
	}
	tool(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", "-c", "read -P 2 1M 512", base)
}

var errStopped = errors.New("stopped by the test")

// content is the size and the bytes of an image as a guest would see it.
func (r *mergeRound) content(path, format string) [sha256.Size]byte {
	return sha256.Sum256(r.bytes(path, format))
}

func (r *mergeRound) bytes(path, format string) []byte {
	raw := filepath.Join(r.TempDir(), "raw")
	tool(r.T, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	data, err := os.ReadFile(raw)
	r.must(err)
	return data
}

// compares holds SameAsBase against the bytes of both.
func (r *mergeRound) compares(when string) {
	r.Helper()
	same, err := r.images.SameAsBase(r.Context(), r.ours)
	r.must(err)
	if want := bytes.HasPrefix(r.bytes(r.ours.Base, r.ours.BaseFormat), r.bytes(r.ours.Overlay, "qcow2")); same != want {
		r.Fatalf("%s base and overlay are the same: %v, want %v", when, same, want)
	}
}

func (r *mergeRound) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}
