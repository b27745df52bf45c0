package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/fake"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vpssnap": main})
}

// The scripts in testdata run the program as a user does, against the daemon on a fake host.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               setup,
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   runExits,
			"keep":    keep,
			"same":    same,
			"told":    told,
			"signals": signals,
			"deaf":    deaf,
			"follows": follows,

			"fate":         fate,
			"slow":         slow,
			"cutdownloads": cutDownloads,
			"downloaded":   wasDownloaded,
			"link":         link,
		},
	})
}

// Embedded by these names: the interfaces have methods called like them.
type (
	operations = server.Operations
	downloads  = server.Downloads
)

// site is what a script runs against.
type site struct {
	operations
	downloads
	host *daemontest.Host
	// begun is how much the daemon had logged when the script began.
	begun int

	waiting atomic.Int32 // calls that wait, or have waited, for an operation
	mu      sync.Mutex
	slow    func() error // ends what lasts until the program has seen how far it is
	slowFor int32        // when so many calls wait, or have waited
	mend    func()       // ends a drift
	cut     int          // how many of the next downloads are cut off, each after a third
}

// WaitOperation is what shows that the program waits. A second call shows that it has
// the answer to the first.
func (s *site) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	if err := s.hurry(s.waiting.Add(1)); err != nil {
		return vps.Operation{}, err
	}
	return s.operations.WaitOperation(ctx, id, limit)
}

func (s *site) hurry(waiting int32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slow == nil || waiting < s.slowFor {
		return nil
	}
	end := s.slow
	s.slow = nil
	return end()
}

// OpenDownload has the link of a download revoked, which cuts it off.
func (s *site) OpenDownload(ctx context.Context, link string) (vps.Download, io.ReadSeekCloser, error) {
	d, image, err := s.downloads.OpenDownload(ctx, link)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.cut == 0 {
		return d, image, err
	}
	s.cut--
	return d, &cutting{image, d.Image.SizeBytes / 3, func() error {
		return s.RevokeDownload(ctx, d.VPS, d.ID, vps.Actor{Name: "panel", Way: vps.WayPanel})
	}}, nil
}

// cutting does something when so many bytes were read.
type cutting struct {
	io.ReadSeekCloser
	left int64
	then func() error
}

func (c *cutting) Read(p []byte) (int, error) {
	if c.left == 0 {
		if err := c.then(); err != nil {
			return 0, err
		}
		c.left = math.MaxInt64
	}
	n, err := c.ReadSeekCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

type siteKey struct{}

func siteOf(ts *testscript.TestScript) *site { return ts.Value(siteKey{}).(*site) }

func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "vpssnap")
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(dir) })
	hooks := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fails" {
			http.NotFound(w, r)
		}
	}))
	env.Defer(hooks.Close)
	host, err := openHost(env, dir, hooks.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		return err
	}
	if err := serve(env, dir, host); err != nil {
		return err
	}
	for name, role := range map[string]string{"READ": "read", "ADMIN": "admin", "PANEL": "panel"} {
		env.Setenv(name, host.Secret(role))
	}
	env.Setenv("HOOKS", hooks.URL)
	env.Setenv("TZ", "UTC")
	return os.WriteFile(filepath.Join(env.WorkDir, "token"), []byte(host.Secret("panel")+"\n"), 0o600)
}

// openHost opens a host which was once short of room, and has told so.
func openHost(env *testscript.Env, dir string, trust *tls.Config) (*daemontest.Host, error) {
	host, err := daemontest.Open(dir, func(c *daemon.Config) {
		c.Webhook.AllowHTTP, c.Webhook.TLS, c.WebhookBody = false, trust, server.WebhookBody
	})
	if err != nil {
		return nil, err
	}
	env.Defer(func() {
		if err := host.Close(); err != nil {
			env.T().Fatal(err)
		}
	})
	if err := host.Restart(func(h *fake.Host) { h.SetFree(1 << 30) }); err != nil {
		return nil, err
	}
	err = daemontest.Eventually(
		"it is short of room", func() bool { return strings.Contains(host.Log(), "event=space.critical") },
	)
	return host, errors.Join(err, host.Restart(nil))
}

