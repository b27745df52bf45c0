package download

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"golang.org/x/time/rate"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/qcow2"
)

// readAhead is how much is read at a time.
const readAhead = 256 << 10

// OpenDownload opens the image that a link is for. It is read no faster than the
// policy says, and gives an error from the moment that the download is cut off.
//
// Codes: not_found, operation_in_progress, vps_changed, rate_limited,
// hypervisor_unavailable.
func (d *Downloads) OpenDownload(ctx context.Context, link string) (vps.Download, io.ReadSeekCloser, error) {
	found, err := d.FindDownload(ctx, link)
	if err != nil {
		return found, nil, err
	}
	// The link is over at its end, also for who has begun before.
	ctx, cancel := context.WithTimeoutCause(ctx, found.ExpiresAt.Sub(d.store.Now()), errors.New("the link has expired"))
	r, snap, err := d.begin(ctx, found.VPS, found.ID)
	if err != nil {
		cancel()
		return found, nil, err
	}
	context.AfterFunc(r.ctx, cancel)
	// Asked again: a revocation looks for sessions, and this one is among them only now.
	if _, err := d.FindDownload(ctx, link); err != nil { // or it was revoked meanwhile
		r.end()
		return found, nil, err
	}
	c, err := d.open(r, found, snap)
	if err != nil {
		return found, nil, err // and not a reader that is none
	}
	return found, c, nil
}

// open opens an image for a reader, which ends with it.
func (d *Downloads) open(r *session, of vps.Download, snap vps.Snapshot) (*content, error) {
	c := &content{d: d, of: of, reading: r, size: of.Image.SizeBytes, sum: sha256.New()}
	err := d.openImage(r.ctx, c, snap)
	if err != nil {
		if c.disk != nil {
			err = errors.Join(err, c.disk.Close())
		}
		r.end()
		return nil, err
	}
	// Cut off, it lets go of the disk at once, whatever its reader waits for.
	context.AfterFunc(r.ctx, c.release)
	return c, nil
}

// openImage prepares the disk for reading, unless the link is for a snapshot that is gone
// or its files are not what the record says: a customer must never be sent a damaged image
// as if it were whole.
func (d *Downloads) openImage(ctx context.Context, c *content, snap vps.Snapshot) error {
	name := d.inventory.Name(c.of.VPS)
	// Of the snapshot that the link was made for: a replace gives the VPS another one.
	disk, err := chosenDisk(name, snap, c.of.Disk)
	if err != nil || snap.ID != c.of.SnapshotID {
		return errNoLink()
	}
	if err := d.checkReadable(ctx, name, snap, disk); err != nil {
		return err
	}
	if c.disk, err = d.host.Export(ctx, disk.Base, disk.BaseFormat); err != nil {
		return errUnreadable(name, disk, "").Because(err)
	}
	// The link promises a length (Content-Length, and the qcow2 layout).
	if c.disk.Size() != disk.SizeBytes {
		return errUnreadable(name, disk, "its size has changed")
	}
	c.image = c.disk
	if c.of.Format == vps.FormatQcow2 {
		m, err := qcow2.Unpack(c.of.Image.Map, disk.SizeBytes)
		if err != nil {
			return err
		}
		c.image = qcow2.NewImage(m).Read(c.disk)
	}
	if most := d.policy().Rate; most > 0 {
		c.limit = rate.NewLimiter(rate.Limit(most), readAhead)
	}
	return nil
}

// content is an image that is being read. Who reads it is one.
type content struct {
	d       *Downloads
	of      vps.Download
	reading *session
	disk    hypervisor.Export
	image   io.ReaderAt
	limit   *rate.Limiter // nil: none
	closing sync.Once

	size, at int64
	// ahead is what was read from aheadAt on, and not yet taken.
	ahead   []byte
	aheadAt int64
	buffer  [readAhead]byte
	// sum is of the first summed bytes.
	sum    hash.Hash
	summed int64
}

// Seek only notes the place; http.ServeContent asks for the end first, to learn the size.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return 0, errors.New("a place before the image")
	}
	c.at = offset
	return offset, nil
}

