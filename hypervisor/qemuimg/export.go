package qemuimg

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"vpssnapd/hypervisor"
)

// Extents reads what qemu-img map says. Without -U it takes the same lock as an
// export: what it says would not hold of an image that is written to.
func (i *Images) Extents(ctx context.Context, path, format string, visit func(offset, length int64)) error {
	what := fmt.Sprintf("cannot tell where %q holds data", path)
	if err := i.checkReadable(ctx, path, format); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	err := i.extents(ctx, path, format, func(e extent) error {
		if !e.Zero {
			visit(e.Start, e.Length)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// extent is a part of an image as qemu-img map describes it.
type extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	// Depth is how many images lie above the one that holds it.
	Depth int  `json:"depth"`
	Zero  bool `json:"zero"`
}

// extents visits the whole of an image, until visit returns an error.
func (i *Images) extents(ctx context.Context, path, format string, visit func(extent) error) error {
	out, in := io.Pipe()
	parsed := make(chan error, 1)
	go func() {
		err := parseExtents(out, visit)
		out.CloseWithError(err) // qemu-img ends, should it have more to say
		parsed <- err
	}()
	_, err := change(ctx, &i.storage, []string{path}, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, i.run(ctx, in, "map", "--output=json", "-f", format, path)
	})
	in.CloseWithError(err)
	if bad := <-parsed; err == nil || errors.Is(bad, errDiffers) {
		err = bad
	}
	return err
}

// parseExtents reads one extent after the other: of a large disk there may be millions.
func parseExtents(from io.Reader, visit func(extent) error) error {
	d := json.NewDecoder(from)
	if open, err := d.Token(); open != json.Delim('[') {
		return fmt.Errorf("qemu-img's answer is no list: %w", errors.Join(err, hypervisor.ErrUnsupported))
	}
	for end := int64(0); d.More(); {
		var e extent
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("qemu-img's answer: %w", err)
		}
		if e.Start != end || e.Length <= 0 || e.Start+e.Length < e.Start {
			return fmt.Errorf(
				"%w: qemu-img's answer has %d bytes at %d, after %d", hypervisor.ErrUnsupported, e.Length, e.Start, end,
			)
		}
		end += e.Length
		if err := visit(e); err != nil {
			return err
		}
	}
	// The closing bracket tells a whole answer from one that was cut off.
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("qemu-img's answer: %w", err)
	}
	return nil
}

// checkReadable makes sure that reading an image touches local files only.
func (i *Images) checkReadable(ctx context.Context, path, format string) error {
	if err := checkNames(path, format); err != nil {
		return err
	}
	_, err := i.checkChain(ctx, path, format)
	return err
}

// Export has qemu-nbd serve an image to us alone, over a Unix socket that nobody
// else can reach. It opens the image as QEMU opens a backing file: to read, and
// with a lock that keeps writers away.
func (i *Images) Export(ctx context.Context, path, format string) (hypervisor.Export, error) {
	what := fmt.Sprintf("cannot read %q", path)
	if err := i.checkReadable(ctx, path, format); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	cache, err := look(ctx, &i.storage, path, func() (string, error) { return cacheMode(path) })
	if err != nil {
		return nil, fileError(what, err)
	}
	dir, err := os.MkdirTemp("/tmp", "vpssnapd-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer os.RemoveAll(dir) // once both are connected nobody needs its name
	socket := filepath.Join(dir, "nbd")
	server, err := i.startServer(path,
		"--read-only", "--socket="+socket, "--format="+format, "--cache="+cache, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	e := &export{server: server}
	if e.conn, err = server.dial(ctx, socket); err == nil {
		e.size, err = negotiate(e.conn)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, errors.Join(err, e.why(ctx)))
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// export is an image that qemu-nbd serves.
type export struct {
	conn   net.Conn
	server *server
	size   int64
	reads  reads
}

// why is what qemu-nbd says of an export that failed. It listens before it opens
// the image, so that it may end after we have connected.
func (e *export) why(ctx context.Context) error {
	if e.conn != nil {
		_ = e.conn.Close() // without a client it ends, too
	}
	select {
	case <-e.server.ended:
		return e.server.err
	case <-ctx.Done():
		return nil
	}
}

func (e *export) Size() int64 { return e.size }

// ReadAt may be called by several at once; they are served one after the other.
func (e *export) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset >= e.size {
		return 0, io.EOF
	}
	whole := int64(len(p)) <= e.size-offset
	if !whole {
		p = p[:e.size-offset]
	}
	n, err := e.reads.readAt(e.conn, p, offset)
	if err == nil && !whole {
		err = io.EOF
	}
	return n, err
}

// Close ends qemu-nbd, which has nothing to save.
func (e *export) Close() error {
	if e.conn != nil {
		_ = e.conn.Close()
	}
	e.server.cancel()
	<-e.server.released // and with it its locks
	return e.server.left
}

// server is a qemu-nbd process.
type server struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // when ended

	// released is closed when it has ended, or cannot be ended: left says why.
	released chan struct{}
	left     error
}

// startServer starts qemu-nbd on an image. Its directory is watched as that of a change:
// a server that cannot be ended keeps its locks.
func (i *Images) startServer(path string, args ...string) (*server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{cancel: cancel, ended: make(chan struct{}), released: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(s.released)
		_, err := change(ctx, &i.storage, []string{path}, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, s.run(ctx, started, filepath.Join(filepath.Dir(i.binary), "qemu-nbd"), args)
		})
		if s.left = err; err != nil {
			select {
			case started <- err:
			default:
			}
		}
	}()
	if err := <-started; err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

// run runs qemu-nbd from a thread that lives as long as it does: the kernel sends the
// death signal when that thread ends. It tells started how it began.
func (s *server) run(ctx context.Context, started chan<- error, binary string, args []string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stderr := &limitedBuffer{limit: errorLimit}
	cmd := command(ctx, binary, args...)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	started <- nil
	err := cmd.Wait()
	if err == nil {
		err = errors.New("it has ended")
	}
	s.err = classify("qemu-nbd", err, string(bytes.TrimSpace(stderr.Bytes())))
	close(s.ended)
	return nil
}

// dial connects as soon as the server listens, of which nothing tells.
func (s *server) dial(ctx context.Context, socket string) (net.Conn, error) {
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-again.C:
		case <-s.ended:
			return nil, s.err
		case <-ctx.Done():
			return nil, fmt.Errorf("qemu-nbd does not answer: %w", context.Cause(ctx))
		}
	}
}
