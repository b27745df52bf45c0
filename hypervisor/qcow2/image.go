package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sort"
)

const (
	perTable       = cluster / 8 // entries of an L1, L2 or refcount table's cluster
	perBlock       = cluster / 2 // refcounts of 16 bits in a refcount block
	wordsPerTable  = perTable / 64
	copied         = 1 << 63 // of an entry: the cluster has one user
	magic          = 0x514649fb
	headerLength   = 104
	refcountOrder  = 4 // 2^4 bits
	formatVersion3 = 3
)

// Image is the file. Its clusters are, in this order: the header, the L1 table, the
// refcount table, the refcount blocks, an L2 table for each 512 MiB of the disk that
// hold data, and the data in the order of the disk. Where each part lies follows from
// the map alone, so that any byte of the file can be made without the bytes before it.
type Image struct {
	m *Map
	// tables and data are, for each L2 table of the disk, how many L2 tables and
	// data clusters come before it; a last entry has the totals.
	tables, data []int64
	// the first cluster of each part
	l1, refTable, refBlocks, l2, first, total int64
}

// NewImage lays the disk out.
func NewImage(m *Map) *Image {
	i := &Image{m: m, tables: []int64{0}, data: []int64{0}}
	count := (clusters(m.size) + perTable - 1) / perTable
	for t := range count {
		n := m.count(t*wordsPerTable, (t+1)*wordsPerTable)
		i.data = append(i.data, i.data[t]+n)
		i.tables = append(i.tables, i.tables[t]+min(n, 1))
	}
	i.l1 = 1
	i.refTable = i.l1 + clusters(count*8)
	// They describe themselves: more clusters of refcounts need more refcounts. It ends,
	// because one block has room for 32,768 clusters.
	for i.place(1, 1); ; {
		// What the refcounts take is counted, too.
		blocks := (i.total + perBlock - 1) / perBlock
		tables := clusters(blocks * 8)
		if blocks == i.l2-i.refBlocks && tables == i.refBlocks-i.refTable {
			return i
		}
		i.place(tables, blocks)
	}
}

// place says where each part begins, if the refcounts take so many clusters.
func (i *Image) place(refTables, refBlocks int64) {
	last := len(i.data) - 1
	i.refBlocks = i.refTable + refTables
	i.l2 = i.refBlocks + refBlocks
	i.first = i.l2 + i.tables[last]
	i.total = i.first + i.data[last]
}

// Size is the length of the file.
func (i *Image) Size() int64 { return i.total * cluster }

// Read returns the file with the data of a disk. The disk must not change while it is
// read: a frozen base.
func (i *Image) Read(disk io.ReaderAt) io.ReaderAt { return &reader{i, disk} }

type reader struct {
	*Image
	disk io.ReaderAt
}

func (r *reader) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 {
		return 0, errors.New("a negative offset")
	}
	for n < len(p) && err == nil {
		at := offset + int64(n)
		if at >= r.Size() {
			// io.ReaderAt allows a short read only with an error.
			return n, io.EOF
		}
		var read int
		if c := at / cluster; c >= r.first {
			read, err = r.readData(p[n:], c-r.first, at%cluster)
		} else {
			read = copy(p[n:], r.metadata(c)[at%cluster:])
		}
		n += read
	}
	return n, err
}

// readData reads data clusters that follow each other on the disk, too, in one go.
func (r *reader) readData(p []byte, k, within int64) (int, error) {
	guest := r.guest(k)
	run := int64(1)
	// One read of the disk for many clusters: each is a round trip to QEMU.
	for run*cluster-within < int64(len(p)) && r.m.has(guest+run) {
		run++
	}
	p = p[:min(int64(len(p)), run*cluster-within)]
	offset := guest*cluster + within
	inside := max(0, min(int64(len(p)), r.m.size-offset))
	clear(p[inside:]) // the last cluster may be longer than the disk
	n, err := r.disk.ReadAt(p[:inside], offset)
	if int64(n) < inside {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("the disk ends at %d: %w", offset+int64(n), io.ErrUnexpectedEOF)
		}
		return n, err
	}
	return len(p), nil
}

// guest is the cluster of the disk with the k-th data.
func (i *Image) guest(k int64) int64 {
	// Skips the L2 tables before it; the rest is one table's words.
	table := int64(sort.Search(len(i.data)-1, func(t int) bool { return i.data[t+1] > k }))
	k -= i.data[table]
	for w := table * wordsPerTable; ; w++ {
		word := i.m.used[w]
		if n := int64(bits.OnesCount64(word)); k >= n {
			k -= n
			continue
		}
		for range k {
			word &= word - 1 // without its lowest bit
		}
		return w*64 + int64(bits.TrailingZeros64(word))
	}
}

// metadata is a cluster of anything but data.
func (i *Image) metadata(c int64) []byte {
	b := make([]byte, cluster)
	switch {
	case c == 0:
		i.header(b)
	case c < i.refTable:
		i.fill(b, (c-i.l1)*perTable, int64(len(i.data)-1), func(t int64) int64 {
			if i.tables[t] == i.tables[t+1] {
				// No table: these 512 MiB read as zeroes.
				return 0
			}
			return i.l2 + i.tables[t]
		}, copied)
	case c < i.refBlocks:
		i.fill(b, (c-i.refTable)*perTable, i.l2-i.refBlocks, func(block int64) int64 { return i.refBlocks + block }, 0)
	case c < i.l2:
		first := (c - i.refBlocks) * perBlock
		// Every cluster has one user, which keeps qemu-img check content.
		for n := range min(perBlock, i.total-first) {
			binary.BigEndian.PutUint16(b[2*n:], 1)
		}
	default:
		i.table(b, c-i.l2)
	}
	return b
}

// fill writes the entries from first on of a table of so many.
func (i *Image) fill(b []byte, first, entries int64, clusterOf func(int64) int64, flags uint64) {
	for n := range min(perTable, max(0, entries-first)) {
		if c := clusterOf(first + n); c != 0 {
			binary.BigEndian.PutUint64(b[8*n:], uint64(c)<<clusterBits|flags) //nolint:gosec // positive
		}
	}
}

// table writes the n-th L2 table that the file has.
func (i *Image) table(b []byte, n int64) {
	t := int64(sort.Search(len(i.tables)-1, func(t int) bool { return i.tables[t+1] > n }))
	next := i.first + i.data[t]
	for e := range int64(perTable) {
		if i.m.has(t*perTable + e) {
			binary.BigEndian.PutUint64(b[8*e:], uint64(next)<<clusterBits|copied) //nolint:gosec // positive
			next++
		}
	}
}

// header writes that of version 3 without any feature.
func (i *Image) header(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], formatVersion3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(i.m.size))                //nolint:gosec // positive
	be.PutUint32(b[36:], uint32(len(i.data)-1))           //nolint:gosec // mostBytes
	be.PutUint64(b[40:], uint64(i.l1)<<clusterBits)       //nolint:gosec // positive
	be.PutUint64(b[48:], uint64(i.refTable)<<clusterBits) //nolint:gosec // positive
	be.PutUint32(b[56:], uint32(i.refBlocks-i.refTable))  //nolint:gosec // mostBytes
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
}
