package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// logWith writes a log of entries {sector, sectors, flags}; the data of entry i is bytes of value i+1.
func logWith(t *testing.T, entries ...[3]uint64) *os.File {
	t.Helper()
	var b bytes.Buffer
	sector := func(words ...uint64) {
		head := make([]byte, deviceSector)
		for i, w := range words {
			binary.LittleEndian.PutUint64(head[8*i:], w)
		}
		b.Write(head)
	}
	sector(logMagic, logVersion, uint64(len(entries)), deviceSector)
	for i, e := range entries {
		sector(e[0], e[1], e[2], 0)
		if e[2]&(flagDiscard|flagMark) == 0 {
			b.Write(bytes.Repeat([]byte{byte(i + 1)}, int(e[1])*deviceSector))
		}
	}
	return fileWith(t, b.Bytes())
}

func fileWith(t *testing.T, content []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestLogIsReplayed(t *testing.T) {
	r, err := readLog(
		logWith(
			t, [3]uint64{0, 2, 0}, [3]uint64{0, 0, flagFlush}, [3]uint64{1, 1, 0}, [3]uint64{0, 1, flagDiscard},
			[3]uint64{2, 1, flagFUA},
		),
	)
	if err != nil {
		t.Fatal(err)
	}
	// What the first byte of each of three sectors is after so many entries.
	for n, want := range []string{"\xff\xff\xff", "\x01\x01\xff", "\x01\x01\xff", "\x01\x03\xff", "\x00\x03\xff", "\x00\x03\x05"} {
		device := fileWith(t, bytes.Repeat([]byte{0xff}, 3*deviceSector))
		if err := r.apply(device, 0, n); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3*deviceSector)
		if _, err := device.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if s := string([]byte{got[0], got[deviceSector], got[2*deviceSector]}); s != want {
			t.Errorf("after %d entries the sectors begin with %x, want %x", n, s, want)
		}
	}
	for n, want := range []int{0, 0, 2, 2, 2, 2} {
		if got := r.lastFlush(n); got != want {
			t.Errorf("the last flush among %d entries is %d, want %d", n, got, want)
		}
	}
}

// TestScatterKeepsForcedWrites: a forced write (FUA) never is in a volatile cache.
func TestScatterKeepsForcedWrites(t *testing.T) {
	r, err := readLog(logWith(t, [3]uint64{0, 1, 0}, [3]uint64{1, 1, flagFUA}))
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for seed := range uint64(40) {
		device := fileWith(t, make([]byte, 2*deviceSector))
		if err := r.scatter(device, 0, 2, rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2*deviceSector)
		if _, err := device.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		kept += int(got[0])
		if got[deviceSector] != 2 {
			t.Error("a forced write is missing")
		}
	}
	if kept == 0 || kept == 40 {
		t.Errorf("a write that was not flushed is there %d times of 40", kept)
	}
}

func TestDamagedLogIsRefused(t *testing.T) {
	for what, content := range map[string][]byte{
		"empty": {}, "zeroes": make([]byte, 4096), "no log": bytes.Repeat([]byte("text"), 1024),
	} {
		if _, err := readLog(fileWith(t, content)); err == nil {
			t.Errorf("%s: taken for a log", what)
		}
	}
	if _, err := readLog(logWith(t, [3]uint64{1 << 60, 1, 0})); err == nil {
		t.Error("a sector beyond every device is taken")
	}
}
