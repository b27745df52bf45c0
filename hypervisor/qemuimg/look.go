package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

const (
	// lookLimit is how long a file system may take to tell about a file. One that is
	// alive takes microseconds, a sick array seconds, a dead NFS mount for ever.
	lookLimit = 5 * time.Second
	// lookPatience is how long a look must have taken before its directory counts as
	// hung although its caller, not the limit, gave up.
	lookPatience = time.Second
	// looksAtOnce is how many threads of this process may be lost to one directory.
	looksAtOnce = 8
	// endTime is how long a change whose time is over is waited for.
	endTime = 5 * time.Second
	// probeEvery is how often the directories of a change under way are looked at, and
	// probesMissed how many times in a row in vain before it is given up. A server that
	// reboots must not cost a merge of hours, nor one that is gone hold it for ever.
	probeEvery   = 10 * time.Second
	probesMissed = 3
	// mostLinks is how many links a path may lead through: the kernel's own bound.
	mostLinks = 40
)

// storage is the calls on file systems that are under way, by directory.
type storage struct {
	mu   sync.Mutex
	dirs map[string]*directory
}

// directory is one on which there are calls.
type directory struct {
	looks chan struct{} // as many as may go on
	users int           // calls that go on or wait
	left  int           // calls that nobody waits for any more
}

// use counts a call on dir. While one that nobody waits for has not returned, it is
// refused: that one has a thread of the process, and could undo what a later one does.
func (s *storage) use(dir string) (*directory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dirs[dir]
	if d == nil {
		d = &directory{looks: make(chan struct{}, looksAtOnce)}
		if s.dirs == nil {
			s.dirs = map[string]*directory{}
		}
		s.dirs[dir] = d
	}
	if d.left > 0 {
		return nil, &hypervisor.StorageError{Dir: dir}
	}
	d.users++
	return d, nil
}

// free ends a use.
func (s *storage) free(dir string, d *directory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.users--; d.users == 0 {
		delete(s.dirs, dir)
	}
}

// leave counts a call as left by its caller until it returns after all.
func (s *storage) leave(dir string, d *directory, returned <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.left++
	d.users++
	go func() {
		<-returned
		s.mu.Lock()
		d.left--
		s.mu.Unlock()
		s.free(dir, d)
	}()
}

// look asks the file system that holds path for something, which changes nothing, and
// waits for no longer than ctx and a few seconds: a dead mount must not stop those who
// watch all the others (FAULTS row 46).
func look[T any](ctx context.Context, s *storage, path string, question func() (T, error)) (T, error) {
	dir, err := s.place(ctx, path)
	if err != nil {
		return *new(T), err
	}
	return ask(ctx, s, dir, question)
}

// lookAt is look for what is asked of a directory as a whole.
func lookAt[T any](ctx context.Context, s *storage, dir string, question func() (T, error)) (T, error) {
	dir, err := s.follow(ctx, dir, true)
	if err != nil {
		return *new(T), err
	}
	return ask(ctx, s, dir, question)
}

// ask is look for a directory that is named without links.
func ask[T any](ctx context.Context, s *storage, dir string, question func() (T, error)) (T, error) {
	var none T
	d, err := s.use(dir)
	if err != nil {
		return none, err
	}
	began, limit := time.Now(), time.NewTimer(lookLimit)
	defer limit.Stop()
	select {
	case d.looks <- struct{}{}:
	case <-limit.C:
		s.free(dir, d)
		return none, &hypervisor.StorageError{Dir: dir}
	case <-ctx.Done():
		s.free(dir, d)
		return none, notAwaited(ctx, dir)
	}
	var answer T
	returned := make(chan struct{})
	go func() {
		defer s.free(dir, d)
		defer func() { <-d.looks }()
		defer close(returned)
		answer, err = question()
	}()
	select {
	case <-returned:
		return answer, err
	case <-limit.C:
	case <-ctx.Done():
		if time.Since(began) < lookPatience {
			return none, notAwaited(ctx, dir)
		}
	}
	s.leave(dir, d, returned)
	return none, &hypervisor.StorageError{Dir: dir}
}

func notAwaited(ctx context.Context, dir string) error {
	return fmt.Errorf("the file system of %q was not waited for: %w", dir, context.Cause(ctx))
}

