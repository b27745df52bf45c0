package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// initName is argv[0] of a binary that shall be a lab's first process.
const initName = "vpssnap-lab-init"

// capabilitiesDir is where libvirtd keeps what it found out about QEMU.
const capabilitiesDir = "/var/cache/libvirt"

// configDir is where libvirtd keeps its configuration and the definitions.
const configDir = "/etc/libvirt"

// replacedDirs are the machine's directories that a lab replaces by its own.
var replacedDirs = []string{configDir, "/var/lib/libvirt", "/var/log/libvirt", capabilitiesDir}

// mainCalled guards against a binary that would run itself again and again.
var mainCalled atomic.Bool

// Main must be the first call in main or TestMain of whoever uses a lab: the
// lab's first process is the same binary, and for that process Main never returns.
func Main() {
	mainCalled.Store(true)
	if os.Args[0] != initName || len(os.Args) != 2 || os.Getpid() != 1 {
		return
	}
	if err := runInit(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// What a lab's owner asks of init, on init's standard input.
const (
	doStart  = "start"  // start libvirtd
	doSignal = "signal" // send a signal; for SIGKILL, answer when the process is gone
	doPID    = "pid"    // tell the process id inside the lab
)

type request struct {
	Do     string
	Domain string // whose QEMU is meant; "" is libvirtd
	Signal syscall.Signal
}

type reply struct {
	PID   int
	Error string
}

// supervisor is the first process of a lab.
type supervisor struct {
	libvirtd int // process id; 0 when it does not run
}

// runInit serves requests until its owner closes the pipe, which the kernel does
// however the owner ends. Then it kills everything and removes dir.
func runInit(dir string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	dead := make(chan os.Signal, 1)
	signal.Notify(dead, syscall.SIGCHLD)
	requests := make(chan request)
	go readRequests(requests)

	var s supervisor
	separateErr := errors.Join(mountAll(dir), syscall.Sethostname([]byte(filepath.Base(dir))))
	replies := json.NewEncoder(os.Stdout)
	for {
		select {
		case <-dead:
			s.reap()
		case r, ok := <-requests:
			if !ok {
				return errors.Join(killAll(), os.RemoveAll(dir))
			}
			var answer reply
			err := separateErr
			if err == nil {
				answer, err = s.serve(r)
			}
			if err != nil {
				answer.Error = err.Error()
			}
			// An owner that is gone closes the other pipe too.
			_ = replies.Encode(answer)
		}
	}
}

func readRequests(requests chan<- request) {
	defer close(requests)
	for in := json.NewDecoder(os.Stdin); ; {
		var r request
		if err := in.Decode(&r); err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "lab: cannot read a request:", err)
			}
			return
		}
		requests <- r
	}
}

// mountAll replaces, for this mount namespace only, what belongs to the
// machine's libvirtd. Mounts of the machine may still come in, never go out.
func mountAll(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot separate the lab's mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NOEXEC|syscall.MS_NODEV, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	if err := syscall.Mount("lab", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	for _, target := range replacedDirs {
		if err := syscall.Mount(filepath.Join(dir, target), target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot replace %s (is libvirt installed?): %w", target, err)
		}
	}
	return nil
}

func (s *supervisor) serve(r request) (reply, error) {
	if r.Do == doStart {
		return reply{}, s.start()
	}
	pid, err := s.find(r.Domain)
	if err != nil || r.Do == doPID {
		return reply{PID: pid}, err
	}
	if err := syscall.Kill(pid, r.Signal); err != nil {
		return reply{}, fmt.Errorf("cannot signal process %d: %w", pid, err)
	}
	if r.Signal == syscall.SIGKILL {
		return reply{}, s.wait(pid)
	}
	return reply{}, nil
}

func (s *supervisor) start() error {
	if s.libvirtd != 0 {
		return errors.New("libvirtd runs already")
	}
	path, err := exec.LookPath("libvirtd")
	if err != nil {
		path = "/usr/sbin/libvirtd"
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	s.libvirtd, err = syscall.ForkExec(path, []string{"libvirtd", "-f", "/etc/libvirt/libvirtd.conf"}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"},
		Files: []uintptr{null.Fd(), null.Fd(), os.Stderr.Fd()},
	})
	if err != nil {
		s.libvirtd = 0
		return fmt.Errorf("cannot start libvirtd: %w", err)
	}
	return nil
}

// find tells the process id of libvirtd ("") or of a domain's QEMU.
func (s *supervisor) find(domain string) (int, error) {
	if domain == "" {
		if s.libvirtd == 0 {
			return 0, errors.New("libvirtd does not run")
		}
		return s.libvirtd, nil
	}
	if domain != filepath.Base(domain) {
		return 0, fmt.Errorf("%q is no domain's name", domain)
	}
	text, err := os.ReadFile(filepath.Join("/run/libvirt/qemu", domain+".pid"))
	if err != nil {
		return 0, fmt.Errorf("%s has no QEMU: %w", domain, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the process id of %s cannot be read from %q", domain, text)
	}
	return pid, nil
}

// wait returns when a killed child is gone. QEMU is one: it daemonizes, which
// makes it a child of the first process.
func (s *supervisor) wait(pid int) error {
	for {
		_, err := syscall.Wait4(pid, nil, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil && !errors.Is(err, syscall.ECHILD):
			return fmt.Errorf("cannot wait for process %d: %w", pid, err)
		}
		if pid == s.libvirtd {
			s.libvirtd = 0
		}
		return nil
	}
}

// reap takes note of the dead, and remembers when libvirtd is one of them.
func (s *supervisor) reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid == s.libvirtd {
			s.libvirtd = 0
		}
	}
}

// killAll kills every other process of the lab and returns when all are gone.
func killAll() error {
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot end the lab's processes: %w", err)
	}
	for {
		_, err := syscall.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("cannot wait for the lab's processes: %w", err)
		}
	}
}
