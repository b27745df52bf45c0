package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// DiskSpec is one disk of a guest.
type DiskSpec struct {
	Target string // vda (virtio), sda (SATA), hda (IDE, not with UEFI), fda (floppy)
	Device string // disk (also ""), cdrom, floppy
	Format string // qcow2 (also ""), raw
	// SizeBytes makes a new image of that size. When it is 0, Path is used as it
	// is, and without Path the drive is empty.
	SizeBytes int64
	// Path is the image; "" is ImageDir()/<name>-<target>.<format>.
	Path string
	// Backing and BackingFormat make the image a linked clone.
	Backing       string
	BackingFormat string
	// Ext4 formats a new image; a guest with OS mounts it at /mnt/<target>.
	Ext4      bool
	ReadOnly  bool
	Shareable bool
	// Extra is XML put into <disk> as it is.
	Extra string

	direct       bool // the file system knows O_DIRECT
	writeThrough bool // each write is flushed before it is acknowledged
}

// Bus is the bus that the target's name stands for.
func (d DiskSpec) Bus() string {
	switch {
	case strings.HasPrefix(d.Target, "sd"):
		return "sata"
	case strings.HasPrefix(d.Target, "hd"):
		return "ide"
	case strings.HasPrefix(d.Target, "fd"):
		return "fdc"
	}
	return "virtio"
}

// Cache is the cache mode: none, as on a real host, or "" for the default where
// the file system cannot do that.
func (d DiskSpec) Cache() string {
	switch direct := d.direct && d.Path != ""; {
	case direct && d.writeThrough:
		return "directsync"
	case d.writeThrough:
		return "writethrough"
	case direct:
		return "none"
	}
	return ""
}

