package libvirt

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// A libvirtd that dies within a call leaves its note of a running domain, the status file,
// as it was at that moment. There are two from which it does not recover (libvirt 9.0; FAULTS.md
// row 44): one that it cannot read itself, after which it takes the domain for off although
// its QEMU runs, and one of a QEMU that was never started, after which it takes the domain
// for being started for ever, and each call to it waits in vain.

const (
	// statusDir is where libvirt keeps its notes, whatever its driver is called.
	statusDir = "/run/libvirt/qemu"
	// jobless is what libvirt writes of a merge when QEMU has ended it, and cannot read.
	jobless = "<mirror type='file' job=''>"
	// unstarted is how it writes of a domain whose QEMU is yet to come.
	unstarted = " reason='starting up' pid='0'>"
	// dying is how long a QEMU may take to die of which libvirt knows that it is off.
	dying = time.Second
)

// isAstray finds out whether libvirt is wrong about a domain of which it says this, with the
// QEMUs that were seen before it was asked.
func (h *Host) isAstray(d *libvirt.Domain, f facts, seen qemus) (*hypervisor.Astray, error) {
	starting := f.state == libvirt.DOMAIN_PAUSED &&
		libvirt.DomainPausedReason(f.reason) == libvirt.DOMAIN_PAUSED_STARTING_UP
	if !starting && (f.state != libvirt.DOMAIN_SHUTOFF || len(seen[f.id]) == 0) {
		return nil, nil
	}
	p, err := findPlace(h.uri)
	if err != nil {
		return nil, err
	}
	if starting {
		return p.neverStarted(f), nil
	}
	for until := time.Now().Add(dying); ; time.Sleep(dying / 20) {
		pid := p.qemu(f.id)
		if pid == 0 {
			return nil, nil
		}
		if active, err := d.IsActive(); err != nil || active {
			return nil, err
		}
		if time.Now().After(until) {
			return p.forgotten(f, pid), nil
		}
	}
}

// place is where a libvirtd runs, as seen from here: it may have directories and process
// ids of its own.
type place struct {
	root string
	pids string // its namespace of process ids; "" when it is not looked at
}

// findPlace finds it by the process that listens on the socket, where that is not the
// host's own.
func findPlace(uri string) (place, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return place{}, fmt.Errorf("cannot read the URI of libvirt: %w", err)
	}
	socket := u.Query().Get("socket")
	if socket == "" {
		return place{root: "/"}, nil
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return place{}, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return place{}, err
	}
	var peer *unix.Ucred
	control := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(control, err); err != nil {
		return place{}, fmt.Errorf("cannot tell who listens on %s: %w", socket, err)
	}
	process := filepath.Join("/proc", strconv.Itoa(int(peer.Pid)))
	return place{root: filepath.Join(process, "root"), pids: pidsOf(process)}, nil
}

// pidsOf names the namespace of a process's ids; "" when that cannot be told.
func pidsOf(process string) string {
	name, err := os.Readlink(filepath.Join(process, "ns/pid"))
	if err != nil {
		return ""
	}
	return name
}

// QEMUOf finds the process that runs a domain on this host, whatever libvirt says; 0: none.
func QEMUOf(id string) int { return place{}.qemu(id) }

// qemu is the process of a domain of that libvirtd.
func (p place) qemu(id string) int {
	for _, pid := range findQEMUs()[id] {
		if p.pids == "" || pidsOf(filepath.Join("/proc", strconv.Itoa(pid))) == p.pids {
			return pid
		}
	}
	return 0
}

// qemus are the processes that run domains, by the domains' ids.
type qemus map[string][]int

// findQEMUs finds them all: libvirt names the domain's id to each.
func findQEMUs() qemus {
	found := qemus{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		if _, after, named := strings.Cut(string(line), "\x00-uuid\x00"); named {
			id, _, _ := strings.Cut(after, "\x00")
			found[id] = append(found[id], pid)
		}
	}
	return found
}

// forgotten is what can be told of a domain that runs and is off for libvirt.
func (p place) forgotten(f facts, pid int) *hypervisor.Astray {
	a := &hypervisor.Astray{PID: pid}
	if text, err := os.ReadFile(p.note(f.name)); err == nil {
		a.Status, a.Jobless = filepath.Join(statusDir, f.name+".xml"), strings.Contains(string(text), jobless)
	}
	return a
}

// neverStarted tells a domain that no libvirtd starts any more from one that is being
// started: the note is older than the libvirtd.
func (p place) neverStarted(f facts) *hypervisor.Astray {
	note, err := os.Stat(p.note(f.name))
	if err != nil {
		return nil
	}
	libvirtd, err := os.Stat(filepath.Join(p.root, statusDir, "driver.pid"))
	if err != nil || !note.ModTime().Before(libvirtd.ModTime()) {
		return nil
	}
	text, err := os.ReadFile(p.note(f.name))
	if err != nil || !strings.Contains(string(text), unstarted) || p.qemu(f.id) != 0 {
		return nil
	}
	return &hypervisor.Astray{Status: filepath.Join(statusDir, f.name+".xml")}
}

func (p place) note(name string) string { return filepath.Join(p.root, statusDir, name+".xml") }
