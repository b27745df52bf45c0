package qcow2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// disk is one in memory.
func disk(size int64, parts ...[2]int64) ([]byte, *Map) {
	m, err := NewMap(size)
	if err != nil {
		panic(err)
	}
	data := make([]byte, size)
	random := rand.NewChaCha8([32]byte{})
	for _, p := range parts {
		_, _ = random.Read(data[p[0] : p[0]+p[1]])
		m.Add(p[0], p[1])
	}
	return data, m
}

// TestQEMUReadsIt compares images with their disks by QEMU's own tools.
func TestQEMUReadsIt(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		size  int64
		parts [][2]int64
	}{
		"empty":                 {8 * mib, nil},
		"full":                  {3 * mib, [][2]int64{{0, 3 * mib}}},
		"one sector":            {512, [][2]int64{{0, 512}}},
		"ends in a cluster":     {5*mib + 3*512, [][2]int64{{70000, 10}, {5 * mib, 1536}}},
		"several tables":        {1200 * mib, [][2]int64{{0, 1}, {600 * mib, mib}, {1200*mib - 1, 1}}},
		"an empty table within": {1700 * mib, [][2]int64{{5, 1}, {1699 * mib, 100}}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, m := sparse(t, c.size, c.parts)
			image := NewImage(m)
			path := filepath.Join(t.TempDir(), "image")
			file, err := os.Create(path)
			must(t, err)
			defer file.Close()
			_, err = io.Copy(file, io.NewSectionReader(image.Read(raw), 0, image.Size()))
			must(t, err)
			run(t, "qemu-img", "check", "-f", "qcow2", path)
			run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw.Name())
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			must(t, json.Unmarshal(run(t, "qemu-img", "info", "-f", "qcow2", "--output=json", path), &info))
			if info.Size != c.size {
				t.Errorf("the image is one of %d bytes, want %d", info.Size, c.size)
			}
		})
	}
}

// sparse is a disk in a file.
func sparse(t *testing.T, size int64, parts [][2]int64) (*os.File, *Map) {
	t.Helper()
	m, err := NewMap(size)
	must(t, err)
	file, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	must(t, err)
	t.Cleanup(func() { file.Close() })
	must(t, file.Truncate(size))
	for _, p := range parts {
		data := make([]byte, p[1])
		_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
		_, err := file.WriteAt(data, p[0])
		must(t, err)
		m.Add(p[0], p[1])
	}
	return file, m
}

// TestLargeDisk has more refcount blocks than one cluster names.
func TestLargeDisk(t *testing.T) {
	m, err := NewMap(mostBytes)
	must(t, err)
	m.Add(0, mostBytes)
	image := NewImage(m)
	if blocks, entries := (image.total+perBlock-1)/perBlock, (image.refBlocks-image.refTable)*perTable; blocks > entries ||
		image.l2-image.refBlocks != blocks {
		t.Errorf("%d refcount blocks are needed, %d made, %d named", blocks, image.l2-image.refBlocks, entries)
	}
	if got := image.guest(mostBytes/cluster - 1); got != mostBytes/cluster-1 {
		t.Errorf("the last data is cluster %d", got)
	}
}

// TestAnyPartIsThatOfTheWhole reads parts that begin and end anywhere.
func TestAnyPartIsThatOfTheWhole(t *testing.T) {
	data, m := disk(3<<20+512, [2]int64{0, 200000}, [2]int64{1 << 20, 70000}, [2]int64{3 << 20, 512})
	image := NewImage(m)
	from := image.Read(bytes.NewReader(data))
	whole := make([]byte, image.Size())
	_, err := from.ReadAt(whole, 0)
	must(t, err)
	for range 500 {
		offset := rand.Int64N(image.Size())
		part := make([]byte, 1+rand.Int64N(200000))
		n, err := from.ReadAt(part, offset)
		want := whole[offset:min(image.Size(), offset+int64(len(part)))]
		if !bytes.Equal(part[:n], want) || err != nil && err != io.EOF || (err == io.EOF) != (n < len(part)) {
			t.Fatalf("%d bytes at %d: read %d, %v", len(part), offset, n, err)
		}
	}
}

func TestMapIsKept(t *testing.T) {
	_, m := disk(700<<20, [2]int64{0, 5}, [2]int64{650 << 20, 1 << 20})
	again, err := Unpack(m.Pack(), m.size)
	must(t, err)
	if again.Name() != m.Name() || fmt.Sprint(again.used) != fmt.Sprint(m.used) {
		t.Error("packed and unpacked it is another map")
	}
	for name, packed := range map[string][]byte{"nothing": nil, "garbage": []byte("garbage"), "cut short": m.Pack()[:20]} {
		if _, err := Unpack(packed, m.size); err == nil {
			t.Errorf("%s is a map", name)
		}
	}
	if _, err := Unpack(m.Pack(), m.size+512); err == nil {
		t.Error("the map fits another disk")
	}
	again.Add(100<<20, 1)
	if again.Name() == m.Name() {
		t.Error("another map has the same name")
	}
	for _, size := range []int64{-1, 0, mostBytes + 1} {
		if _, err := NewMap(size); err == nil {
			t.Errorf("there is a map of %d bytes", size)
		}
	}
}

// A disk that is shorter than its map says is an error, not a run of zeros.
func TestShortDisk(t *testing.T) {
	data, m := disk(1<<20, [2]int64{0, 1 << 20})
	image := NewImage(m)
	if _, err := io.Copy(io.Discard, io.NewSectionReader(image.Read(bytes.NewReader(data[:1<<19])), 0, image.Size())); err == nil {
		t.Error("half a disk was read as a whole one")
	}
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
