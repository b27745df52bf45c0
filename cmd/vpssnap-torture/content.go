package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"vpssnapd/hypervisor/lab"
)

// content is what one disk holds at a moment when nobody writes.
type content struct {
	sum [sha256.Size]byte
	// found is the greatest record, of which some may be missing. All before it
	// are whole.
	found uint32
}

// moment is what all disks of a VPS hold, by target.
type moment map[string]content

// equal reports whether two moments are the same on every disk, to the byte.
func (m moment) equal(other moment) bool {
	for target, c := range m {
		if c.sum != other[target].sum {
			return false
		}
	}
	return len(m) == len(other)
}

// inspect finds the greatest record on a disk, and makes sure that all before
// it are there, and low itself when that is the greatest.
func (v *victim) inspect(target string, data []byte, low uint32) (content, error) {
	c := content{sum: sha256.Sum256(data)}
	if len(data) != lab.RecorderDisk {
		return c, fmt.Errorf("%s of %s has %d bytes", target, v.name, len(data))
	}
	for slot := range uint32(lab.RecordSlots) {
		c.found = max(c.found, binary.LittleEndian.Uint32(data[lab.SlotOf(slot):]))
	}
	whole := c.found
	if c.found > low {
		whole--
	}
	return c, v.holds(target, data, whole, c.found)
}

// holds makes sure that a disk has every record up to whole that was not
// overwritten since, and besides only parts of those up to most.
func (v *victim) holds(target string, data []byte, whole, most uint32) error {
	if len(data) != lab.RecorderDisk {
		return fmt.Errorf("%s of %s has %d bytes", target, v.name, len(data))
	}
	// The first slot is never written by the guest, so a disk that was mixed up shows
	// there.
	if !bytes.Equal(data[:lab.SlotSize], v.beginnings[target]) {
		return fmt.Errorf("%s of %s has another beginning than it had", target, v.name)
	}
	for slot := range uint32(lab.RecordSlots) {
		at := lab.SlotOf(slot)
		if err := holdsRecord(data[at:at+lab.RecordSize], slot, whole, most); err != nil {
			return fmt.Errorf("%s of %s: %w", target, v.name, err)
		}
		if rest := data[at+lab.RecordSize : at+lab.SlotSize]; !bytes.Equal(rest, empty[:len(rest)]) {
			return fmt.Errorf("%s of %s: the guest never wrote behind slot %d, and there is something", target, v.name, slot)
		}
	}
	return nil
}

var empty [lab.SlotSize]byte

// holdsRecord compares one slot.
func holdsRecord(data []byte, slot, whole, most uint32) error {
	var want uint32 // the last record up to whole that belongs here
	if whole >= max(slot, 1) {
		want = whole - (whole-slot)%lab.RecordSlots
	}
	for i := 0; i < len(data); i += 4 {
		n := binary.LittleEndian.Uint32(data[i:])
		newer := n > whole && n <= most && n%lab.RecordSlots == slot
		if n != want && !newer {
			return fmt.Errorf(
				"slot %d holds %d where record %d must be; all up to %d are acknowledged, nothing beyond %d was written",
				slot, n, want, whole, most,
			)
		}
	}
	return nil
}

// image is a file, and how it is to be read.
type image struct{ path, format string }

// momentOf reads disks that nobody writes to. Records up to low must be there
// and none beyond high. The guest writes disk after disk, so an earlier disk may
// be ahead of a later one, by one record.
func (c *campaign) momentOf(ctx context.Context, v *victim, images map[string]image, low, high uint32) (moment, error) {
	m := moment{}
	first := uint32(0)
	for i, target := range v.targets {
		data, err := c.site.Lab.ReadImage(ctx, images[target].path, images[target].format)
		if err != nil {
			return nil, fmt.Errorf("%s of %s cannot be read: %w", target, v.name, err)
		}
		one, err := v.inspect(target, data, low)
		if err != nil {
			return nil, fmt.Errorf("%w (in %s)", err, images[target].path)
		}
		if i == 0 {
			first = one.found
		}
		switch {
		case one.found < low:
			return nil, fmt.Errorf(
				"%s of %s ends with record %d, the guest had flushed %d (in %s)", target, v.name, one.found, low,
				images[target].path,
			)
		case one.found > high:
			return nil, fmt.Errorf(
				"%s of %s has record %d, the guest had come to %d (in %s)", target, v.name, one.found, high,
				images[target].path,
			)
		// The guest writes disk after disk, so a gap of two means that the disks are of
		// different moments.
		case one.found > first || one.found+1 < first:
			return nil, fmt.Errorf(
				"%s of %s ends with record %d, %s with %d: they are not of one moment", target, v.name, one.found,
				v.targets[0], first,
			)
		}
		m[target] = one
	}
	return m, nil
}

// writtenTo makes sure that disks that the guest is writing to have every record
// that it has acknowledged.
func (c *campaign) writtenTo(ctx context.Context, v *victim, images map[string]image) error {
	for _, target := range v.targets {
		if err := v.console.read(); err != nil {
			return err
		}
		// Before the disk is read: what is acknowledged meanwhile need not be there.
		acked := v.console.acked
		data, err := c.site.Lab.ReadImage(ctx, images[target].path, images[target].format)
		if err != nil {
			return fmt.Errorf("%s of %s cannot be read: %w", target, v.name, err)
		}
		if err := v.console.read(); err != nil {
			return err
		}
		if err := v.holds(target, data, acked, v.console.acked+1); err != nil {
			return fmt.Errorf("%w (in %s)", err, images[target].path)
		}
	}
	return nil
}
