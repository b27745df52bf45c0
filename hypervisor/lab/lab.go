// Package lab gives tests, the demo and benchmarks a private libvirtd with tiny
// guests, which the machine's own libvirtd never notices. It needs root and the
// packages that packaging/install-deps installs, and imports nothing of ours.
//
// A lab is a mount, pid and host name namespace: guests migrate between labs that
// share their images as between hosts. Its first process (init.go) is this very
// binary started again, which supervises libvirtd: guests survive the death of
// libvirtd, and nothing survives the death of the lab's owner.
package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// readyWithin bounds how long libvirtd may take until it answers. It probes
// QEMU when it first starts, which is slow on a loaded machine.
const readyWithin = 60 * time.Second

// stopExportWithin bounds how long QEMU may take to end an export of a disk.
const stopExportWithin = 10 * time.Second

// maxSocketPath is what fits into a struct sockaddr_un with its final NUL.
const maxSocketPath = 107

// Options say where a lab lives.
type Options struct {
	// Parent is where the lab makes its own directory; "" is the system's
	// temporary directory. Not below /run, which is hidden inside a lab.
	Parent string
	// ImageDir holds the images; "" is a directory of the lab's own. One given
	// here outlives the lab, may be shared by several labs, and may be a mount
	// of its own if it is mounted before Start.
	ImageDir string
	// ConfigDir is what libvirtd sees as /etc/libvirt; "" is a directory of the
	// lab's own. Definitions lie there; one given here outlives the lab with
	// them, and is taken up as it is found.
	ConfigDir string
	// CacheDir keeps the guests' kernel and initramfs, and what libvirtd found
	// out about QEMU. See Build for "".
	CacheDir string
	// Guests are the lines of qemu.conf that say as whom guests run and who owns their
	// files; "": as root. ImageDir must be open to them.
	Guests string
}

// rootGuests are the lines for guests that may open everything.
const rootGuests = `user = "root"
group = "root"
`

// Lab is one private libvirtd and its guests.
type Lab struct {
	dir       string
	imageDir  string
	configDir string
	cacheDir  string
	guests    string
	// foreign is the socket of a libvirtd that is not the lab's own.
	foreign string

	init     *exec.Cmd
	mu       sync.Mutex // one request to init at a time
	requests io.WriteCloser
	replies  *json.Decoder

	exporting sync.Mutex // one export of a guest's disk at a time

	closing  sync.Once
	closeErr error
}

