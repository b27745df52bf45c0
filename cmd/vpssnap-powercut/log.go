package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// The format is that of the kernel's dm-log-writes: a super block, then entries,
// each a header in one sector and the data, all little endian.
const (
	logMagic     = 0x6a736677736872
	logVersion   = 1
	headerSize   = 32
	flagFlush    = 1
	flagFUA      = 2
	flagDiscard  = 4
	flagMark     = 8
	deviceSector = 512 // what entries count in
)

// entry is one request to the device.
type entry struct {
	Offset, Length int64 // on the device, in bytes
	Flags          uint64
	Data           int64 // where the data lies in the log
	End            int64 // how long the log is with this entry
}

// flushes reports whether everything before the entry is durable.
func (e entry) flushes() bool { return e.Flags&flagFlush != 0 }

// record is a device's log of writes.
type record struct {
	file    *os.File
	entries []entry
}

// readLog reads the headers of a log that nobody writes to any more.
func readLog(file *os.File) (*record, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, headerSize)
	if _, err := file.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("cannot read the log's super block: %w", err)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(head[8*i:]) }
	sector := int64(binary.LittleEndian.Uint32(head[24:]))
	if word(0) != logMagic || word(1) != logVersion || sector < deviceSector || sector > 1<<20 {
		return nil, fmt.Errorf("the log begins with %x", head)
	}
	r := &record{file: file}
	for at := sector; at+sector <= info.Size(); at = r.entries[len(r.entries)-1].End {
		if _, err := file.ReadAt(head, at); err != nil {
			return nil, fmt.Errorf("cannot read the log at %d: %w", at, err)
		}
		e := entry{Flags: word(2), Data: at + sector}
		if word(0) > 1<<50 || word(1) > 1<<40 || word(3) != 0 {
			return nil, fmt.Errorf("the log has no entry at %d: %x", at, head)
		}
		e.Offset, e.Length = int64(word(0))*sector, int64(word(1))*sector
		// Discards and marks have no data in the log.
		e.End = e.Data
		if e.Flags&(flagDiscard|flagMark) == 0 {
			e.End += e.Length
		}
		r.entries = append(r.entries, e)
	}
	return r, nil
}

// length is how long the log is with the first n entries.
func (r *record) length(n int) int64 {
	if n == 0 {
		return 0
	}
	return r.entries[n-1].End
}

// lastFlush is the number of entries up to the last flush among the first n.
func (r *record) lastFlush(n int) int {
	for n > 0 && !r.entries[n-1].flushes() {
		n--
	}
	return n
}

// apply does to device what the entries from first up to, not including, end did.
func (r *record) apply(device *os.File, first, end int) error {
	for _, e := range r.entries[first:end] {
		if err := r.applyOne(device, e); err != nil {
			return fmt.Errorf("cannot replay a write: %w", err)
		}
	}
	return nil
}

// scatter does the same, but every write that was not flushed may be missing: a
// volatile cache keeps what it likes.
func (r *record) scatter(device *os.File, first, end int, source *rand.Rand) error {
	for _, e := range r.entries[first:end] {
		// A FUA write was acknowledged as durable.
		if e.Flags&flagFUA == 0 && source.IntN(2) == 0 {
			continue
		}
		if err := r.applyOne(device, e); err != nil {
			return fmt.Errorf("cannot replay a write: %w", err)
		}
	}
	return nil
}

// A discard reads as zeroes afterwards.
func (r *record) applyOne(device *os.File, e entry) error {
	if e.Flags&flagMark != 0 || e.Length == 0 {
		return nil
	}
	var data io.Reader = io.NewSectionReader(r.file, e.Data, e.Length)
	if e.Flags&flagDiscard != 0 {
		data = io.LimitReader(zeroes{}, e.Length)
	}
	n, err := io.Copy(io.NewOffsetWriter(device, e.Offset), data)
	if err == nil && n != e.Length {
		err = errors.New("the log ends too early")
	}
	return err
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
