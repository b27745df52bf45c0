// Package qemuimg works on disk images for the real host: it is the only place
// that runs qemu-img and qemu-nbd, and it does the file work around them
// (identity, exchange, copy, removal). It implements hypervisor.Images.
//
// Three rules hold for every call. Formats are stated, never probed. A name is
// an absolute path of a local file, never one of QEMU's pseudo names such as
// json: or nbd:. Whatever is said to be durable has been synced, and so has its
// directory.
package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// binaryDirs is where qemu-img is looked for. $PATH is the caller's, not ours.
var binaryDirs = []string{"/usr/bin", "/usr/local/bin", "/bin"}

const (
	// infoLimit bounds what is read of qemu-img's answer; an image can hold any
	// number of internal snapshots with names of any length.
	infoLimit = 4 << 20
	// errorLimit bounds what is kept of its error output.
	errorLimit = 4 << 10
	// shortTime bounds calls that only read or write an image's header.
	shortTime = 20 * time.Second
	// actTime bounds calls that change a name or two, and sync it, which a busy array may
	// take long for.
	actTime = time.Minute
)

// Images implements hypervisor.Images.
type Images struct {
	binary   string
	removals removals
	storage  storage
	// Confine is told the process id of every qemu-img that works for long, to
	// keep it from taking what guests need; nil: nobody is told. A failure of its
	// own is its own affair: the work is done all the same.
	Confine func(ctx context.Context, pid int)
}

var _ hypervisor.Images = (*Images)(nil)

// New finds qemu-img in the system's own directories.
func New() (*Images, error) {
	for _, dir := range binaryDirs {
		path := filepath.Join(dir, "qemu-img")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return &Images{binary: path}, nil
		}
	}
	return nil, fmt.Errorf("cannot find qemu-img in %s", strings.Join(binaryDirs, ", "))
}

// run runs qemu-img and hands its standard output to read. The process dies with
// ctx and with the daemon: a merge that goes on unattended would keep the image
// lock and with it the recovery waiting.
func (i *Images) run(ctx context.Context, read io.Writer, args ...string) error {
	return i.runWith(ctx, read, nil, args)
}

// runLong runs qemu-img for work that may take long, confined.
func (i *Images) runLong(ctx context.Context, read io.Writer, args ...string) error {
	return i.runWith(ctx, read, i.Confine, args)
}

// runWith runs qemu-img with a list of arguments, never through a shell, and kills it when
// ctx or this process ends: one that goes on alone would write to images that nobody
// watches.
func (i *Images) runWith(ctx context.Context, read io.Writer, confine func(context.Context, int), args []string) error {
	// The death signal is tied to the thread that starts the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stderr := &limitedBuffer{limit: errorLimit}
	cmd := command(ctx, i.binary, args...)
	cmd.Stdout = read
	cmd.Stderr = stderr
	err := cmd.Start()
	if err == nil {
		if confine != nil {
			confine(ctx, cmd.Process.Pid)
		}
		err = cmd.Wait()
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("qemu-img %s was stopped: %w", args[0], context.Cause(ctx))
	}
	return classify(fmt.Sprintf("qemu-img %s", args[0]), err, stderr.String())
}

// command is a program that gets a fixed environment and dies with ctx, and with
// the thread that starts it.
func command(ctx context.Context, binary string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// classify turns QEMU's words into the errors of the contract. It has no
// error codes; its environment fixes the language.
func classify(what string, err error, text string) error {
	text = strings.TrimSpace(text)
	for _, c := range []struct {
		words string
		kind  error
	}{
		{"No space left on device", hypervisor.ErrNoSpace},
		{"Disk quota exceeded", hypervisor.ErrNoSpace},
		{`" lock`, hypervisor.ErrBusy}, // Failed to get shared "write" lock
		{"Permission denied", hypervisor.ErrDenied},
		{"Operation not permitted", hypervisor.ErrDenied},
		{"Unknown driver", hypervisor.ErrUnsupported},
		{"No such file or directory", fs.ErrNotExist},
	} {
		if strings.Contains(text, c.words) {
			return told(text, fmt.Errorf("%s: %w: %s", what, c.kind, text))
		}
	}
	return told(text, fmt.Errorf("%s: %w: %s", what, err, text))
}

// told adds a tool's own words to its error.
func told(words string, err error) error {
	if words == "" {
		return err
	}
	return &hypervisor.Told{Words: words, Err: err}
}

// fileError gives a system call's error its meaning in the contract.
func fileError(what string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w: %w", what, hypervisor.ErrNoSpace, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: %w", what, hypervisor.ErrDenied, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// checkPath refuses whatever is not the absolute path of a local file. QEMU takes a colon
// before the first slash for a protocol, so an absolute path cannot be mistaken for one,
// whatever else it holds. Where it is only read, detours (//, /x/../) are the kernel's to
// follow.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: %q is not an absolute path", hypervisor.ErrUnsupported, path)
	}
	return nil
}

// checkPlain refuses detours too: what is written is named as it is on record.
func checkPlain(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if filepath.Clean(path) != path {
		return fmt.Errorf("%w: %q is not a clean path", hypervisor.ErrUnsupported, path)
	}
	return nil
}

// checkFormat refuses what cannot be the name of an image format.
func checkFormat(format string) error {
	if format == "" || len(format) > 32 || strings.Trim(format, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("%w: image format %q", hypervisor.ErrUnsupported, format)
	}
	return nil
}

// limitedBuffer keeps the first limit bytes and notes that there were more.
type limitedBuffer struct {
	bytes.Buffer
	limit     int
	truncated bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := p
	if room := b.limit - b.Len(); len(keep) > room {
		keep, b.truncated = keep[:room], true
	}
	b.Buffer.Write(keep)
	return len(p), nil
}

// ReadFrom is what os/exec reads a pipe with. That of bytes.Buffer knows no limit.
func (b *limitedBuffer) ReadFrom(r io.Reader) (int64, error) {
	n, err := b.Buffer.ReadFrom(io.LimitReader(r, int64(b.limit-b.Len())))
	if err != nil || b.Len() < b.limit {
		return n, err
	}
	more, err := io.Copy(io.Discard, r)
	b.truncated = b.truncated || more > 0
	return n + more, err
}
