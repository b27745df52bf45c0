package site_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/api"
)

// inject lets a system call of the daemon fail, until the returned function is called.
func (h *host) inject(fault string) (mend func()) {
	h.t.Helper()
	pid := fmt.Sprint(h.DaemonPID())
	strace := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2",
		"-e", "inject=renameat2:"+fault, "-p", pid)
	h.must(strace.Start())
	h.eventually("every thread of the daemon is traced", func() bool {
		threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
		h.must(err)
		return !slices.ContainsFunc(threads, func(path string) bool {
			status, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(status), "TracerPid:\t0\n")
		})
	})
	return func() {
		h.t.Helper()
		h.must(strace.Process.Signal(unix.SIGTERM))
		_ = strace.Wait() // it ends by the signal
	}
}

// TestNoExchange (FAULTS row 34): on a file system that cannot exchange two files a take is
// refused by name, and the restore of a snapshot from before that rule before the VPS is
// stopped.
func TestNoExchange(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.define(twoDisks("web1"), "running")
	h.fill("web1", 'a')
	for _, fault := range []string{"error=EINVAL", "error=ENOSYS", "error=EOPNOTSUPP", "retval=0"} {
		mend := h.inject(fault)
		h.refused(api.CodeUnsupportedDisk, "disk vda: its file system cannot exchange two files")(
			h.Client.Take(ctx, "web1", api.TakeRequest{}))
		mend()
		h.clean("web1")
	}
	h.take("web1", api.TakeRequest{})
	h.fill("web1", 'b')
	qemu, err := h.Lab.QEMUPID("web1")
	h.must(err)
	v, err := h.Client.VPS(ctx, "web1")
	h.must(err)
	mend := h.inject("error=EINVAL")
	h.refused(api.CodeUnsupportedDisk, "disk vda")(
		h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: v.Snapshot.ID}))
	mend()
	if now, err := h.Lab.QEMUPID("web1"); err != nil || now != qemu {
		t.Errorf("the VPS was stopped (%v)", err)
	}
	h.works("web1")
}

// hook makes a script that libvirt runs before a VPS starts (prepare) and after it has ended
// (release).
func (h *host) hook(prepare, release string) {
	h.t.Helper()
	script := fmt.Sprintf("#!/bin/sh\ncase \"$2\" in prepare) %s ;; release) %s ;; esac\n", prepare, release)
	h.must(os.WriteFile(filepath.Join(h.Lab.ConfigDir(), "hooks/qemu.d/fate"), []byte(script), 0o755)) //nolint:gosec // libvirtd runs it
	h.must(h.Lab.KillLibvirtd())
	h.must(h.Lab.StartLibvirtd(h.t.Context()))
	h.reconnected()
}

// TestRestoreIsTakenBack (FAULTS row 34): between the stop and the exchange the directory
// becomes one in which nothing can be renamed. The VPS is started again as it was, by the
// daemon itself or, where that cannot either, by an operator who cures the cause.
func TestRestoreIsTakenBack(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx, dir := t.Context(), h.Lab.ImageDir()
	t.Cleanup(func() { _ = exec.Command("chattr", "-i", dir).Run() })
	h.snapped("web1", "running")
	v, err := h.Client.VPS(ctx, "web1")
	h.must(err)
	files, err := h.OurFiles()
	h.must(err)
	restore := func() (api.Operation, error) {
		return h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: v.Snapshot.ID})
	}
	asBefore := func() {
		t.Helper()
		h.holds("web1", 'b')
		h.well()
		if now, err := h.OurFiles(); err != nil || !slices.Equal(now, files) {
			t.Errorf("there were %v, there are %v, %v", files, now, err)
		}
	}

	h.hook("chattr -i "+dir, "chattr +i "+dir)
	h.failed(api.CodeVPSChanged)(restore())
	if state := h.state("web1"); state != "running" {
		t.Fatalf("the VPS is %s", state)
	}
	asBefore()

	// Nobody lets it start: the operation waits for an operator, who is not barred from it.
	h.hook("exit 1", "chattr +i "+dir)
	op, err := restore()
	h.must(err)
	op, err = h.Client.WaitOperation(ctx, op.ID, time.Minute)
	h.must(err)
	if op.Status != api.OperationStatusNeedsAttention || h.state("web1") != "shut off" {
		t.Fatalf("it is %s, the VPS %s: %+v", op.Status, h.state("web1"), op.Error)
	}
	h.hook("true", "true")
	h.tool("chattr", "-i", dir)
	h.virsh("start", "web1")
	if _, stderr, code := h.CLI(ctx, "operations", "resume", op.ID); code == 0 {
		t.Errorf("what was taken back has succeeded: %s", stderr)
	}
	if op, err = h.Client.Operation(ctx, op.ID); err != nil || op.Status != api.OperationStatusFailed {
		t.Errorf("it is %s, %v: %+v", op.Status, err, op.Error)
	}
	asBefore()
	h.works("web1")
}
