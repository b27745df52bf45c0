package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Strike waits for libvirtd in the middle of a call, to send it a signal there. It is
// strace, which traces libvirtd and sends the signal in place of a system call.
type Strike struct {
	strace *exec.Cmd
	back   atomic.Bool // it was taken back
	struck atomic.Bool
	ended  chan struct{}
}

// In which of libvirtd's threads, and at which system call of theirs, a Strike strikes.
const (
	// AtMonitor is before libvirtd sends a command to a domain's QEMU: what it had sent
	// before is done and answered.
	AtMonitor = "write"
	// AtStatus is before libvirtd writes down what it knows of a running domain, or a
	// definition: it renames a new file over the old one.
	AtStatus = "rename"
)

// StrikeLibvirtd has libvirtd get a signal at the nth such system call, of those that one
// thread of it does from now on. For a domain that runs, AtMonitor counts the commands to
// its QEMU alone; domain is "" to count every thread's.
func (l *Lab) StrikeLibvirtd(ctx context.Context, domain, at string, nth int, sig syscall.Signal) (*Strike, error) {
	pid, err := l.LibvirtdPID()
	if err != nil {
		return nil, err
	}
	args := []string{
		"-o", os.DevNull, "-e", "trace=" + at, "-e", fmt.Sprintf("inject=%s:signal=%d:when=%d", at, sig, nth),
	}
	if domain == "" {
		args = append(args, "-f")
	} else if pid, err = threadOf(pid, "vm-"+domain); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "strace", append(args, "-p", strconv.Itoa(pid))...)
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot trace libvirtd: %w", err)
	}
	s := &Strike{strace: cmd, ended: make(chan struct{})}
	lines := bufio.NewScanner(said)
	attached := lines.Scan() && strings.Contains(lines.Text(), "attached")
	go func() {
		for lines.Scan() {
		}
		_ = cmd.Wait()
		for gone := error(nil); sig == syscall.SIGKILL && gone == nil; time.Sleep(time.Millisecond) {
			if _, gone = l.LibvirtdPID(); gone != nil { // the first thread to die is not the last
				s.struck.Store(true)
			} else if s.back.Load() {
				break
			}
		}
		close(s.ended)
	}()
	if !attached {
		return nil, errors.Join(fmt.Errorf("cannot trace libvirtd: %s", lines.Text()), s.Close())
	}
	return s, nil
}

// Ended is closed when what was to be struck has ended: libvirtd is dead, and reaped.
func (s *Strike) Ended() <-chan struct{} { return s.ended }

// Struck reports whether libvirtd was killed. It is to be asked when Ended is closed.
func (s *Strike) Struck() bool { return s.struck.Load() }

// Close takes the strike back, if it has not struck yet.
func (s *Strike) Close() error {
	s.back.Store(true)
	_ = s.strace.Process.Signal(syscall.SIGTERM) // it lets libvirtd go on
	<-s.ended
	return nil
}

// StatusFile is where the owner of the lab finds what libvirtd has written down of a running
// domain; inside it is in /run/libvirt/qemu.
func (l *Lab) StatusFile(name string) string {
	return l.inside(filepath.Join("/run/libvirt/qemu", name+".xml"))
}

// inside names a file of the lab for its owner.
func (l *Lab) inside(path string) string {
	return filepath.Join("/proc", strconv.Itoa(l.init.Process.Pid), "root", path)
}

// statusMirror is what libvirt 9.0 writes when a merge has ended, and cannot read.
const statusMirror = `<mirror type='file' job=''><format type='raw'/><source file='/none' index='9'/></mirror>`

// ForgetDomain makes libvirtd forget that a domain runs: it is killed, and comes again to a
// status file as one is that it has left in the middle of a pivot. With remember the domain
// is known again.
func (l *Lab) ForgetDomain(ctx context.Context, name string) (remember func() error, err error) {
	edit := func(from, to string) error {
		if err := l.KillLibvirtd(); err != nil {
			return err
		}
		text, err := os.ReadFile(l.StatusFile(name))
		if err == nil {
			err = os.WriteFile(l.StatusFile(name), []byte(strings.Replace(string(text), from, to, 1)), 0o600)
		}
		return errors.Join(err, l.StartLibvirtd(ctx))
	}
	const after = "<target dev="
	return func() error { return edit(statusMirror, "") }, edit(after, statusMirror+after)
}

// threadOf finds a thread of a process by its name, of which Linux keeps 15 characters.
func threadOf(pid int, name string) (int, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range threads {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name[:min(len(name), 15)] {
			return strconv.Atoi(filepath.Base(filepath.Dir(file)))
		}
	}
	return 0, fmt.Errorf("libvirtd has no thread %s", name)
}