// serve serves the daemon on a Unix socket, and over TCP without TLS and with it.
func serve(env *testscript.Env, dir string, host *daemontest.Host) error {
	group, err := daemontest.OwnGroup()
	if err != nil {
		return err
	}
	services := daemontest.Services(host.Daemon)
	served := &site{operations: services.Operations, downloads: services.Downloads, host: host, begun: len(host.Log())}
	services.Operations, services.Downloads = served, served
	env.Values[siteKey{}] = served
	s := server.New(
		server.Config{
			Services:      services,
			OperatorGroup: group,
			Logger:        slog.New(slog.DiscardHandler),
			Version:       daemontest.Version,
		},
	)
	unix, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, unix.Close())
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, unix.Close(), tcp.Close())
	}
	certificates, err := mutualTLS(env.WorkDir)
	if err != nil {
		return errors.Join(err, unix.Close(), tcp.Close(), secure.Close())
	}
	ended := make(chan error, 3)
	go func() { ended <- s.ServeUnix(unix) }()
	go func() { ended <- s.ServeTCP(tcp, nil) }()
	go func() { ended <- s.ServeTCP(secure, certificates) }()
	env.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-ended, <-ended, <-ended); err != nil {
			env.T().Fatal(err)
		}
	})
	env.Setenv("VPSSNAP_SOCKET", filepath.Join(dir, "s"))
	env.Setenv("URL", "http://"+tcp.Addr().String())
	env.Setenv("TLS", "https://"+secure.Addr().String())
	return nil
}

// runExits is "exits CODE PROGRAM ARGUMENT...": it runs a program and compares its exit code.
func runExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// keep NAME REGEXP sets a variable to what the first group matches in the output.
func keep(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if found == nil {
		ts.Fatalf("the output has no %s", args[1])
	}
	ts.Setenv(args[0], found[1])
}

