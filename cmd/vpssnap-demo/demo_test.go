package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

const programName = "vpssnap-demo"

// TestMain makes the test binary the demo when it is called so.
func TestMain(m *testing.M) {
	lab.Main()
	if os.Args[0] == programName {
		os.Exit(run())
	}
	os.Exit(runTests(m))
}

// programs holds vpssnapd and vpssnap, built once.
var programs string

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := site.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	programs = dir
	return m.Run()
}

// audience is a demo that runs, and what it printed.
type audience struct {
	t       *testing.T
	cmd     *exec.Cmd
	keys    io.WriteCloser
	lines   *bufio.Reader
	printed bytes.Buffer
	// dir is where the demo makes everything.
	dir string
}

func start(t *testing.T, bin string, args ...string) *audience {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := filepath.Abs("../../build/lab")
	if err != nil {
		t.Fatal(err)
	}
	a := &audience{t: t, cmd: exec.CommandContext(ctx, self, append([]string{"-bin", bin}, args...)...)}
	if a.dir, err = os.MkdirTemp("", "demo-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(a.dir) })
	a.cmd.Args[0] = programName
	a.cmd.Env = append(os.Environ(), "TMPDIR="+a.dir, "VPSSNAP_LAB_CACHE="+cache)
	if a.keys, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.lines = bufio.NewReader(out)
	a.cmd.Stderr = a.cmd.Stdout
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return a
}

// until reads up to a line with those words.
func (a *audience) until(words string) {
	a.t.Helper()
	for {
		line, err := a.lines.ReadString('\n')
		a.printed.WriteString(line)
		if strings.Contains(line, words) {
			return
		}
		if err != nil {
			a.t.Fatalf("the demo ended without %q:\n%s", words, &a.printed)
		}
	}
}

// ends expects that exit code, and that nothing is left.
func (a *audience) ends(code int) {
	a.t.Helper()
	if _, err := a.printed.ReadFrom(a.lines); err != nil {
		a.t.Fatal(err)
	}
	// What it exits with is checked below.
	_ = a.cmd.Wait()
	if got := a.cmd.ProcessState.ExitCode(); got != code {
		a.t.Errorf("exit code %d, want %d:\n%s", got, code, &a.printed)
	}
	left, err := os.ReadDir(a.dir)
	if err != nil || len(left) > 0 {
		a.t.Errorf("left behind: %v (%v)", left, err)
	}
}

// The whole demo; the host stays up until Enter.
func TestDemoThatStaysUp(t *testing.T) {
	a := start(t, programs, "-keep")
	a.until("VPSSNAP_SOCKET=")
	_, socket, _ := strings.Cut(a.printed.String(), "export VPSSNAP_SOCKET=")
	list := exec.Command(filepath.Join(programs, "vpssnap"), "list", "--socket", strings.TrimSpace(socket))
	if out, err := list.CombinedOutput(); err != nil || !strings.Contains(string(out), "web1  running") {
		t.Errorf("the host that stays up says %q (%v)", out, err)
	}
	if _, err := io.WriteString(a.keys, "\n"); err != nil {
		t.Fatal(err)
	}
	a.ends(0)
}

func TestInterrupted(t *testing.T) {
	a := start(t, programs)
	a.until("$ virsh start")
	if err := a.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	a.ends(exitInterrupted)
}

// A program that does not do as said must not go unnoticed.
func TestNotAsSaid(t *testing.T) {
	bin := t.TempDir()
	for name, target := range map[string]string{"vpssnapd": filepath.Join(programs, "vpssnapd"), "vpssnap": "/bin/true"} {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	a := start(t, bin)
	a.until(`expected to read "Connected to libvirt"`)
	a.ends(exitFailed)
	if strings.Contains(a.printed.String(), "== 2.") {
		t.Error("the demo went on")
	}
}

func TestNotBuilt(t *testing.T) {
	a := start(t, t.TempDir())
	a.until("build it first")
	a.ends(exitFailed)
}

func TestQuote(t *testing.T) {
	if got, want := quote([]string{"echo", "a b", "it's"}), `echo 'a b' 'it'\''s'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
