package site_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// holdDaemon stops the daemon's process where it is (SIGSTOP).
func (h *host) holdDaemon() {
	h.t.Helper()
	pid, ended := h.DaemonPID(), h.DaemonEnded()
	h.t.Cleanup(func() {
		select {
		case <-ended:
		default: // a process that stands still does not end in order
			h.must(unix.Kill(pid, unix.SIGCONT))
		}
	})
	h.must(unix.Kill(pid, unix.SIGSTOP))
}

// letDaemonGo lets a daemon that is held go on.
func (h *host) letDaemonGo() {
	h.t.Helper()
	h.must(unix.Kill(h.DaemonPID(), unix.SIGCONT))
}

// TestTwoDaemons starts a second daemon on the state directory of the first
// (FAULTS row 13): it ends, says why, and the first works on.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	var environment []string
	h := openHost(t, site.Options{Env: func() []string { return environment }})
	limited, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	second := exec.CommandContext(limited, filepath.Join(binDir, "vpssnapd"), "-config", h.ConfigFile())
	out, err := second.CombinedOutput()
	if err == nil || second.ProcessState.ExitCode() != 1 ||
		!strings.Contains(string(out), "another vpssnapd works on "+h.StateDir()) {
		t.Errorf("the second daemon: %v\n%s", err, out)
	}
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "running")
	h.take("web1", api.TakeRequest{})
	h.delete("web1")
	h.clean("web1")

	t.Run("hostile name", func(t *testing.T) { (&host{h.Site, t}).hostileName() })
	t.Run("writable configuration", func(t *testing.T) { (&host{h.Site, t}).writableFiles() })
	t.Run("hostile environment", func(t *testing.T) { (&host{h.Site, t}).hostileEnvironment(&environment) })
}

// hostileName: whoever may define domains chooses what stands in their names.
func (h *host) hostileName() {
	ctx, name := h.t.Context(), `a]]><b>&amp;'"$(id)`
	id, err := h.Lab.DefineDomain(ctx, lab.Spec{Name: name, Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 1 << 20, Path: filepath.Join(h.Lab.ImageDir(), "image.qcow2")}}})
	h.must(err)
	h.activate(id)
	before := h.look(name)
	h.take(id, api.TakeRequest{Description: name})
	v, err := h.Client.VPS(ctx, name)
	if h.must(err); v.ID != id || v.Snapshot == nil || v.Snapshot.Description != name {
		h.t.Errorf("%s is %+v", name, v)
	}
	h.restore(id)
	h.delete(id)
	h.same("after delete", name, before)
	h.clean(name)
	out, stderr, code := h.CLI(ctx, "list", "-o", "json")
	if code != 0 || !strings.Contains(out, strconv.Quote(name)) {
		h.t.Errorf("the list (%d, %s) does not name it:\n%s", code, stderr, out)
	}
}

// writableFiles: others may write to the configuration, or read the TLS key.
func (h *host) writableFiles() {
	h.must(h.StopDaemon())
	config, err := os.ReadFile(h.ConfigFile())
	h.must(err)
	key := filepath.Join(h.StateDir(), "tls.key")
	h.must(os.WriteFile(key, nil, 0o600))
	with := fmt.Sprintf("tls = { cert = %q, key = %q }\n", key, key)
	h.must(os.WriteFile(h.ConfigFile(), append([]byte(with), config...), 0o600))
	for _, file := range []string{h.ConfigFile(), key} {
		for _, mode := range []os.FileMode{0o620, 0o602} {
			h.must(os.Chmod(file, mode))
			if err := h.StartDaemon(h.t.Context()); err == nil || !strings.Contains(err.Error(), "others") {
				h.t.Errorf("with %s of mode %o the daemon: %v", filepath.Base(file), mode, err)
			}
			h.must(h.StopDaemon())
		}
		h.must(os.Chmod(file, 0o600))
	}
	h.must(os.WriteFile(h.ConfigFile(), config, 0o600))
	h.must(h.StartDaemon(h.t.Context()))
}

// hostileEnvironment: whoever starts the daemon has another qemu-img in the PATH.
func (h *host) hostileEnvironment(environment *[]string) {
	dir := h.t.TempDir()
	proof := filepath.Join(dir, "proof")
	for _, program := range []string{"qemu-img", "virsh", "qemu-system-x86_64", "sh"} {
		h.must(os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\necho $0 >>"+proof+"\nexit 1\n"), 0o700))
	}
	*environment = []string{
		"PATH=" + dir,
		"HOME=" + dir,
		"XDG_CONFIG_HOME=" + dir,
		"LIBVIRT_DEFAULT_URI=qemu:///session",
		"LIBVIRT_AUTH_FILE=" + proof,
	}
	h.restart()
	h.take("web1", api.TakeRequest{})
	h.restore("web1")
	h.bring("web1", "shut off")
	h.delete("web1")
	h.clean("web1")
	if text, err := os.ReadFile(proof); err == nil {
		h.t.Errorf("the daemon ran %s", text)
	}
}