// volatile is what differs from one run to the next, and how it is written instead.
var volatile = map[*regexp.Regexp]string{
	regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`): "NOW",
	regexp.MustCompile(`op-[0-9a-f]{20}`):                         "OP",
	regexp.MustCompile(` at /\S+`):                                " at DIR",
	regexp.MustCompile(`of [0-9.]+ [KMGTP]iB`):                    "of SIZE",
	regexp.MustCompile(`for \d+ ms`):                              "for N ms",
	regexp.MustCompile(`by ` + whoami() + `\)`):                   "by ME)",
}

// whoami is the name of the user who runs the tests, as the kernel tells the daemon.
func whoami() string {
	me, err := user.Current()
	if err != nil {
		return "uid " + strconv.Itoa(os.Getuid())
	}
	return regexp.QuoteMeta(me.Username)
}

// same FILE FILE compares two files but for what is volatile.
func same(ts *testscript.TestScript, _ bool, args []string) {
	got, want := ts.ReadFile(args[0]), ts.ReadFile(args[1])
	for what, as := range volatile {
		got = what.ReplaceAllString(got, as)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		ts.Fatalf("want -, got +\n%s", diff)
	}
}

// fates are what a script can let happen on the host.
var fates = map[string]func(s *site, args []string) error{
	// full lets the next take fail, cancel has it cancelled, and park lets the next
	// deletion of web3's snapshot wait for an operator, until cure.
	"full":   func(s *site, _ []string) error { s.host.FillUp(); return nil },
	"cancel": func(s *site, _ []string) error { s.host.CancelNext(); return nil },
	"park":   func(s *site, _ []string) error { s.host.ParkNext(daemontest.Web3); return nil },
	"cure":   func(s *site, _ []string) error { return s.host.Cure(daemontest.Web3) },
	// hold makes the next take, or deletion, last.
	"hold": func(s *site, args []string) error {
		s.host.Hold(map[string]string{"take": daemontest.InTake, "delete": daemontest.InDelete}[args[0]])
		return nil
	},
	// away takes libvirt away, noroom the room for takes, and break lets libvirt fail.
	"away":   func(s *site, _ []string) error { s.host.Disconnect(); return nil },
	"noroom": func(s *site, _ []string) error { s.host.SetFree(1 << 20); return nil },
	"break": func(s *site, _ []string) error {
		s.host.Break("Domain.before", errors.New("it is broken"))
		return nil
	},
	// drift leaves a file that no record names, and metadata that can be repaired; but
	// libvirt does not let that happen before mend.
	"drift": func(s *site, _ []string) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mend = s.host.Break("SetMetadata.before", errors.New("libvirt cannot save it"))
		orphan := filepath.Join(s.host.ImageDir(), "a b.qcow2.vpssnap-0123456789ab.vda.qcow2")
		return errors.Join(os.WriteFile(orphan, nil, 0o600), s.host.LoseMetadata(daemontest.Web3))
	},
	"mend": func(s *site, _ []string) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mend()
		return nil
	},
	// odd lets a take fail of a VPS whose name is meant for a terminal.
	"odd": func(s *site, _ []string) error {
		id, err := s.host.AddVPS("odd\x1b[2J")
		if err != nil {
			return err
		}
		s.host.FillUp()
		op, err := s.host.Take(id, "")
		if err == nil {
			_, err = s.host.Ended(op.ID)
		}
		return err
	},
	// touch changes the time of the data of web3's snapshot, which is noticed.
	"touch": func(s *site, _ []string) error {
		snap, err := s.host.Snapshot("web3")
		if err != nil {
			return err
		}
		err = os.Chtimes(snap.Disks[0].Base, time.Time{}, snap.Disks[0].BaseModified.Add(time.Hour))
		_, checked := s.host.Daemon.Doctor.Checks(context.Background())
		return errors.Join(err, checked)
	},
	// lose takes the disk of web3's snapshot away, which is noticed.
	"lose": func(s *site, _ []string) error {
		snap, err := s.host.Snapshot("web3")
		if err != nil {
			return err
		}
		err = os.Rename(snap.Disks[0].Base, snap.Disks[0].Base+".away")
		_, checked := s.host.Daemon.Doctor.Checks(context.Background())
		return errors.Join(err, checked)
	},
}

// fate WHAT lets something happen on the host.
func fate(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(fates[args[0]](siteOf(ts), args[1:]))
}

// slow take|merge lets the next one last until the program has seen how far it is.
func slow(ts *testscript.TestScript, _ bool, args []string) {
	s := siteOf(ts)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowFor = s.waiting.Load() + 2
	switch args[0] {
	case "take":
		_, release := s.host.Hold(daemontest.InTake)
		s.slow = func() error { release(); return nil }
	case "merge":
		ts.Check(s.host.Write(daemontest.Web1, "vda", 0, 'x', 4<<20))
		s.host.MergeReadyAfter(10_000)
		s.slow = func() error { return s.host.FinishMerge(daemontest.Web1, "vda") }
	}
}

// deaf PATH listens on a socket, and never answers.
func deaf(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { ts.Check(l.Close()) })
}

// cutDownloads N cuts the next downloads off.
func cutDownloads(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	s := siteOf(ts)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = n
}

// link VPS makes a link to a snapshot, as a panel does; $TAG names its image.
func link(ts *testscript.TestScript, _ bool, args []string) {
	d, err := siteOf(
		ts,
	).host.Daemon.Downloads.MakeDownload(
		context.Background(),
		args[0],
		vps.DownloadRequest{},
		vps.Actor{Name: "panel"},
	)
	ts.Check(err)
	ts.Setenv("TAG", d.Tag())
}

// wasDownloaded FILE checks that a raw image is the disk of web3's snapshot.
func wasDownloaded(ts *testscript.TestScript, _ bool, args []string) {
	host := siteOf(ts).host
	snap, err := host.Snapshot("web3")
	ts.Check(err)
	disk, err := host.ReadImage(snap.Disks[0].Base, "qcow2", 0, daemontest.DiskBytes)
	ts.Check(err)
	if ts.ReadFile(args[0]) != string(disk) {
		ts.Fatalf("%s is not the disk", args[0])
	}
}

// told REGEXP checks that the daemon has logged something; with ! that it has not.
func told(ts *testscript.TestScript, neg bool, args []string) {
	s, what := siteOf(ts), regexp.MustCompile(args[0])
	logged := func() bool { return what.MatchString(s.host.Log()[s.begun:]) }
	if neg && logged() {
		ts.Fatalf("the daemon was told: %s", s.host.Log()[s.begun:])
	}
	if !neg {
		ts.Check(daemontest.Eventually("the log has "+args[0], logged))
	}
}

// signals runs the program, interrupts it when it waits, and expects exit code 130.
func signals(ts *testscript.TestScript, _ bool, args []string) {
	self, err := os.Executable()
	ts.Check(err)
	cmd := exec.Command(self, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = append(os.Environ(), "VPSSNAP_SOCKET="+ts.Getenv("VPSSNAP_SOCKET"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	waiting := &siteOf(ts).waiting
	before := waiting.Load()
	ts.Check(cmd.Start())
	ts.Check(daemontest.Eventually("it waits", func() bool { return waiting.Load() > before }))
	ts.Check(cmd.Process.Signal(os.Interrupt))
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		ts.Fatalf("exit code %d (%v): %s", code, err, stderr.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupted"), []byte(stderr.String()), 0o600))
}

// follows TEXT PROGRAM ARGUMENT... runs a program that goes on until it is
// interrupted. When it has printed a line a take of web1 begins; when it has printed
// TEXT it is interrupted and has to succeed. What it has printed until then is in followed.
func follows(ts *testscript.TestScript, _ bool, args []string) {
	self, err := os.Executable()
	ts.Check(err)
	cmd := exec.Command(self, args[2:]...)
	cmd.Args[0] = args[1]
	cmd.Env = append(os.Environ(), "TZ=UTC", "VPSSNAP_SOCKET="+ts.Getenv("VPSSNAP_SOCKET"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var printed strings.Builder
	seen := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if printed.Len() == 0 {
			_, err := siteOf(ts).host.Take("web1", "")
			ts.Check(err)
		}
		if seen { // what comes while it ends is left out
			continue
		}
		printed.WriteString(lines.Text() + "\n")
		if seen = strings.Contains(lines.Text(), args[0]); seen {
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("%v: %s%s", err, printed.String(), stderr.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("followed"), []byte(printed.String()), 0o600))
}