// allowsDirect tells whether files in dir can be opened with O_DIRECT: ext4 and
// xfs can, tmpfs and overlayfs may not.
func allowsDirect(dir string) bool {
	file, err := os.CreateTemp(dir, "direct-")
	if err != nil {
		return false
	}
	defer os.Remove(file.Name())
	file.Close()
	fd, err := syscall.Open(file.Name(), syscall.O_RDWR|syscall.O_DIRECT|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	syscall.Close(fd)
	return true
}

// create makes the image, mode 0600, and refuses one that exists.
func (d DiskSpec) create(ctx context.Context) error {
	if d.SizeBytes == 0 {
		return nil
	}
	if d.Ext4 {
		return d.createExt4(ctx)
	}
	if err := createEmpty(d.Path); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", d.Format}
	if d.Backing != "" {
		args = append(args, "-b", d.Backing, "-F", d.BackingFormat)
	}
	_, err := run(ctx, "qemu-img", append(args, d.Path, strconv.FormatInt(d.SizeBytes, 10))...)
	return err
}

// createEmpty takes the name before qemu-img does, so that nothing is
// overwritten and the mode is right from the first moment.
func createEmpty(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func (d DiskSpec) createExt4(ctx context.Context) error {
	if d.Backing != "" {
		return errors.New("a linked clone cannot be formatted anew")
	}
	if err := createEmpty(d.Path); err != nil {
		return err
	}
	raw := d.Path
	if d.Format != "raw" {
		raw += ".ext4"
		defer os.Remove(raw)
		if err := createEmpty(raw); err != nil {
			return err
		}
	}
	if err := os.Truncate(raw, d.SizeBytes); err != nil {
		return err
	}
	// Without lazy initialisation the guest writes nothing on its own.
	_, err := run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", d.Target,
		"-E", "lazy_itable_init=0,lazy_journal_init=0", raw)
	if err != nil || raw == d.Path {
		return err
	}
	_, err = run(ctx, "qemu-img", "convert", "-q", "-f", "raw", "-O", d.Format, raw, d.Path)
	return err
}

// WriteDisk fills length bytes at offset of the guest's disk with pattern, and
// flushes. On a guest that is on, QEMU writes as if the guest had; on one that
// is off, qemu-io writes into the image of the persistent definition. It reads
// back what it wrote, as QEMU tells no errors of such writes.
func (l *Lab) WriteDisk(ctx context.Context, name, target string, offset int64, pattern byte, length int64) error {
	state, err := l.State(ctx, name)
	if err != nil {
		return err
	}
	if state == "shut off" || state == "crashed" {
		d, err := l.source(ctx, name, target, true)
		if err != nil {
			return err
		}
		_, err = run(ctx, "qemu-io", "-f", d.Driver.Format, "-c", ioCommand("write", offset, pattern, length),
			"-c", "flush", d.Source.File)
		return err
	}
	device, err := l.device(ctx, name, target)
	if err != nil {
		return err
	}
	for _, command := range []string{ioCommand("write", offset, pattern, length), "flush"} {
		if _, err := l.HMP(ctx, name, fmt.Sprintf("qemu-io -d %s %q", device.Path, command)); err != nil {
			return err
		}
	}
	return l.CheckDisk(ctx, name, target, offset, pattern, length)
}

// CheckDisk is an error unless length bytes at offset, as the guest sees them,
// all are pattern.
func (l *Lab) CheckDisk(ctx context.Context, name, target string, offset int64, pattern byte, length int64) error {
	return l.withView(ctx, name, target, func(options string) error {
		out, err := run(ctx, "qemu-io", "-r", "-U", "--image-opts", "-c", ioCommand("read", offset, pattern, length), options)
		if err != nil {
			return fmt.Errorf("disk %s of %s: %w: %s", target, name, err, strings.TrimSpace(out))
		}
		return nil
	})
}

func ioCommand(verb string, offset int64, pattern byte, length int64) string {
	return fmt.Sprintf("%s -P %d %d %d", verb, pattern, offset, length)
}

// ReadDisk reads length bytes at offset as the guest sees them.
func (l *Lab) ReadDisk(ctx context.Context, name, target string, offset, length int64) ([]byte, error) {
	if offset < 0 || length < 0 {
		return nil, fmt.Errorf("cannot read %d bytes at %d", length, offset)
	}
	var data []byte
	err := l.withCopy(ctx, name, target, func(file *os.File) error {
		data = make([]byte, length)
		_, err := file.ReadAt(data, offset)
		return err
	})
	return data, err
}

// HashDisk is the SHA-256 of the whole disk as the guest sees it: of a guest
// that is on, what QEMU would read for it, also in the middle of a block job; of
// one that is off, the chain below the image of its persistent definition. A
// running guest that writes meanwhile makes the hash meaningless: suspend it.
// What the guest's own page cache holds is not on the disk. Looking lets a block
// job with a limited speed leap ahead, by about 16 MiB each time.
func (l *Lab) HashDisk(ctx context.Context, name, target string) (string, error) {
	var sum string
	err := l.withCopy(ctx, name, target, func(file *os.File) (err error) {
		sum, err = hash(file)
		return err
	})
	return sum, err
}

// HashImage is the SHA-256 of what a guest would see if path were its disk. It
// takes no lock, so it works beside a QEMU that has the image open. But what
// that QEMU has not flushed yet, metadata of qcow2 included, is missing: to
// be trusted only of images nobody writes to.
func (l *Lab) HashImage(ctx context.Context, path, format string) (string, error) {
	var sum string
	err := l.copyOf(ctx, imageOptions(path, format), func(file *os.File) (err error) {
		sum, err = hash(file)
		return err
	})
	return sum, err
}

func hash(file *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// withCopy calls use with a raw copy of the guest's disk.
func (l *Lab) withCopy(ctx context.Context, name, target string, use func(*os.File) error) error {
	return l.withView(ctx, name, target, func(options string) error {
		return l.copyOf(ctx, options, use)
	})
}

func (l *Lab) copyOf(ctx context.Context, options string, use func(*os.File) error) error {
	file, err := os.CreateTemp(l.dir, "copy-*.raw")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := run(ctx, "qemu-img", "convert", "-U", "--image-opts", options, "-O", "raw", file.Name()); err != nil {
		return err
	}
	return use(file)
}

// imageOptions names an image with its format stated.
func imageOptions(path, format string) string {
	return fmt.Sprintf("driver=%s,file.driver=file,file.filename=%s", format, strings.ReplaceAll(path, ",", ",,"))
}

// withView calls use with the image options under which qemu-img reads what the
// guest sees: of a guest that is on, an export by its own QEMU.
func (l *Lab) withView(ctx context.Context, name, target string, use func(options string) error) error {
	state, err := l.State(ctx, name)
	if err != nil {
		return err
	}
	if state == "shut off" || state == "crashed" {
		d, err := l.source(ctx, name, target, true)
		if err != nil {
			return err
		}
		return use(imageOptions(d.Source.File, d.Driver.Format))
	}
	device, err := l.device(ctx, name, target)
	if err != nil {
		return err
	}
	// A QEMU has one NBD server.
	l.exporting.Lock()
	defer l.exporting.Unlock()
	socket := filepath.Join(l.dir, "sock", "export")
	address := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}}
	if err := l.QMP(ctx, name, "nbd-server-start", address, nil); err != nil {
		return err
	}
	err = l.QMP(ctx, name, "block-export-add", map[string]any{
		"type": "nbd", "id": "lab", "name": "lab", "node-name": device.Node,
	}, nil)
	if err == nil {
		err = use("driver=nbd,export=lab,server.type=unix,server.path=" + strings.ReplaceAll(socket, ",", ",,"))
	}
	// Also when ctx is over: an export left behind would hold the disk's node.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopExportWithin)
	defer cancel()
	return errors.Join(err, l.QMP(stop, name, "nbd-server-stop", nil, nil))
}

// device is a disk of a guest that is on, as its QEMU calls it.
type device struct {
	Path string // of the device in QEMU's object tree
	Node string // the topmost block node
}

func (l *Lab) device(ctx context.Context, name, target string) (device, error) {
	d, err := l.source(ctx, name, target, false)
	if err != nil {
		return device{}, err
	}
	var blocks []struct {
		Path     string `json:"qdev"`
		Inserted struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := l.QMP(ctx, name, "query-block", nil, &blocks); err != nil {
		return device{}, err
	}
	for _, b := range blocks {
		// virtio disks are a child of the named device, others are the device itself.
		path := strings.TrimPrefix(b.Path, "/machine/peripheral/")
		if path == d.Alias.Name || strings.HasPrefix(path, d.Alias.Name+"/") {
			return device{Path: b.Path, Node: b.Inserted.Node}, nil
		}
	}
	return device{}, fmt.Errorf("QEMU of %s knows no disk %s", name, target)
}
