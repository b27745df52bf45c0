package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ownerVariable makes the test binary an owner that only waits to be killed.
const ownerVariable = "VPSSNAP_LAB_TEST_OWNER"

func TestMain(m *testing.M) {
	Main()
	if os.Getenv(ownerVariable) != "" {
		os.Exit(runOwner())
	}
	os.Exit(m.Run())
}

// runOwner starts a lab with a guest, tells of it, and waits for its death.
func runOwner() int {
	ctx := context.Background()
	l, err := Start(ctx, Options{})
	if err == nil {
		_, err = l.DefineDomain(ctx, Spec{Name: "web1", Disks: []DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}})
	}
	if err == nil {
		_, err = l.Virsh(ctx, "start", "web1")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(l.init.Process.Pid, l.Dir())
	select {}
}

// startLab gives the test a lab that ends with it.
func startLab(t *testing.T) *Lab {
	t.Helper()
	return startLabWith(t, Options{})
}

func startLabWith(t *testing.T, o Options) *Lab {
	t.Helper()
	l, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// within bounds what a test waits for.
func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startGuest defines and starts a guest.
func startGuest(t *testing.T, l *Lab, s Spec) {
	t.Helper()
	_, err := l.DefineDomain(t.Context(), s)
	must(t, err)
	_, err = l.Virsh(t.Context(), "start", s.Name)
	must(t, err)
}

// smallGuest has one disk and no operating system.
func smallGuest(name string) Spec {
	return Spec{Name: name, Disks: []DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}
}

// inhabitants are the processes of a pid namespace.
func inhabitants(t *testing.T, space string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	var pids []string
	for _, e := range entries {
		if pidNamespace(e.Name()) == space {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return string(text)
}

func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestCloseLeavesNothing(t *testing.T) {
	l := startLab(t)
	startGuest(t, l, smallGuest("web1"))
	space := pidNamespace(fmt.Sprint(l.init.Process.Pid))
	if n := len(inhabitants(t, space)); n < 3 {
		t.Fatalf("a lab with a guest has %d processes, want init, libvirtd and QEMU", n)
	}
	if strings.Contains(mounts(t), l.Dir()) { // others mount, too
		t.Error("the lab's mounts show on the machine")
	}
	must(t, l.Close())
	if left := inhabitants(t, space); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if !isGone(l.Dir()) {
		t.Errorf("%s is left", l.Dir())
	}
	if strings.Contains(mounts(t), l.Dir()) {
		t.Error("mounts are left")
	}
	if _, err := l.Virsh(t.Context(), "list"); err == nil {
		t.Error("libvirtd answers still")
	}
	if err := l.KillLibvirtd(); err == nil {
		t.Error("a closed lab kills a libvirtd")
	}
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), ownerVariable+"=1")
	out, err := owner.StdoutPipe()
	must(t, err)
	must(t, owner.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
	space := pidNamespace(pid)
	if err != nil || !ok || space == "" {
		owner.Process.Kill()
		t.Fatalf("the owner says %q, %v", line, err)
	}
	must(t, owner.Process.Kill())
	if err := owner.Wait(); err == nil {
		t.Error("the owner ended well")
	}
	err = poll(within(t, 10*time.Second), func() (bool, error) {
		return isGone(dir) && len(inhabitants(t, space)) == 0, nil
	})
	if err != nil {
		t.Errorf("%s gone: %v, processes left: %v", dir, isGone(dir), inhabitants(t, space))
	}
}

func TestGuestSurvivesTheDeathOfLibvirtd(t *testing.T) {
	l := startLab(t)
	startGuest(t, l, smallGuest("web1"))
	before, err := l.QEMUPID("web1")
	must(t, err)
	must(t, l.KillLibvirtd())
	if _, err := l.LibvirtdPID(); err == nil {
		t.Error("a killed libvirtd has a process id")
	}
	if _, err := l.Virsh(t.Context(), "list"); err == nil {
		t.Error("a killed libvirtd answers")
	}
	must(t, l.StartLibvirtd(t.Context()))
	after, err := l.QEMUPID("web1")
	if err != nil || after != before {
		t.Errorf("QEMU was process %d, is %d, %v", before, after, err)
	}
	if state, err := l.State(t.Context(), "web1"); err != nil || state != "running" {
		t.Errorf("web1 is %q, %v", state, err)
	}
}

func TestProcessIDsAreThoseOutside(t *testing.T) {
	l := startLab(t)
	startGuest(t, l, smallGuest("web1"))
	libvirtd, err := l.LibvirtdPID()
	must(t, err)
	qemu, err := l.QEMUPID("web1")
	must(t, err)
	for pid, want := range map[int]string{libvirtd: "libvirtd", qemu: "guest=web1"} {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.Contains(string(line), want) {
			t.Errorf("process %d is %q, %v, want %s", pid, line, err, want)
		}
	}
}

func TestStoppedLibvirtdHangsUntilContinued(t *testing.T) {
	l := startLab(t)
	must(t, l.StopLibvirtd())
	if _, err := l.Virsh(within(t, 300*time.Millisecond), "list"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call to a stopped libvirtd ends with %v", err)
	}
	must(t, l.ContinueLibvirtd())
	if _, err := l.Virsh(within(t, 10*time.Second), "list"); err != nil {
		t.Error(err)
	}
}

func TestSecondLibvirtdIsRefused(t *testing.T) {
	l := startLab(t)
	if err := l.StartLibvirtd(t.Context()); err == nil {
		t.Error("two libvirtd run in one lab")
	}
}

func TestKilledQEMUIsSeenAsOff(t *testing.T) {
	l := startLab(t)
	startGuest(t, l, smallGuest("web1"))
	must(t, l.KillQEMU("web1"))
	must(t, l.WaitState(within(t, 10*time.Second), "web1", "shut off"))
	if err := l.KillQEMU("web1"); err == nil {
		t.Error("a guest that is off has a QEMU to kill")
	}
	if err := l.KillQEMU("../../../etc/passwd"); err == nil {
		t.Error("a path is taken for a guest's name")
	}
}

func TestLabsShareAnImageDirectory(t *testing.T) {
	images := t.TempDir()
	one, two := startLabWith(t, Options{ImageDir: images}), startLabWith(t, Options{ImageDir: images})
	startGuest(t, one, smallGuest("web1"))
	startGuest(t, two, smallGuest("web2"))
	must(t, one.Close())
	if state, err := two.State(t.Context(), "web2"); err != nil || state != "running" {
		t.Errorf("web2 is %q, %v, after the other lab ended", state, err)
	}
	if isGone(filepath.Join(images, "web1-vda.qcow2")) {
		t.Error("a lab removed an image directory that was given to it")
	}
}

func TestDefinitionsOutliveTheLab(t *testing.T) {
	config := filepath.Join(t.TempDir(), "libvirt")
	first := startLabWith(t, Options{ConfigDir: config})
	_, err := first.DefineDomain(t.Context(), smallGuest("web1"))
	must(t, err)
	must(t, first.Close())
	second := startLabWith(t, Options{ConfigDir: config})
	if state, err := second.State(t.Context(), "web1"); err != nil || state != "shut off" {
		t.Errorf("in a lab on the same definitions web1 is %q, %v", state, err)
	}
}

func TestStartIsRefused(t *testing.T) {
	if _, err := Start(t.Context(), Options{Parent: filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("a lab lives in a directory that does not exist")
	}
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", maxSocketPath))
	must(t, os.Mkdir(deep, 0o755))
	if _, err := Start(t.Context(), Options{Parent: deep}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a path too long for a socket: %v", err)
	}
	if left, err := os.ReadDir(deep); err != nil || len(left) > 0 {
		t.Errorf("a refused lab leaves %v, %v", left, err)
	}
	mainCalled.Store(false)
	defer mainCalled.Store(true)
	if _, err := Start(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "lab.Main") {
		t.Errorf("without Main: %v", err)
	}
}
