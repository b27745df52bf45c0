package site_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// host is a site with the checks that its tests share.
type host struct {
	*site.Site
	t *testing.T
}

func newHost(t *testing.T, config string) *host {
	t.Helper()
	return openHost(t, site.Options{Config: config})
}

func openHost(t *testing.T, o site.Options) *host {
	t.Helper()
	if o.BinDir == "" {
		o.BinDir = binDir
	}
	s, err := site.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{s, t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.DaemonLog())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) virsh(args ...string) string {
	h.t.Helper()
	out, err := h.Lab.Virsh(h.t.Context(), args...)
	h.must(err)
	return out
}

// define makes a VPS, brings it into a state ("running", "paused", "shut off")
// and activates its option.
func (h *host) define(s lab.Spec, state string) string {
	h.t.Helper()
	id, err := h.Lab.DefineDomain(h.t.Context(), s)
	h.must(err)
	if state != "shut off" {
		h.virsh("start", s.Name)
	}
	if state == "paused" {
		h.virsh("suspend", s.Name)
	}
	h.eventually("the daemon knows "+s.Name, func() bool {
		_, err := h.Client.VPS(h.t.Context(), s.Name)
		return err == nil
	})
	_, err = h.Client.PutOption(h.t.Context(), s.Name, api.OptionOrder{State: "active", OrderRef: "order-1"})
	h.must(err)
	return id
}

// done waits for an operation and fails unless it succeeds.
func (h *host) done(op api.Operation, err error) api.Operation {
	h.t.Helper()
	h.must(err)
	op, err = h.Client.WaitOperation(h.t.Context(), op.ID, 2*time.Minute)
	h.must(err)
	if op.Status != "succeeded" {
		h.t.Fatalf("%s of %s ended as %s: %+v", op.Kind, op.VPSName, op.Status, op.Error)
	}
	return op
}

func (h *host) take(name string, r api.TakeRequest) api.Operation {
	h.t.Helper()
	return h.done(h.Client.Take(h.t.Context(), name, r))
}

func (h *host) restore(name string) api.Operation {
	h.t.Helper()
	s, err := h.Client.Snapshot(h.t.Context(), name)
	h.must(err)
	return h.done(h.Client.Restore(h.t.Context(), name, api.RestoreRequest{Confirm: s.ID}))
}

func (h *host) delete(name string) api.Operation {
	h.t.Helper()
	return h.done(h.Client.Delete(h.t.Context(), name))
}

func (h *host) state(name string) string {
	h.t.Helper()
	s, err := h.Lab.State(h.t.Context(), name)
	h.must(err)
	return s
}

func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	h.t.Fatal("not within 20 s: " + what)
}

// clean fails if anything of a snapshot is left.
func (h *host) clean(name string) {
	h.t.Helper()
	files, err := h.OurFiles()
	h.must(err)
	if len(files) > 0 {
		h.t.Errorf("files left: %v", files)
	}
	for _, text := range []string{h.virsh("dumpxml", name), h.virsh("dumpxml", "--inactive", name)} {
		if strings.Contains(text, "vpssnap") {
			h.t.Errorf("the definition still speaks of a snapshot:\n%s", text)
		}
	}
}

// TestLife is the main job on guests without an OS, in every state, with one disk
// and with three of both formats, byte for byte.
func TestLife(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	for _, state := range []string{"running", "paused", "shut off"} {
		for _, n := range []int{1, 3} {
			name := fmt.Sprintf("%s%d", strings.ReplaceAll(state, " ", ""), n)
			t.Run(name, func(t *testing.T) { (&host{h.Site, t}).life(name, state, n) })
		}
	}
}

func (h *host) life(name, state string, n int) {
	ctx := h.t.Context()
	spec := lab.Spec{Name: name}
	var targets []string
	for i := range n {
		target := fmt.Sprintf("vd%c", 'a'+i)
		targets = append(targets, target)
		spec.Disks = append(
			spec.Disks, lab.DiskSpec{Target: target, Format: []string{"qcow2", "raw"}[i%2], SizeBytes: 16 << 20},
		)
	}
	h.define(spec, state)
	write := func(offset int64, pattern byte) {
		for _, target := range targets {
			h.must(h.Lab.WriteDisk(ctx, name, target, offset, pattern, 1<<20))
		}
	}
	hashes := func() []string {
		var all []string
		for _, target := range targets {
			sum, err := h.Lab.HashDisk(ctx, name, target)
			h.must(err)
			all = append(all, sum)
		}
		return all
	}
	equal := func(what string, want []string) {
		h.t.Helper()
		if got := hashes(); !slices.Equal(got, want) {
			h.t.Errorf("%s: disks hash to %v, want %v", what, got, want)
		}
		if got := h.state(name); got != state {
			h.t.Errorf("%s: the VPS is %s, it was %s", what, got, state)
		}
	}
	write(0, 'a')
	first := hashes()
	h.take(name, api.TakeRequest{})
	equal("after take", first)
	write(1<<20, 'b')
	second := hashes()
	h.restore(name)
	equal("after restore", first)
	h.done(h.Client.UndoRestore(ctx, name))
	equal("after undo", second)
	h.take(name, api.TakeRequest{Replace: true})
	equal("after replace", second)
	write(2<<20, 'c')
	h.restore(name)
	equal("after restore of the replaced", second)
	write(3<<20, 'd')
	third := hashes()
	h.delete(name)
	equal("after delete", third)
	h.clean(name)
}

// TestRealGuest takes and restores a snapshot of a guest that boots, through its agent.
func TestRealGuest(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h.define(
		lab.Spec{
			Name:  "web1",
			OS:    true,
			Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 256 << 20, Ext4: true}},
		},
		"running",
	)
	h.must(h.Lab.WaitAgent(ctx, "web1"))
	h.must(h.Lab.GuestWriteFile(ctx, "web1", "/mnt/vda/kept", []byte("before the upgrade")))
	op := h.take("web1", api.TakeRequest{})
	s, err := h.Client.Snapshot(ctx, "web1")
	h.must(err)
	if s.Consistency != "filesystem" || s.FreezeMS == 0 {
		t.Errorf("consistency %s, frozen %d ms (%v)", s.Consistency, s.FreezeMS, op.Result)
	}
	h.must(h.Lab.GuestWriteFile(ctx, "web1", "/mnt/vda/later", []byte("after")))
	_, code, err := h.Lab.GuestExec(ctx, "web1", "/bin/busybox", "rm", "/mnt/vda/kept")
	h.must(err)
	if code != 0 {
		t.Fatalf("the guest cannot remove its file: exit %d", code)
	}
	op = h.restore("web1")
	if !strings.Contains(op.Result, "answers again") {
		t.Errorf("result of the restore: %v", op.Result)
	}
	h.guestHas("web1", "/mnt/vda/kept", "before the upgrade")
	if _, err := h.Lab.GuestReadFile(ctx, "web1", "/mnt/vda/later"); err == nil {
		t.Error("the file written after the snapshot is still there")
	}
	h.delete("web1")
	h.guestHas("web1", "/mnt/vda/kept", "before the upgrade")
	h.clean("web1")
}

func (h *host) guestHas(name, path, want string) {
	h.t.Helper()
	got, err := h.Lab.GuestReadFile(h.t.Context(), name, path)
	if err != nil || string(got) != want {
		h.t.Errorf("%s in the guest holds %q (%v), want %q", path, got, err, want)
	}
}
