package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"vpssnapd/hypervisor"
)

// sameChunk is how much is compared at once.
const sameChunk = nbdMostAtOnce

// errDiffers ends a comparison early.
var errDiffers = errors.New("they differ")

// SameAsBase compares only what lies in the overlay itself: the rest of it is the
// base. qemu-img compare would read the whole disk twice.
func (i *Images) SameAsBase(ctx context.Context, m hypervisor.OfflineMerge) (same bool, err error) {
	what := fmt.Sprintf("cannot compare %q with %q", m.Overlay, m.Base)
	overlay, base, err := i.checkMerge(ctx, m)
	if err != nil {
		return false, fmt.Errorf("%s: %w", what, err)
	}
	if overlay.VirtualSize > base.VirtualSize {
		return false, nil
	}
	if err = i.compare(ctx, m); errors.Is(err, errDiffers) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", what, err)
	}
	return true, nil
}

// compare reads both images through qemu-nbd, byte for byte, but only where the overlay
// has data of its own: elsewhere it shows the base.
func (i *Images) compare(ctx context.Context, m hypervisor.OfflineMerge) error {
	upper, err := i.Export(ctx, m.Overlay, "qcow2")
	if err != nil {
		return err
	}
	defer upper.Close()
	lower, err := i.Export(ctx, m.Base, m.BaseFormat)
	if err != nil {
		return err
	}
	defer lower.Close()
	a, b := make([]byte, sameChunk), make([]byte, sameChunk)
	return i.extents(ctx, m.Overlay, "qcow2", func(e extent) error {
		if e.Depth > 0 {
			return nil
		}
		for at, end := e.Start, e.Start+e.Length; at < end; at += sameChunk {
			n := min(sameChunk, end-at)
			_, errUpper := upper.ReadAt(a[:n], at)
			_, errLower := lower.ReadAt(b[:n], at)
			if err := errors.Join(errUpper, errLower, context.Cause(ctx)); err != nil {
				return err
			}
			if !bytes.Equal(a[:n], b[:n]) {
				return errDiffers
			}
		}
		return nil
	})
}
