package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// layout says on which file system lies what. The file systems are partitions
// of one device, so one record orders the writes of all of them.
type layout struct {
	name                       string
	images, definitions, state int
}

var layouts = map[string]layout{
	"one":   {"one file system", 0, 0, 0},
	"two":   {"two file systems", 0, 1, 1},
	"three": {"three file systems", 0, 1, 2},
}

// partitions counts the file systems.
func (l layout) partitions() int { return max(l.images, l.definitions, l.state) + 1 }

const (
	partitionSize = 192 << 20
	// Nothing but a flush makes ext4 commit: what nobody has synced is lost.
	mountOptions = "commit=600"
	readyWithin  = 20 * time.Second
)

// stage is where a layout's file systems appear, of the recorded device as of
// every replayed one, so that paths stay the same.
type stage struct {
	layout
	dir     string
	mounted []string
}

// mountpoint is the same for each replay, because definitions and records hold whole
// paths.
func (s *stage) mountpoint(partition int) string {
	return filepath.Join(s.dir, fmt.Sprintf("fs%d", partition))
}

func (s *stage) imageDir() string  { return filepath.Join(s.mountpoint(s.images), "images") }
func (s *stage) configDir() string { return filepath.Join(s.mountpoint(s.definitions), "libvirt") }
func (s *stage) stateDir() string  { return filepath.Join(s.mountpoint(s.state), "state") }

// format makes an empty device.
func (s *stage) format(ctx context.Context, path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, int64(s.partitions())*partitionSize); err != nil {
		return err
	}
	for i := range s.partitions() {
		// Everything is written now, so that no lazy initialisation shows up among the
		// recorded writes.
		options := fmt.Sprintf("lazy_itable_init=0,lazy_journal_init=0,offset=%d", i*partitionSize)
		err := tool(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=8", "-E", options,
			path, fmt.Sprintf("%dk", partitionSize>>10))
		if err != nil {
			return err
		}
	}
	return nil
}

// mount mounts the file systems of device. The loop devices end with the mounts.
func (s *stage) mount(ctx context.Context, device string) error {
	for i := range s.partitions() {
		if err := os.MkdirAll(s.mountpoint(i), 0o700); err != nil {
			return err
		}
		options := fmt.Sprintf("loop,offset=%d,sizelimit=%d,%s", i*partitionSize, partitionSize, mountOptions)
		if err := tool(ctx, "mount", "-t", "ext4", "-o", options, device, s.mountpoint(i)); err != nil {
			return errors.Join(err, s.unmount())
		}
		s.mounted = append(s.mounted, s.mountpoint(i))
	}
	return nil
}

// unmount unmounts what mount has mounted. In the reverse order; it goes on after an
// error, so that nothing stays mounted.
func (s *stage) unmount() error {
	var errs error
	for _, dir := range slices.Backward(s.mounted) {
		errs = errors.Join(errs, tool(context.Background(), "umount", dir))
	}
	s.mounted = nil
	return errs
}

// sync writes out everything.
func (s *stage) sync(ctx context.Context) error {
	return tool(ctx, "sync", append([]string{"--file-system"}, s.mounted...)...)
}

// recorder is a device that keeps a log of its writes.
type recorder struct {
	device string // shows the device as a file
	log    string
	cmd    *exec.Cmd
	ended  chan struct{}
}

// startRecorder serves image as a device. It must be called on the first thread.
func startRecorder(ctx context.Context, dir, image string) (*recorder, error) {
	r := &recorder{device: filepath.Join(dir, "device"), log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	for _, path := range []string{r.device, r.log} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
	}
	r.cmd = exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=image,filename="+image,
		"--blockdev", "driver=file,node-name=log,filename="+r.log,
		"--blockdev", "driver=blklogwrites,node-name=recorded,file=image,log=log",
		"--export", "type=fuse,id=device,node-name=recorded,writable=on,mountpoint="+r.device)
	r.cmd.Stderr = os.Stderr
	// It must not outlive us, and must not hear the terminal's Ctrl-C before we have
	// unmounted.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setsid: true}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the recorder: %w", err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	return r, r.waitReady(ctx)
}

// waitReady polls until the file shows the device's size: there is no event.
func (r *recorder) waitReady(ctx context.Context) error {
	for end := time.Now().Add(readyWithin); time.Now().Before(end); {
		if info, err := os.Stat(r.device); err == nil && info.Size() > 0 {
			return nil
		}
		select {
		case <-r.ended:
			return errors.New("the recorder ended: " + r.cmd.ProcessState.String())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), r.stop())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return errors.Join(errors.New("the recorder does not come up"), r.stop())
}

// now is the length of the log. What was flushed before is within it, what
// begins later is not.
func (r *recorder) now() (int64, error) {
	info, err := os.Stat(r.log)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// stop waits for its end: only then is the log complete.
func (r *recorder) stop() error {
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// tool runs a program that prints only errors.
func tool(ctx context.Context, program string, args ...string) error {
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
