package qemuimg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The parts of a qcow2 image that tell how long it must be. Numbers are big-endian.
// https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
const (
	qcow2Magic      = 0x514649fb // "QFI\xfb"
	qcow2Extended   = 1 << 4     // an incompatible feature: 16 bytes for each cluster, not 8
	qcow2Offset     = 0x00fffffffffffe00
	qcow2Compressed = 1 << 62 // of a cluster
	qcow2MostL1     = 4 << 20 // bytes; QEMU's bound is 32 MiB, for images larger than any of ours
	qcow2TableTail  = 4 << 10 // bytes at the end of the last table that are looked at
)

// qcow2Header is as much of the header as version 3 always has.
type qcow2Header struct {
	Magic, Version   uint32
	BackingOffset    uint64
	BackingSize      uint32
	ClusterBits      uint32
	Size             uint64
	Crypt, L1Entries uint32
	L1Offset         uint64
	RefcountOffset   uint64
	RefcountClusters uint32
	Snapshots        uint32
	SnapshotsOffset  uint64
	Incompatible     uint64
}

// CutShort compares the length of an image with what its tables refer to. An overlay of
// ours has all its clusters from the beginning (profile), the last at the end of the last
// table, and never gets shorter. Of one that QEMU lays out as it goes only the tables
// count: after a power cut a cluster may be referred to whose data, which the guest had
// not flushed, never came.
func (i *Images) CutShort(ctx context.Context, path string) (bool, error) {
	what := fmt.Sprintf("cannot read the length of %q", path)
	if err := checkPath(path); err != nil {
		return false, fmt.Errorf("%s: %w", what, err)
	}
	if err := i.checkKind(ctx, path); err != nil {
		return false, fileError(what, err)
	}
	cut, err := look(ctx, &i.storage, path, func() (bool, error) { return cutShort(path) })
	if err != nil {
		return false, fileError(what, err)
	}
	return cut, nil
}

func cutShort(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	last, err := lastReferred(f)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	info, err := f.Stat() // after the tables, which a guest may extend meanwhile
	return err == nil && last >= uint64(max(0, info.Size())), err
}

// lastReferred is the highest place in an image that must be there; io.EOF or
// io.ErrUnexpectedEOF when the tables themselves are not. Of an image of another form it
// is 0: others tell what is wrong with that.
func lastReferred(f io.ReaderAt) (uint64, error) {
	var h qcow2Header
	if err := binary.Read(io.NewSectionReader(f, 0, int64(binary.Size(h))), binary.BigEndian, &h); err != nil {
		return 0, err
	}
	bytes := int64(h.L1Entries) * 8
	if h.Magic != qcow2Magic || h.Version < 3 || h.ClusterBits < 9 || h.ClusterBits > 21 || bytes == 0 || bytes > qcow2MostL1 {
		return 0, nil
	}
	l1, err := readTable(f, h.L1Offset, bytes)
	if err != nil {
		return 0, err
	}
	last := max(h.L1Offset, h.RefcountOffset)
	for _, entry := range l1 {
		last = max(last, entry&qcow2Offset)
	}
	table := l1[len(l1)-1] & qcow2Offset
	if table == 0 {
		return last, nil
	}
	clusters, err := lastClusters(f, h, table)
	for _, cluster := range clusters {
		if cluster == 0 { // not laid out in advance
			return last, err
		}
	}
	return max(last, slices.Max(append(clusters, 0))), err
}

// lastClusters is where the last clusters of the disk lie, by the table that ends it.
func lastClusters(f io.ReaderAt, h qcow2Header, table uint64) ([]uint64, error) {
	entry := uint64(8)
	if h.Incompatible&qcow2Extended != 0 {
		entry = 16
	}
	cluster := uint64(1) << h.ClusterBits
	count := (h.Size + cluster - 1) / cluster
	end := ((count-1)%(cluster/entry) + 1) * entry // of the last entry in its table
	bytes := min(end, qcow2TableTail)
	words, err := readTable(f, table+end-bytes, int64(bytes)) //nolint:gosec // 4 KiB
	var clusters []uint64
	for n := 0; n < len(words); n += int(entry / 8) { //nolint:gosec // 8 or 16
		at := words[n] & qcow2Offset
		if words[n]&qcow2Compressed != 0 { // its place is written in another way, as in a template
			at = 0
		}
		clusters = append(clusters, at)
	}
	return clusters, err
}

// readTable reads numbers; it ends with io.EOF or io.ErrUnexpectedEOF where the file does.
func readTable(f io.ReaderAt, offset uint64, bytes int64) ([]uint64, error) {
	table := make([]uint64, bytes/8)
	err := binary.Read(io.NewSectionReader(f, int64(offset), bytes), binary.BigEndian, table) //nolint:gosec // below 2^56
	return table, err
}