// Read hands out what was read ahead, and reads on when that is used up. What it hands out
// is counted into the sum only here, because Seek may skip.
func (c *content) Read(p []byte) (int, error) {
	if c.at >= c.size {
		return 0, io.EOF
	}
	if c.at < c.aheadAt || c.at >= c.aheadAt+int64(len(c.ahead)) {
		if err := c.fill(); err != nil {
			return 0, fmt.Errorf("disk %s of %s cannot be read on: %w", c.of.Disk, c.d.inventory.Name(c.of.VPS), err)
		}
	}
	n := copy(p, c.ahead[c.at-c.aheadAt:])
	c.add(p[:n])
	return n, nil
}

// fill reads on. What was read before the download was cut off is right, but
// nothing after it is handed out.
func (c *content) fill() error {
	n := int(min(readAhead, c.size-c.at))
	// The wait is for whole pieces, so that a slow reader costs a wake-up per 256 KiB.
	if c.limit != nil {
		if err := c.limit.WaitN(c.reading.ctx, n); err != nil {
			return errors.Join(err, context.Cause(c.reading.ctx))
		}
	}
	read, err := c.image.ReadAt(c.buffer[:n], c.at)
	if read < n {
		return errors.Join(err, context.Cause(c.reading.ctx))
	}
	if c.reading.ctx.Err() != nil {
		return context.Cause(c.reading.ctx)
	}
	c.ahead, c.aheadAt = c.buffer[:n], c.at
	return nil
}

// add sums what is handed out for the first time, as long as nothing is left out.
// At the end of the image the sum is known, or it is time to find it out.
func (c *content) add(p []byte) {
	if c.at == c.summed {
		c.sum.Write(p)
		c.summed += int64(len(p))
	}
	c.at += int64(len(p))
	switch {
	case c.at < c.size || c.of.Image.SHA256 != nil:
	case c.summed == c.size:
		c.of.Image.SHA256 = c.sum.Sum(nil)
		c.d.keepSum(c.of)
	default:
		c.d.sumLater(c.of)
	}
}

// release lets go of the disk. After it QEMU's lock is free, which is what CutOff waits
// for.
func (c *content) release() {
	c.closing.Do(func() {
		if err := c.disk.Close(); err != nil {
			c.d.logger.Warn("image not closed", "vps", c.d.inventory.Name(c.of.VPS), "error", err)
		}
		c.reading.end()
	})
}

// Close ends a read that hangs before it waits for it.
func (c *content) Close() error {
	c.reading.cut(errReadingOver)
	c.release()
	return nil
}

// keepSum records what an image sums up to.
func (d *Downloads) keepSum(of vps.Download) {
	err := d.store.Write(
		d.group.Context(), func(tx *store.Tx) error { return tx.SetImageSum(d.group.Context(), of, of.Image.SHA256) },
	)
	if err != nil && d.group.Context().Err() == nil {
		d.logger.Warn("sum of an image not kept", "vps", d.inventory.Name(of.VPS), "error", err)
	}
}

// sumLater has an image summed up that was downloaded in parts.
func (d *Downloads) sumLater(of vps.Download) {
	select {
	case d.sums <- of:
	default: // the next download of it is another occasion
	}
}

// SumImages sums up one image at a time, no faster than a download. It gives way
// like one, too.
func (d *Downloads) SumImages(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case of := <-d.sums:
			if err := d.sumUp(ctx, of); err != nil && ctx.Err() == nil {
				d.logger.Info("image not summed up", "vps", d.inventory.Name(of.VPS), "error", err)
			}
		}
	}
}

// sumUp computes the SHA-256 of the image once, for all links to it.
func (d *Downloads) sumUp(ctx context.Context, of vps.Download) error {
	known, err := d.store.Image(ctx, of.SnapshotID, of.Disk, of.Format)
	if err != nil || known.SHA256 != nil {
		return err
	}
	r, snap, err := d.begin(ctx, of.VPS, "")
	if err != nil {
		return err
	}
	c, err := d.open(r, of, snap)
	if err != nil {
		return err
	}
	defer c.Close()
	// Read like a customer's download: with its limit, and cut off like one.
	_, err = io.Copy(io.Discard, c) // at its end the sum is kept
	return err
}