// place is the directory in which the file of a path lies, or would lie. A device hangs
// alone, whatever else lies in /dev.
func (s *storage) place(ctx context.Context, path string) (string, error) {
	path, err := s.follow(ctx, path, false)
	if err == nil && !strings.HasPrefix(path, "/dev/") {
		path = filepath.Dir(path)
	}
	return path, err
}

// follow follows all links of a path: two names of one directory must not be told apart,
// nor the neighbours of a link suffer for where it leads. Each name is asked of one
// directory after the other, and none is asked that is known not to answer.
func (s *storage) follow(ctx context.Context, path string, isDir bool) (string, error) {
	dir, rest := "/", names(path)
	for links := 0; len(rest) > 0; {
		at := filepath.Join(dir, rest[0])
		asked := at // which may be where another file system begins
		if len(rest) == 1 && !isDir {
			asked = dir
		}
		target, err := ask(ctx, s, asked, func() (string, error) { return os.Readlink(at) })
		switch {
		case errors.Is(err, unix.EINVAL): // it is no link
			dir, rest = at, rest[1:]
		case err == nil && links < mostLinks:
			links++
			if !filepath.IsAbs(target) {
				target = filepath.Join(dir, target)
			}
			dir, rest = "/", append(names(target), rest[1:]...)
		case errors.Is(err, hypervisor.ErrUnavailable) || ctx.Err() != nil:
			return "", err
		default: // nothing is there, or nothing to be read: the call itself shall say so
			return filepath.Join(append([]string{dir}, rest...)...), nil
		}
	}
	return dir, nil
}

// names are the names that an absolute path consists of.
func names(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(c rune) bool { return c == filepath.Separator })
}

// change runs f, which may change the files of paths or run a program on them. f goes on
// as long as the file systems answer and ctx has not ended; then its own context ends,
// and where it does not end with that, as a process that waits for a dead disk does not,
// it is left alone, and its directories are left alone until it has returned.
func change[T any](ctx context.Context, s *storage, paths []string, f func(context.Context) (T, error)) (T, error) {
	var none T
	dirs, err := s.places(ctx, paths)
	if err != nil {
		return none, err
	}
	held := map[string]*directory{}
	defer func() {
		for dir, d := range held {
			s.free(dir, d)
		}
	}()
	for _, dir := range dirs {
		d, err := s.use(dir)
		if err != nil {
			return none, err
		}
		held[dir] = d
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var outcome T
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		outcome, err = f(ctx)
	}()
	if s.await(ctx, cancel, dirs, returned) {
		return outcome, err
	}
	for dir, d := range held {
		s.leave(dir, d, returned)
	}
	return none, doesNotAnswer(dirs, context.Cause(ctx))
}

// doesNotAnswer names the directory that does not answer, or those of which one does not.
func doesNotAnswer(dirs []string, cause error) error {
	if errors.Is(cause, hypervisor.ErrUnavailable) {
		return cause
	}
	return &hypervisor.StorageError{Dir: strings.Join(dirs, " or "), Err: cause}
}

// places are the directories of paths, each once.
func (s *storage) places(ctx context.Context, paths []string) ([]string, error) {
	var dirs []string
	for _, path := range paths {
		dir, err := s.place(ctx, path)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// await reports whether a change returned. It ends it when a directory does not answer.
func (s *storage) await(
	ctx context.Context, cancel context.CancelCauseFunc, dirs []string, returned <-chan struct{},
) bool {
	probe := time.NewTicker(probeEvery)
	defer probe.Stop()
	for missed := 0; ; {
		select {
		case <-returned:
			return true
		case <-probe.C:
			if err := s.probe(ctx, dirs); err == nil {
				missed = 0
			} else if missed++; missed == probesMissed {
				cancel(err)
			}
		case <-ctx.Done():
			select {
			case <-returned:
				return true
			case <-time.After(endTime):
				return false
			}
		}
	}
}

// probe is StorageError for the first directory that does not answer.
func (s *storage) probe(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		_, err := ask(ctx, s, dir, func() (hypervisor.Space, error) { return measure(dir) })
		if errors.Is(err, hypervisor.ErrUnavailable) {
			return err
		}
	}
	return nil
}
