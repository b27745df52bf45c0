package site_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// TestNoSpace has the file system of the images full: under the overlay of a
// guest that writes (FAULTS row 25), and under the base of a merge, with the VPS
// on and off (FAULTS row 26).
func TestNoSpace(t *testing.T) {
	t.Parallel()
	images := newVolume(t, "tmpfs", t.TempDir(), 512)
	h := openHost(t, site.Options{Lab: lab.Options{ImageDir: images.dir}, Config: "[snapshot]\nheadroom = \"64 MiB\"\n"})
	for _, state := range []string{"running", "shut off"} {
		t.Run("merge "+state, func(t *testing.T) { (&host{h.Site, t}).mergeWithoutSpace(images, state) })
	}
	t.Run("overlay", func(t *testing.T) { (&host{h.Site, t}).overlayWithoutSpace(images) })
}

// mergeWithoutSpace: the base is sparse, and there is no room for what the merge
// would write to it.
func (h *host) mergeWithoutSpace(images *volume, state string) {
	const much = 64 << 20
	ctx, name := h.t.Context(), strings.ReplaceAll(state, " ", "")
	h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", Format: "raw", SizeBytes: much}}}, state)
	h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'a', 1<<20))
	h.take(name, api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'b', much))
	s, err := h.Client.Snapshot(ctx, name)
	h.must(err)
	images.fill(8 << 20)
	h.failed(api.CodeInsufficientSpace)(h.Client.Delete(ctx, name))
	if got := h.state(name); got != state {
		h.t.Errorf("the VPS is %s, it was %s", got, state)
	}
	h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', much))
	// The base no longer is the snapshot.
	h.refused(api.CodeVPSChanged, "")(h.Client.Restore(ctx, name, api.RestoreRequest{Confirm: s.ID}))
	h.failed(api.CodeInsufficientSpace)(h.Client.Delete(ctx, name))
	images.empty()
	h.delete(name)
	h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', much))
	h.clean(name)
	h.remove(name)
}

// overlayWithoutSpace: it is told before, takes are refused, QEMU stops the
// guest, and when there is space the guest runs on and has lost nothing.
func (h *host) overlayWithoutSpace(images *volume) {
	const name, pieces = "web1", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cat /bin/busybox; done" // 2 MB each
	h.boot(name)
	ctx, cancel := context.WithTimeout(h.t.Context(), bootWithin)
	defer cancel()
	h.define(lab.Spec{Name: "web2", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	h.take(name, api.TakeRequest{})
	images.fill(10 << 20)
	h.refused(api.CodeInsufficientSpace, "are required")(h.Client.Take(ctx, "web2", api.TakeRequest{}))
	h.restart() // which looks at the space at once
	h.eventually("it is told", func() bool { return h.says("", "Space is critical") })
	if m := h.metrics(); !strings.Contains(m, `vpssnap_storage_alarm{path="`+images.dir+`"} 2`) {
		h.t.Errorf("the metrics raise no alarm:\n%s", m)
	}

	h.must(h.Lab.GuestStart(ctx, name, "sh", "-c", pieces+" >/mnt/vda/big; sync; echo whole >/mnt/vda/done"))
	h.must(h.Lab.WaitState(ctx, name, "paused"))
	if got := h.virsh("domstate", "--reason", name); !strings.Contains(got, "I/O error") {
		h.t.Errorf("the VPS is %s", got)
	}
	images.empty()
	h.restart()
	h.must(h.Lab.WaitState(ctx, name, "running"))
	h.eventually("the journal says so", func() bool { return h.says(name, "there is space again, and it runs on") })
	h.must(h.Lab.WaitAgent(ctx, name))
	h.eventually("the guest has written it all", func() bool {
		text, err := h.Lab.GuestReadFile(ctx, name, "/mnt/vda/done")
		return err == nil && string(text) == "whole\n"
	})
	out, code, err := h.Lab.GuestExec(ctx, name, "sh", "-c", pieces+" | cmp - /mnt/vda/big")
	if h.must(err); code != 0 {
		h.t.Errorf("the guest does not read what it has written: %s", out)
	}
	h.delete(name)
	h.guestHas(name, "/mnt/vda/done", "whole\n")
	h.clean(name)
}

// metrics is what Prometheus would read.
func (h *host) metrics() string {
	h.t.Helper()
	socket := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Socket())
	}}}
	defer socket.CloseIdleConnections()
	r, err := socket.Get("http://vpssnapd/metrics")
	h.must(err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	h.must(err)
	return string(text)
}

