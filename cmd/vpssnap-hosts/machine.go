package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	bootWithin = 3 * time.Minute
	pollEvery  = 100 * time.Millisecond
)

// machine is one container with systemd as its first process. Its root is an
// overlay over a bootstrapped tree: what it changes is gone with it.
type machine struct {
	dir   string // has upper, work and root
	share string // the directory that has the same path inside
	nspawn
}

// nspawn is the process that runs the container until it reboots.
type nspawn struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

func newMachine(dir, tree, share string) (*machine, error) {
	m := &machine{dir: dir, share: share}
	for _, sub := range []string{m.root(), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), share} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
	}
	options := fmt.Sprintf(
		"lowerdir=%s,upperdir=%s,workdir=%s", tree, filepath.Join(dir, "upper"), filepath.Join(dir, "work"),
	)
	if err := syscall.Mount("overlay", m.root(), "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("cannot mount the root of a host: %w", err)
	}
	return m, nil
}

// root is where the host's files are seen from here.
func (m *machine) root() string { return filepath.Join(m.dir, "root") }

// boot starts the container and returns when systemd has started everything.
func (m *machine) boot(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(m.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("systemd-nspawn", "--quiet", "--directory="+m.root(), "--register=no", "--keep-unit",
		"--capability=all", "--private-network", "--bind="+m.share, "--boot")
	// Without it QEMU fails on a read-only tree of cgroups.
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	m.nspawn = nspawn{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig comes when the thread that started the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			m.err = cmd.Wait()
			close(m.ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start a host: %w", err)
	}
	return m.booted(ctx)
}

// booted waits until the first process has started everything.
func (m *machine) booted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	err := m.until(ctx, func() (bool, error) {
		if _, err := m.first(); err != nil {
			return false, nil //nolint:nilerr // it is about to come
		}
		// Degraded is up, too: some units have nothing to do in a container.
		state, _ := m.run(ctx, "systemctl", "is-system-running", "--wait")
		state = strings.TrimSpace(state)
		return state == "running" || state == "degraded", nil
	})
	if err != nil {
		console, _ := os.ReadFile(filepath.Join(m.dir, "console"))
		return fmt.Errorf("the host does not come up: %w\n%s", err, end(string(console), 30))
	}
	return nil
}

// until polls what has no event, and ends when the container does.
func (m *machine) until(ctx context.Context, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ended:
			return fmt.Errorf("the host has ended: %w", m.err)
		case <-time.After(pollEvery):
		}
	}
}

// first is the container's first process, as we see it.
func (m *machine) first() (int, error) {
	pid := strconv.Itoa(m.cmd.Process.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		return 0, err
	}
	for child := range strings.FieldsSeq(string(children)) {
		status, err := os.ReadFile(filepath.Join("/proc", child, "status"))
		if err != nil {
			continue
		}
		_, ids, _ := strings.Cut(string(status), "NSpid:")
		var outer, inner int
		if _, err := fmt.Sscan(ids, &outer, &inner); err == nil && inner == 1 {
			return outer, nil
		}
	}
	return 0, errors.New("the host has no first process")
}

// run runs a program on the host.
func (m *machine) run(ctx context.Context, args ...string) (string, error) {
	first, err := m.first()
	if err != nil {
		return "", err
	}
	enter := []string{"nsenter", "--target", strconv.Itoa(first), "--all", "--root", "--wd"}
	inside := []string{
		"env",
		"-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
		"HOME=/root",
		"DEBIAN_FRONTEND=noninteractive",
	}
	return output(ctx, nil, append(append(enter, inside...), args...)...)
}

// rebootWithin is how long the host may take to shut down its VPSes and itself.
const rebootWithin = 3 * time.Minute

// reboot asks systemd to reboot, as an operator does, and returns when it is up
// again. nspawn leaves it to its caller to start the container again.
func (m *machine) reboot(ctx context.Context) error {
	if _, err := m.run(ctx, "systemctl", "--no-block", "reboot"); err != nil {
		return err
	}
	select {
	case <-m.ended:
		return m.boot(ctx)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rebootWithin):
		return errors.New("the host does not go down for a reboot")
	}
}

// kill ends every process of the host, and returns when all are gone.
func (m *machine) kill() error {
	if first, err := m.first(); err == nil {
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	select {
	case <-m.ended:
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("the host does not end"), m.cmd.Process.Kill())
	}
	return nil
}

// close ends the host and removes what it was.
func (m *machine) close() error {
	var err error
	if m.cmd != nil {
		err = m.kill()
	}
	if err := errors.Join(err, syscall.Unmount(m.root(), 0)); err != nil {
		return fmt.Errorf("cannot end the host in %s: %w", m.dir, err)
	}
	return errors.Join(os.RemoveAll(m.dir), os.RemoveAll(m.share))
}
