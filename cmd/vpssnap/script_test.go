package main

import (
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

			"cutdownloads": cutDownloads,
			"downloaded":   wasDownloaded,
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