// Start makes a lab and returns when its libvirtd answers. ctx bounds only the
// start; the lab lives until Close or until its owner's process ends.
func Start(ctx context.Context, o Options) (*Lab, error) {
	if !mainCalled.Load() {
		return nil, errors.New("cannot start a lab: lab.Main was not called at the start of main or TestMain")
	}
	dir, err := os.MkdirTemp(o.Parent, "lab-")
	if err != nil {
		return nil, fmt.Errorf("cannot start a lab: %w", err)
	}
	l := &Lab{dir: dir, imageDir: o.ImageDir, configDir: o.ConfigDir, cacheDir: o.CacheDir, guests: cmp.Or(o.Guests, rootGuests)}
	if err := l.start(ctx); err != nil {
		return nil, fmt.Errorf("cannot start a lab: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) error {
	if err := l.settlePaths(); err != nil {
		return err
	}
	if err := l.makeDirs(); err != nil {
		return err
	}
	if err := l.shareCapabilities(); err != nil {
		return err
	}
	if err := l.writeConfig(); err != nil {
		return err
	}
	if err := l.startInit(); err != nil {
		return err
	}
	return l.StartLibvirtd(ctx)
}

// settlePaths makes absolute what libvirtd is told.
func (l *Lab) settlePaths() (err error) {
	if l.dir, err = filepath.Abs(l.dir); err != nil {
		return err
	}
	if len(l.socket()) > maxSocketPath {
		return fmt.Errorf("%s is too long for a socket's path", l.socket())
	}
	if l.imageDir == "" {
		l.imageDir = filepath.Join(l.dir, "images")
	}
	l.imageDir, err = filepath.Abs(l.imageDir)
	return err
}

func (l *Lab) makeDirs() error {
	dirs := []string{l.imageDir, l.consoleDir(), filepath.Dir(l.socket())}
	for _, replaced := range replacedDirs {
		dirs = append(dirs, filepath.Join(l.dir, filepath.Dir(replaced)))
		if replaced != capabilitiesDir && replaced != configDir {
			dirs = append(dirs, filepath.Join(l.dir, replaced))
		}
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(l.admitGuests(), l.placeConfigDir())
}

// admitGuests lets guests that are not root's make the sockets of their exports.
func (l *Lab) admitGuests() error {
	if l.guests == rootGuests {
		return nil
	}
	return errors.Join(os.Chmod(l.dir, 0o711), os.Chmod(filepath.Dir(l.socket()), 0o777)) //nolint:gosec // QEMU is another user
}

// placeConfigDir makes libvirtd's configuration directory, where it was asked for.
func (l *Lab) placeConfigDir() error {
	inside := filepath.Join(l.dir, configDir)
	if l.configDir == "" {
		return os.Mkdir(inside, 0o755)
	}
	if err := os.MkdirAll(l.configDir, 0o755); err != nil {
		return err
	}
	outside, err := filepath.Abs(l.configDir)
	if err != nil {
		return err
	}
	return os.Symlink(outside, inside)
}

// shareCapabilities lets all labs use what one libvirtd found out about QEMU,
// which saves more than a second per lab. Only a place to keep that is needed:
// libvirt checks what it finds there, and probes again when it is damaged.
func (l *Lab) shareCapabilities() error {
	cache, err := cacheDir(l.cacheDir)
	if err != nil {
		return os.Mkdir(filepath.Join(l.dir, capabilitiesDir), 0o755)
	}
	shared := filepath.Join(cache, "libvirt")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return err
	}
	return os.Symlink(shared, filepath.Join(l.dir, capabilitiesDir))
}

// startInit starts this binary again as the first process of new namespaces.
func (l *Lab) startInit() error {
	log, err := os.Create(filepath.Join(l.dir, "lab.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   []string{initName, l.dir},
		Dir:    "/",
		Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
			Setsid:     true, // the terminal's ^C is the owner's affair
		},
	}
	requests, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	replies, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	l.init, l.requests, l.replies = cmd, requests, json.NewDecoder(replies)
	return nil
}

func (l *Lab) writeConfig() error {
	// libvirt tells hosts apart by name and by the machine's id, which all labs share.
	id := make([]byte, 16)
	rand.Read(id) //nolint:errcheck // crypto/rand.Read never fails
	files := map[string]string{
		"qemu.conf": `cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
namespaces = []
` + l.guests,
		"libvirtd.conf": fmt.Sprintf(`unix_sock_dir = %q
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "%x-%x-%x-%x-%x"
`, filepath.Dir(l.socket()), id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(l.ConfigDir(), name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Close kills libvirtd and every guest and removes the lab's directory. It may
// be called again.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		if l.init != nil {
			l.requests.Close()
			l.closeErr = l.init.Wait()
		}
		l.closeErr = errors.Join(l.closeErr, os.RemoveAll(l.dir))
	})
	return l.closeErr
}

// URI is where libvirt clients connect to.
func (l *Lab) URI() string { return "qemu+unix:///system?socket=" + l.socket() }

// Dir is the lab's own directory. Inside the lab its etc/libvirt, var/lib/libvirt
// and var/log/libvirt replace those of the machine.
func (l *Lab) Dir() string { return l.dir }

// ImageDir is where the guests' images are; its path is the same inside.
func (l *Lab) ImageDir() string { return l.imageDir }

// ConfigDir is what libvirtd sees as /etc/libvirt. libvirtd looks for new
// scripts in hooks/ only when it starts.
func (l *Lab) ConfigDir() string { return filepath.Join(l.dir, "etc/libvirt") }

// LogDir is what libvirtd sees as /var/log/libvirt.
func (l *Lab) LogDir() string { return filepath.Join(l.dir, "var/log/libvirt") }

func (l *Lab) consoleDir() string { return filepath.Join(l.dir, "console") }

func (l *Lab) socket() string {
	if l.foreign != "" {
		return l.foreign
	}
	return filepath.Join(l.dir, "sock/libvirt-sock")
}

// StartLibvirtd starts libvirtd and returns when it answers.
func (l *Lab) StartLibvirtd(ctx context.Context) error {
	if _, err := l.ask(request{Do: doStart}); err != nil {
		return err
	}
	return l.waitReady(ctx)
}

// waitReady connects until libvirtd answers. There is no event for a socket
// that is about to be made, so this polls.
func (l *Lab) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		// The socket first: to start virsh for nothing costs more than to wait.
		conn, err := new(net.Dialer).DialContext(ctx, "unix", l.socket())
		if err == nil {
			conn.Close()
			_, err = l.Virsh(ctx, "version")
		}
		if err == nil {
			return nil
		}
		if _, gone := l.ask(request{Do: doPID}); gone != nil {
			return fmt.Errorf("%w: %s", gone, l.initLog())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("libvirtd does not answer: %w: %s", err, l.initLog())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// initLog is what init and libvirtd had to say.
func (l *Lab) initLog() string {
	text, err := os.ReadFile(filepath.Join(l.dir, "lab.log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// KillLibvirtd kills libvirtd with SIGKILL and returns when it is gone. Guests live on.
func (l *Lab) KillLibvirtd() error { return l.signal("", syscall.SIGKILL) }

// EndLibvirtd asks libvirtd to end, as an upgrade does, and returns when it has. Guests live on.
func (l *Lab) EndLibvirtd(ctx context.Context) error {
	if err := l.signal("", syscall.SIGTERM); err != nil {
		return err
	}
	for {
		if _, err := l.LibvirtdPID(); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// StopLibvirtd stops libvirtd (SIGSTOP): calls to it hang.
func (l *Lab) StopLibvirtd() error { return l.signal("", syscall.SIGSTOP) }

// ContinueLibvirtd lets a stopped libvirtd go on.
func (l *Lab) ContinueLibvirtd() error { return l.signal("", syscall.SIGCONT) }

// KillQEMU kills the domain's QEMU with SIGKILL and returns when it is gone.
func (l *Lab) KillQEMU(name string) error { return l.signal(name, syscall.SIGKILL) }

// StopQEMU stops the domain's QEMU (SIGSTOP): its monitor hangs.
func (l *Lab) StopQEMU(name string) error { return l.signal(name, syscall.SIGSTOP) }

// ContinueQEMU lets a stopped QEMU go on.
func (l *Lab) ContinueQEMU(name string) error { return l.signal(name, syscall.SIGCONT) }

// LibvirtdPID is libvirtd's process id as the lab's owner sees it.
func (l *Lab) LibvirtdPID() (int, error) { return l.pid("") }

// QEMUPID is the process id of the domain's QEMU as the lab's owner sees it.
func (l *Lab) QEMUPID(name string) (int, error) { return l.pid(name) }

func (l *Lab) signal(domain string, sig syscall.Signal) error {
	_, err := l.ask(request{Do: doSignal, Domain: domain, Signal: sig})
	return err
}

func (l *Lab) pid(domain string) (int, error) {
	r, err := l.ask(request{Do: doPID, Domain: domain})
	if err != nil {
		return 0, err
	}
	return outerPID(l.init.Process.Pid, r.PID)
}

// pidNamespace names the pid namespace of a process; "" when it is gone.
func pidNamespace(pid string) string {
	link, err := os.Readlink(filepath.Join("/proc", pid, "ns/pid"))
	if err != nil {
		return ""
	}
	return link
}

// outerPID finds the process that is called inner in the pid namespace of first.
func outerPID(first, inner int) (int, error) {
	space := pidNamespace(strconv.Itoa(first))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil || pidNamespace(e.Name()) != space {
			continue
		}
		var outer, seen int
		_, ids, _ := strings.Cut(string(status), "NSpid:")
		if _, err := fmt.Sscan(ids, &outer, &seen); err == nil && seen == inner {
			return outer, nil
		}
	}
	return 0, fmt.Errorf("process %d of the lab is gone", inner)
}

// ask sends one request to init and waits for its answer.
func (l *Lab) ask(r request) (reply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.init == nil {
		return reply{}, errors.New("the lab did not start")
	}
	if err := json.NewEncoder(l.requests).Encode(r); err != nil {
		return reply{}, fmt.Errorf("the lab is gone: %w: %s", err, l.initLog())
	}
	var answer reply
	if err := l.replies.Decode(&answer); err != nil {
		return reply{}, fmt.Errorf("the lab is gone: %w: %s", err, l.initLog())
	}
	if answer.Error != "" {
		return reply{}, errors.New(answer.Error)
	}
	return answer, nil
}
