package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// console follows what a guest says of its records.
type console struct {
	path   string
	offset int64
	rest   []byte
	// acked is the last record that is on every disk, in the present course of
	// things: a restore takes it back.
	acked uint32
	// boots are those since they were last forgotten.
	boots []boot
}

// boot is one start of the guest.
type boot struct {
	found  uint32 // the number on its first disk
	before uint32 // what it had acknowledged before
}

// read takes in what the guest has said since. An error is a violation.
func (c *console) read() error {
	file, err := os.Open(c.path)
	if os.IsNotExist(err) {
		return nil // it was never on
	}
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, c.offset, 1<<30))
	if err != nil {
		return err
	}
	c.offset += int64(len(text))
	c.rest = append(c.rest, text...)
	for {
		line, rest, whole := bytes.Cut(c.rest, []byte("\n"))
		if !whole {
			return nil
		}
		c.rest = rest
		if err := c.hear(string(line)); err != nil {
			return err
		}
	}
}

// hear takes in one line: B for a boot, A for an acknowledged record, V for data that
// was not what had been written.
func (c *console) hear(line string) error {
	// A line that was cut off by the death of QEMU runs into the next one.
	if len(line) > 9 {
		line = line[len(line)-9:]
	}
	if len(line) < 9 {
		return fmt.Errorf("the guest printed %q", line)
	}
	n64, err := strconv.ParseUint(line[1:], 16, 32)
	if err != nil {
		return fmt.Errorf("the guest printed %q", line)
	}
	n := uint32(n64)
	switch line[0] {
	case 'B':
		c.boots = append(c.boots, boot{found: n, before: c.acked})
		c.acked = max(n, 1) - 1
	case 'A':
		if n != c.acked+1 {
			return fmt.Errorf("the guest acknowledged record %d after %d", n, c.acked)
		}
		c.acked = n
	case 'V':
		return fmt.Errorf("the guest found other data than it had written, at record %d", n)
	default:
		return fmt.Errorf("a disk failed the guest at record %d (%q)", n, line)
	}
	return nil
}

// wait returns when the guest has acknowledged one more record than it had, and
// more than after.
func (c *console) wait(within time.Duration, done func() bool) error {
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		if err := c.read(); err != nil || done() {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the guest writes no more: record %d was acknowledged %s ago or earlier", c.acked, within)
		}
	}
}
