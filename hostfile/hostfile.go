// Package hostfile opens the files that an operator has named: the configuration, and the
// certificates, keys, passwords, tokens and templates that it speaks of. Such a path may
// lead to anything: a FIFO, a device, a directory, 4 GB, a mount whose server is gone, a
// file that everybody may write to. Whoever asks gets a regular file of a sensible size
// that others cannot change, or an error that says what it is, within Within.
package hostfile

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

const (
	// Within is how long a file system may take to answer: one that is alive takes
	// microseconds, a sick array seconds, a dead NFS mount for ever.
	Within = 5 * time.Second
	// MaxSize is more than any certificate, template or configuration is long.
	MaxSize = 4 << 20
)

var (
	// ErrSilent: the file system, or what is behind the file, does not answer.
	ErrSilent = fmt.Errorf("it does not answer within %s; is it on a mount whose server is gone?", Within)
	// ErrTooLong: it is longer than MaxSize.
	ErrTooLong = fmt.Errorf("it is longer than %d MiB", MaxSize>>20)
)

// Read returns the content of a regular file that the guard lets through.
func Read(ctx context.Context, path string, g Guard) ([]byte, error) {
	return within(ctx, path, "read", g, func() ([]byte, error) { return read(path, g) })
}

// Names returns the names in a directory that the guard lets through.
func Names(ctx context.Context, dir string, g Guard) ([]string, error) {
	return within(ctx, dir, "list", g, func() ([]string, error) {
		if err := g.judge(dir, nil); err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(dir)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, err
	})
}

// Judge returns why the guard does not let a regular file, or a directory, through:
// Unsafe, or an error of the file system, as fs.ErrNotExist.
func Judge(ctx context.Context, path string, g Guard) error {
	_, err := within(ctx, path, "look at", g, func() (struct{}, error) { return struct{}{}, g.judge(path, nil) })
	return err
}

// read looks before it opens, because opening a device may do something, and never waits
// for the other end of a FIFO that has taken the file's place since.
func read(path string, g Guard) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil {
		err = mustBeRegular(path, info)
	}
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err = file.Stat(); err == nil {
		err = mustBeRegular(path, info)
	}
	if err == nil {
		err = g.judge(path, info)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = &fs.PathError{Op: "read", Path: path, Err: ErrTooLong}
	}
	return text, err
}

func mustBeRegular(path string, info fs.FileInfo) error {
	if info.Mode().IsRegular() && info.Size() <= MaxSize {
		return nil
	}
	err := ErrTooLong
	if !info.Mode().IsRegular() {
		err = fmt.Errorf("it is %s, no regular file", kindOf(info.Mode()))
	}
	return &fs.PathError{Op: "read", Path: path, Err: err}
}

func kindOf(mode fs.FileMode) string {
	switch mode.Type() {
	case fs.ModeDir:
		return "a directory"
	case fs.ModeNamedPipe:
		return "a FIFO"
	case fs.ModeSocket:
		return "a socket"
	}
	return "a device"
}

// flights are the calls under way. One on a mount that hangs keeps a thread for as long as
// it hangs; those who ask again wait for the same one.
var flights singleflight.Group

// within waits for a call on the file system of path for no longer than Within and ctx.
func within[T any](ctx context.Context, path, what string, g Guard, ask func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Within, ErrSilent)
	defer cancel()
	var none T
	select {
	case answer := <-flights.DoChan(fmt.Sprint(what, g, path), func() (any, error) { return ask() }):
		if answer.Err != nil {
			return none, answer.Err
		}
		return answer.Val.(T), nil
	case <-ctx.Done():
		return none, &fs.PathError{Op: what, Path: path, Err: context.Cause(ctx)}
	}
}
