// Package qcow2 lays a disk that does not change out as a qcow2 image, any part of
// which can be read without making the others: so it can be sent, and sent on
// from where it was cut off, without ever lying anywhere. What is where in the
// image depends on the Map alone, which can be kept: the same disk and Map always
// give the same bytes.
//
// It only writes the format; nothing here reads an image.
package qcow2

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	// mostBytes is as large as a disk may be; its Map takes 32 MiB.
	mostBytes = 16 << 40
)

// Map says which clusters of a disk hold data.
type Map struct {
	size int64
	used []uint64
}

// NewMap is the map of a disk without data.
func NewMap(size int64) (*Map, error) {
	if size <= 0 || size > mostBytes {
		return nil, fmt.Errorf("a disk of %d bytes cannot be laid out as qcow2", size)
	}
	return &Map{size: size, used: make([]uint64, words(size))}, nil
}

func words(size int64) int64 { return (clusters(size) + 63) / 64 }

func clusters(bytes int64) int64 { return (bytes + cluster - 1) / cluster }

// Add notes that a part of the disk holds data. A cluster counts when any byte of it
// does. What lies outside the disk is left out: QEMU rounds extents up.
func (m *Map) Add(offset, length int64) {
	from, to := max(0, offset), min(m.size, offset+length)
	for c := from / cluster; c < clusters(to); c++ {
		m.used[c/64] |= 1 << (c % 64)
	}
}

func (m *Map) has(c int64) bool { return c/64 < int64(len(m.used)) && m.used[c/64]&(1<<(c%64)) != 0 }

func (m *Map) count(from, to int64) (n int64) {
	for _, w := range m.used[from:min(to, int64(len(m.used)))] {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// plain is the map as bytes.
func (m *Map) plain() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(m.size)) //nolint:gosec // positive
	for _, w := range m.used {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

// Name tells apart maps, and with them images, of one disk.
func (m *Map) Name() string {
	sum := sha256.Sum256(m.plain())
	return hex.EncodeToString(sum[:6])
}

// Pack is the map in a form to be kept. Deflated, because a map is mostly runs.
func (m *Map) Pack() []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed) // the level is valid
	_, _ = w.Write(m.plain())
	_ = w.Close() // nothing is written but to memory
	return b.Bytes()
}

// Unpack reads what Pack made for a disk of that size.
func Unpack(packed []byte, size int64) (*Map, error) {
	m, err := NewMap(size)
	if err != nil {
		return nil, err
	}
	want := int64(len(m.used)+1) * 8
	// No more than it can be: a database that was tampered with must not fill the
	// memory.
	data, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), want+1))
	if err != nil {
		return nil, fmt.Errorf("the map of the disk cannot be read: %w", err)
	}
	if int64(len(data)) != want || binary.BigEndian.Uint64(data) != uint64(size) { //nolint:gosec // positive
		return nil, errors.New("the map is of another disk")
	}
	for i := range m.used {
		m.used[i] = binary.BigEndian.Uint64(data[8*(i+1):])
	}
	return m, nil
}
