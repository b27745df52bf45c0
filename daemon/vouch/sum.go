package vouch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"io"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/qcow2"
)

// sumWithin bounds how long all bases of a snapshot are read for: a caller waits.
const sumWithin = 30 * time.Second

// compareSums compares the bases with the sums that downloads have left of them.
func (v *Vouchers) compareSums(ctx context.Context, f *findings) error {
	within, cancel := context.WithTimeout(ctx, sumWithin)
	defer cancel()
	for _, disk := range f.snap.Disks {
		img, format, err := v.knownImage(ctx, f.snap.ID, disk.Target)
		if err != nil {
			return err
		}
		if img.SHA256 == nil {
			f.doubt("disk %s: that the base holds the bytes of the snapshot (no download has left a sum of it)", disk.Target)
			continue
		}
		sum, err := v.sum(within, disk, img, format)
		switch {
		case within.Err() != nil && ctx.Err() == nil:
			f.doubt("disk %s: that the base holds the bytes of the snapshot (it could not be summed up within %s)",
				disk.Target, sumWithin)
		case err != nil:
			return err
		case !bytes.Equal(sum, img.SHA256):
			f.refuse("disk %s: its base does not hold the bytes of the snapshot: a download had another sum (SHA-256 %x)",
				disk.Target, img.SHA256)
		default:
			f.prove("disk %s: the base holds the bytes of the snapshot, by the sum of a download (SHA-256 %x)",
				disk.Target, sum)
		}
	}
	return nil
}

// knownImage is an image of a disk with its sum; the sum is nil when none is known.
func (v *Vouchers) knownImage(ctx context.Context, snapshot, target string) (vps.Image, vps.ImageFormat, error) {
	for _, format := range []vps.ImageFormat{vps.FormatRaw, vps.FormatQcow2} {
		img, err := v.store.Image(ctx, snapshot, target, format)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return vps.Image{}, "", err
		}
		if err == nil && img.SHA256 != nil {
			return img, format, nil
		}
	}
	return vps.Image{}, "", nil
}

// sum reads the base as the download did.
func (v *Vouchers) sum(
	ctx context.Context, disk vps.SnapshotDisk, img vps.Image, format vps.ImageFormat,
) (sum []byte, err error) {
	base, err := v.host.Export(ctx, disk.Base, disk.BaseFormat)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	from, size := io.ReaderAt(base), disk.SizeBytes
	if format == vps.FormatQcow2 {
		layout, err := qcow2.Unpack(img.Map, disk.SizeBytes)
		if err != nil {
			return nil, err
		}
		from, size = qcow2.NewImage(layout).Read(base), img.SizeBytes
	}
	hash := sha256.New()
	for part := io.NewSectionReader(from, 0, size); ; {
		_, err := io.CopyN(hash, part, 4<<20)
		switch {
		case errors.Is(err, io.EOF):
			return hash.Sum(nil), nil
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
	}
}
