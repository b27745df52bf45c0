// Package site is a lab with our daemon on it: the programs as they are built,
// started as processes, on a private libvirtd. The demo, the end-to-end tests
// and the campaigns stand on it.
package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// Options say what a Site is made of.
type Options struct {
	// BinDir holds the built vpssnapd and vpssnap.
	BinDir string
	// Lab is where its own libvirtd lives.
	Lab lab.Options
	// StateDir is the daemon's; "" is a directory that ends with the site.
	StateDir string
	// Config is added to the daemon's configuration, as TOML sections [snapshot]
	// and [offer].
	Config string
	// Env, when set, is added to the daemon's environment at each start.
	Env func() []string
	// Wrap is put before the daemon's command line, as in strace.
	Wrap []string
}

// Site is one host: libvirtd, guests and the daemon.
type Site struct {
	Lab     *lab.Lab
	Client  *client.Client
	options Options
	dir     string

	mu     sync.Mutex // one campaign's parts ask for the daemon side by side
	daemon *process
}

// Build builds the programs into dir.
func Build(ctx context.Context, dir string, flags ...string) error {
	args := append([]string{"build", "-o", dir + string(filepath.Separator)}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "vpssnapd/cmd/vpssnapd", "vpssnapd/cmd/vpssnap")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the programs: %w\n%s", err, out)
	}
	return nil
}

// Open starts the lab and the daemon.
func Open(ctx context.Context, o Options) (*Site, error) {
	l, err := lab.Start(ctx, o.Lab)
	if err != nil {
		return nil, err
	}
	s := &Site{Lab: l, options: o, dir: filepath.Join(l.Dir(), "vpssnapd")}
	if err := errors.Join(s.prepare(), s.installHook(ctx)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Site) prepare() error {
	for _, dir := range []string{s.dir, s.StateDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	config := fmt.Sprintf("state_dir = %q\nsocket = %q\n\n[libvirt]\nuri = %q\nconfig_dir = %q\n\n%s",
		s.StateDir(), s.Socket(), s.Lab.URI(), filepath.Join(s.Lab.ConfigDir(), "qemu"), s.options.Config)
	if err := os.WriteFile(s.ConfigFile(), []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	s.Client, err = client.Unix(s.Socket())
	return err
}

// installHook installs libvirt's hook as packaging/libvirt-hook does on a host.
// libvirtd looks for hooks when it starts.
func (s *Site) installHook(ctx context.Context) error {
	dir := filepath.Join(s.Lab.ConfigDir(), "hooks", "qemu.d")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as libvirt has it
		return err
	}
	script := fmt.Sprintf(
		"#!/bin/sh\nexec '%s' -config '%s' -hook \"$@\"\n", filepath.Join(s.options.BinDir, "vpssnapd"), s.ConfigFile(),
	)
	if err := os.WriteFile(filepath.Join(dir, "vpssnapd"), []byte(script), 0o755); err != nil { //nolint:gosec // libvirtd runs it
		return err
	}
	if err := s.Lab.KillLibvirtd(); err != nil {
		return err
	}
	return s.Lab.StartLibvirtd(ctx)
}

// ConfigFile is the daemon's configuration.
func (s *Site) ConfigFile() string { return filepath.Join(s.dir, "config.toml") }

// StateDir is the daemon's state directory.
func (s *Site) StateDir() string {
	if s.options.StateDir != "" {
		return s.options.StateDir
	}
	return filepath.Join(s.dir, "state")
}

// Database is the daemon's record.
func (s *Site) Database() string { return filepath.Join(s.StateDir(), "vpssnapd.db") }

// Socket is where the daemon answers.
func (s *Site) Socket() string { return filepath.Join(s.dir, "api.sock") }

// LogFile has what the daemon says.
func (s *Site) LogFile() string { return filepath.Join(s.dir, "log") }

// readyWithin is how long the daemon may take to answer.
const readyWithin = 30 * time.Second

// StartDaemon starts the daemon and returns when it answers.
func (s *Site) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(
		append([]string{}, s.options.Wrap...), filepath.Join(s.options.BinDir, "vpssnapd"), "-config", s.ConfigFile(),
	)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// It keeps away from the machine's own bus.
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+filepath.Join(s.dir, "no-bus"))
	if s.options.Env != nil {
		cmd.Env = append(cmd.Env, s.options.Env()...)
	}
	p, err := start(cmd)
	if err != nil {
		return fmt.Errorf("cannot start the daemon: %w", err)
	}
	s.mu.Lock()
	s.daemon = p
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		if s.Client.Ready(ctx) == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the daemon ended at its start: %w\n%s", p.err, s.DaemonLog())
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer\n%s", s.DaemonLog())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DaemonLog is the end of what the daemon said, without the questions whether it is ready.
func (s *Site) DaemonLog() string {
	text, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "path=/readyz") && !strings.Contains(line, "vpssnapd is not ready") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-60):], "")
}

// DaemonPID is the daemon's process.
func (s *Site) DaemonPID() int { return s.process().cmd.Process.Pid }

// DaemonEnded is closed when the daemon's process has ended.
func (s *Site) DaemonEnded() <-chan struct{} { return s.process().ended }

// KillDaemon ends the daemon without a chance to do anything.
func (s *Site) KillDaemon() error { return s.process().end(syscall.SIGKILL) }

// StopDaemon asks the daemon to end and waits for it.
func (s *Site) StopDaemon() error { return s.process().end(syscall.SIGTERM) }

func (s *Site) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemon
}

// CLI runs vpssnap on this site.
func (s *Site) CLI(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	cmd := exec.CommandContext(
		ctx,
		filepath.Join(s.options.BinDir, "vpssnap"),
		append([]string{"--socket", s.Socket()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), code
}

// OurFiles returns the files of snapshots beside the images.
func (s *Site) OurFiles() ([]string, error) {
	entries, err := os.ReadDir(s.Lab.ImageDir())
	var names []string
	for _, e := range entries {
		if strings.Contains(e.Name(), ".vpssnap-") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Close ends the daemon, the guests and libvirtd.
func (s *Site) Close() error {
	var err error
	if p := s.process(); p != nil {
		err = p.end(syscall.SIGTERM)
	}
	return errors.Join(err, s.Lab.Close())
}

// DaemonKilled reports whether the daemon's process was ended by SIGKILL, and by
// nothing of its own. It is to be asked when DaemonEnded is closed.
func (s *Site) DaemonKilled() bool {
	var exit *exec.ExitError
	if !errors.As(s.process().err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// process is a child that dies with us.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// start starts cmd from a thread that lives as long as the child: the kernel
// sends Pdeathsig when the thread that started the child ends.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

// end sends a signal and waits; having ended already is no error.
func (p *process) end(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.ended
	return nil
}
