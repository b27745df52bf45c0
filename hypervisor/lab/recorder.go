package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// What a guest with Recorder writes: record n is RecordSize bytes, n again and
// again as 32 bits in the order of x86, in slot 1 + n%RecordSlots of every disk.
const (
	RecordSlots = 63
	SlotSize    = 64 << 10
	RecordSize  = 16 << 10
	// RecorderDisk is how large a disk is that has all slots.
	RecorderDisk = (1 + RecordSlots) * SlotSize
)

// SlotOf is where record n is on a disk.
func SlotOf(n uint32) int64 { return int64(1+n%RecordSlots) * SlotSize }

// recordOf is the content of record n.
func recordOf(n uint32) []byte {
	record := make([]byte, RecordSize)
	for i := 0; i < RecordSize; i += 4 {
		binary.LittleEndian.PutUint32(record[i:], n)
	}
	return record
}

// prepareRecorder makes the disks what the recorder needs: written through, and
// known to the firmware, which leaves out a disk that has no place in its order.
func prepareRecorder(s *Spec) {
	for i := range s.Disks {
		s.Disks[i].writeThrough = true
		s.Disks[i].Extra += fmt.Sprintf("<boot order='%d'/>", i+1)
	}
}

// installRecorder puts the recorder into a disk's first sector.
func (l *Lab) installRecorder(ctx context.Context, d DiskSpec) error {
	work, err := os.MkdirTemp(l.dir, "recorder-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	source, object, sector := filepath.Join(
		work, "recorder.s",
	), filepath.Join(
		work,
		"recorder.o",
	), filepath.Join(
		work, "sector",
	)
	text, err := guestFiles.ReadFile("guest/recorder.s")
	if err != nil {
		return err
	}
	if err := os.WriteFile(source, text, 0o600); err != nil {
		return err
	}
	if _, err := run(ctx, "as", "--32", "-o", object, source); err != nil {
		return err
	}
	if _, err := run(ctx, "ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "0x7c00", "--oformat", "binary", "-o", sector, object); err != nil {
		return err
	}
	return l.writeImage(ctx, d.Path, d.Format, sector, 0, 512)
}

// Record writes record n into an image that no QEMU has open, as the recorder
// would.
func (l *Lab) Record(ctx context.Context, path, format string, n uint32) error {
	file, err := os.CreateTemp(l.dir, "record-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(recordOf(n))
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return l.writeImage(ctx, path, format, file.Name(), SlotOf(n), RecordSize)
}

func (l *Lab) writeImage(ctx context.Context, path, format, content string, offset, length int64) error {
	command := "write -s " + content + " " + strconv.FormatInt(offset, 10) + " " + strconv.FormatInt(length, 10)
	_, err := run(ctx, "qemu-io", "-f", format, "-c", command, "-c", "flush", path)
	return err
}

// ReadImage is what a guest would see if path were its disk. As with HashImage,
// what a QEMU has not flushed yet is missing.
func (l *Lab) ReadImage(ctx context.Context, path, format string) ([]byte, error) {
	var data []byte
	err := l.copyOf(ctx, imageOptions(path, format), func(file *os.File) (err error) {
		data, err = os.ReadFile(file.Name())
		return err
	})
	return data, err
}