// restart ends the daemon in order and starts it again.
func (h *host) restart() {
	h.t.Helper()
	h.must(h.StopDaemon())
	h.must(h.StartDaemon(h.t.Context()))
}

// says tells whether the journal of a VPS, "" for that of the host, has that text.
func (h *host) says(name, text string) bool {
	h.t.Helper()
	list, err := h.Client.Messages(h.t.Context(), name, api.ListMessagesParams{})
	h.must(err)
	for _, m := range list.Messages {
		if strings.Contains(m.Text, text) {
			return true
		}
	}
	return false
}

// TestStateFileSystem fills the file system of the database (FAULTS row 27), and
// then has it fail (FAULTS row 28).
func TestStateFileSystem(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.must(h.StopDaemon())
	state := newVolume(t, "ext4", h.StateDir(), 16)
	t.Cleanup(func() { _ = h.KillDaemon() }) // before the volume goes
	h.must(h.StartDaemon(ctx))
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 64 << 20}}}, "running")
	before := h.look("web1")

	state.fill(0)
	h.refused(api.CodeInsufficientSpace, "state directory is full")(h.Client.Take(ctx, "web1", api.TakeRequest{}))
	h.same("after a take that could not be recorded", "web1", before)
	h.clean("web1")
	state.empty()
	h.take("web1", api.TakeRequest{})

	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 64<<20))
	op, err := h.Client.Delete(ctx, "web1")
	h.must(err)
	h.holdDaemon()
	state.fill(0)
	h.letDaemonGo()
	h.eventually("it cannot be recorded", func() bool { return strings.Contains(h.DaemonLog(), "state directory is full") })
	if got := h.state("web1"); got != "running" {
		t.Errorf("with the record full the VPS is %s", got)
	}
	state.empty()
	h.done(op, nil)
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 64<<20))
	h.same("after delete", "web1", before)
	h.clean("web1")
	h.take("web1", api.TakeRequest{})

	state.abort()
	h.refused(api.CodeInternal, "")(h.Client.Delete(ctx, "web1"))
	h.refused(api.CodeInternal, "")(h.Client.Delete(ctx, "web1"))
	if err := h.Client.Ready(ctx); err == nil {
		t.Error("a daemon that records nothing says that it is ready")
	}
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 64<<20))
	h.must(h.StopDaemon())
	state.reboot()
	h.must(h.StartDaemon(ctx))
	h.well()
	h.restore("web1")
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 64<<20))
	h.delete("web1")
	h.same("after delete", "web1", before)
	h.clean("web1")
}

// TestFileSystemAborts has the one file system with images, definitions and
// record fail under a merge (FAULTS row 24). Nothing more is accepted. What was not
// yet in the file system's journal is lost, as in a power cut (FAULTS row 23), and
// when the host has come up again every disk is whole.
func TestFileSystemAborts(t *testing.T) {
	t.Parallel()
	disk := newVolume(t, "ext4", t.TempDir(), 256)
	place := site.Options{Config: "[snapshot]\nheadroom = \"1 MiB\"\n", StateDir: filepath.Join(disk.dir, "state"),
		Lab: lab.Options{ImageDir: filepath.Join(disk.dir, "images"), ConfigDir: filepath.Join(disk.dir, "libvirt")}}
	h := openHost(t, place)
	ctx := t.Context()
	const much = 64 << 20
	for _, name := range []string{"web1", "web2"} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: much}}}, "running")
	}
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', much))
	op, err := h.Client.Delete(ctx, "web1")
	h.must(err)
	h.holdDaemon()
	disk.abort()
	h.letDaemonGo()
	if _, err := h.Client.Take(ctx, "web2", api.TakeRequest{}); err == nil {
		t.Error("a take was accepted")
	}
	h.eventually("it is not ready", func() bool { return h.Client.Ready(ctx) != nil })
	if op, err := h.Client.Operation(ctx, op.ID); err == nil && op.Status == "succeeded" {
		t.Error("the delete says that it succeeded")
	}
	h.must(h.KillDaemon())
	h.must(h.Close())
	disk.reboot()

	h = openHost(t, place)
	h.reconnected()
	op = h.ended(op)
	t.Logf("%s: %s, %s", op.Kind, op.Status, op.Result)
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', much))
	if h.has("web1") {
		h.delete("web1")
	}
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', much))
	h.clean("web1")
	h.virsh("start", "web1")
	h.take("web2", api.TakeRequest{})
}
