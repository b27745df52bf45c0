package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vpssnapd/api/server"
	"vpssnapd/api/server/servertest"
	"vpssnapd/daemon/vps"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vpssnap": main})
}

// The scripts in testdata run the program as a user does, against a daemon in memory.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               setup,
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   runExits,
			"outcome": outcome,
			"hold":    hold,
			"broken":  broken,
			"drift":   drift,
			"told":    told,
			"signals": signals,
			"deaf":    deaf,
			"tell":    tell,
			"follows": follows,

			"cutdownloads": cutDownloads,
			"downloaded":   wasDownloaded,
			"link":         link,
		},
	})
}

type serviceKey struct{}

func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "vpssnap")
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(dir) })
	group, err := servertest.OwnGroup()
	if err != nil {
		return err
	}
	service := servertest.New()
	env.Values[serviceKey{}] = service
	s := server.New(server.Config{Service: service, OperatorGroup: group, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
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
	env.Setenv("TZ", "UTC")
	return nil
}

func service(ts *testscript.TestScript) *servertest.Service {
	return ts.Value(serviceKey{}).(*servertest.Service)
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

// outcome STATUS says how the next operations end.
func outcome(ts *testscript.TestScript, _ bool, args []string) {
	service(ts).Set(func(s *servertest.Service) { s.Outcome = vps.Status(args[0]) })
}

// hold makes operations last.
func hold(ts *testscript.TestScript, _ bool, _ []string) {
	service(ts).Set(func(s *servertest.Service) { s.Hold = true })
}

// broken CODE lets every call fail.
func broken(ts *testscript.TestScript, _ bool, args []string) {
	service(ts).Set(func(s *servertest.Service) {
		s.Err = vps.Errorf(vps.Code(args[0]), "it is broken").WithRemedy("mend it")
	})
}

// drift makes doctor find an orphan and metadata that it can repair.
func drift(ts *testscript.TestScript, _ bool, _ []string) {
	service(ts).Set(func(s *servertest.Service) {
		s.Findings = []vps.Finding{
			{Code: vps.CheckOrphanOverlay, Path: "/srv/a b", Detail: "no record names /srv/a b", Remedies: []vps.Remedy{
				{Text: "remove it if nobody needs it", Commands: []vps.Command{{"rm", "-i", "--", "/srv/a b"}}},
				{Text: "leave it"},
			}},
			{Code: vps.CheckMetadataMissing, VPS: servertest.Web3, VPSName: "web3", Disk: "vda", Detail: "the copy is missing", Repairable: true},
		}
	})
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
	service(ts).Set(func(s *servertest.Service) { s.CutDownloads = n })
}

// link VPS makes a link to a snapshot, as a panel does.
func link(ts *testscript.TestScript, _ bool, args []string) {
	_, err := service(ts).MakeDownload(context.Background(), args[0], vps.DownloadRequest{}, vps.Actor{Name: "panel"})
	ts.Check(err)
}

// wasDownloaded FILE checks that a file is the disk of the snapshot.
func wasDownloaded(ts *testscript.TestScript, _ bool, args []string) {
	if ts.ReadFile(args[0]) != string(servertest.Content) {
		ts.Fatalf("%s is not the disk", args[0])
	}
}

// told TEXT checks that the daemon was told to do something; with ! that it was not.
func told(ts *testscript.TestScript, neg bool, args []string) {
	calls := strings.Join(service(ts).Calls(), "\n")
	if strings.Contains(calls, strings.Join(args, " ")) == neg {
		ts.Fatalf("the daemon was told: %q", calls)
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
	ts.Check(cmd.Start())
	for deadline := time.Now().Add(20 * time.Second); service(ts).Waiting() == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	ts.Check(cmd.Process.Signal(os.Interrupt))
	err = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		ts.Fatalf("exit code %d (%v): %s", code, err, stderr.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupted"), []byte(stderr.String()), 0o600))
}

// tell TYPE [VPS] makes something happen.
func tell(ts *testscript.TestScript, _ bool, args []string) {
	service(ts).Tell(event(args...))
}

// event is one of a type, of a VPS or of the host.
func event(args ...string) vps.Event {
	e := vps.Event{Type: vps.EventType(args[0])}
	if len(args) > 1 {
		e.VPSName = args[1]
		e.VPS = map[string]string{"web1": servertest.Web1, "web2": servertest.Web2, "web3": servertest.Web3}[args[1]]
	}
	family, kind, _ := strings.Cut(args[0], ".")
	switch family {
	case "operation":
		o := &vps.OperationEvent{ID: "op-7", Kind: vps.KindRestore, Status: vps.Status(kind), Step: "exchange", ActorName: "panel", ActorWay: vps.WayPanel}
		switch e.Type {
		case vps.EventOperationStep:
			o.Status = vps.StatusRunning
		case vps.EventOperationFailed:
			o.Code, o.Detail = vps.CodeInternal, "the disks are\x1b[2J full"
		}
		e.Operation = o
	case "option":
		e.Option = &vps.OptionEvent{ID: "opt-1", State: vps.OptionState(kind), Note: "its time is over", ActorName: "vpssnapd", ActorWay: vps.WayExpiry}
	case "snapshot":
		e.Snapshot = &vps.SnapshotEvent{ID: "abcdef012345", State: vps.SnapshotState(kind), Reason: "a file is missing"}
	case "message":
		e.Message = &vps.MessageEvent{ID: 1, Kind: vps.MessageWarning, Text: "This is news."}
	case "space":
		e.Space = &vps.SpaceEvent{Level: vps.SpaceLevel(kind), Path: "/srv/images", TotalBytes: 1 << 40, FreeBytes: 1 << 30, FullInSeconds: 5400}
	}
	return e
}

// follows TEXT PROGRAM ARGUMENT... runs a program that goes on until it is
// interrupted. When it has printed a line a take of web1 begins; when it has printed
// TEXT it is interrupted and has to succeed. What it has printed is in followed.
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
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if printed.Len() == 0 {
			_, err := service(ts).Take(context.Background(), servertest.Web1, vps.TakeRequest{}, vps.Actor{Name: "panel", Way: vps.WayPanel})
			ts.Check(err)
			service(ts).Tell(event("operation.pending", "web1"))
		}
		printed.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), args[0]) {
			ts.Check(cmd.Process.Signal(os.Interrupt))
		}
	}
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("%v: %s%s", err, printed.String(), stderr.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("followed"), []byte(printed.String()), 0o600))
}
