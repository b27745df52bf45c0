package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"vpssnapd/hypervisor/lab"
)

const (
	blockSize = 64 << 10
	blocks    = 64
)

// victim is one VPS and what must be true of it.
type victim struct {
	name    string
	targets []string
	state   string // as virsh says it: running, paused, shut off
	current disks
	// snapshot and undo are nil while there is none.
	snapshot, undo disks
}

// disks is what each disk of a VPS may hold, by target and block. More than one
// value means that a write was not acknowledged, or fell into a snapshot's moment.
type disks map[string][][]byte

func newDisks(targets []string) disks {
	d := disks{}
	for _, t := range targets {
		d[t] = make([][]byte, blocks)
		for i := range d[t] {
			d[t][i] = []byte{0}
		}
	}
	return d
}

func (d disks) clone() disks {
	c := disks{}
	for t, all := range d {
		for _, values := range all {
			c[t] = append(c[t], slices.Clone(values))
		}
	}
	return c
}

// settle fixes every block to the value that was really found.
func (d disks) settle(target string, block int, value byte) { d[target][block] = []byte{value} }

// write lets the guest write one block and notes whether that was acknowledged.
func (v *victim) write(ctx context.Context, l *lab.Lab, target string, block int, value byte) {
	err := l.WriteDisk(ctx, v.name, target, int64(block)*blockSize, value, blockSize)
	if err == nil {
		v.current.settle(target, block, value)
		return
	}
	v.current[target][block] = append(v.current[target][block], value)
}

// compare reads every disk and holds it against the model.
func (v *victim) compare(ctx context.Context, l *lab.Lab) error {
	for _, target := range v.targets {
		data, err := l.ReadDisk(ctx, v.name, target, 0, blocks*blockSize)
		if err != nil {
			return fmt.Errorf("%s: %s cannot be read: %w", v.name, target, err)
		}
		for b := range blocks {
			block := data[b*blockSize : (b+1)*blockSize]
			if !bytes.Equal(block, bytes.Repeat(block[:1], blockSize)) {
				return fmt.Errorf("%s: block %d of %s is torn", v.name, b, target)
			}
			if !slices.Contains(v.current[target][b], block[0]) {
				return fmt.Errorf("%s: block %d of %s holds %#x, the guest had written and flushed %#x", v.name, b, target, block[0], v.current[target][b])
			}
			v.current.settle(target, b, block[0])
		}
	}
	return nil
}
