package fake_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

const (
	size  = 8 << 20
	block = 4096
)

// vps is a fake with one running domain that has been written to, in layers
// that the tests can name.
type vps struct {
	*testing.T
	*fake.Host
	ctx           context.Context
	dir, id       string
	base, overlay string
}

func newVPS(t *testing.T) *vps {
	t.Helper()
	v := &vps{T: t, ctx: t.Context(), dir: t.TempDir()}
	v.reopen()
	t.Cleanup(func() { must(t, v.Close()) })
	id, err := v.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: size})
	must(t, err)
	v.id = id
	must(t, v.Start(v.ctx, id, false))
	v.write(0, 1)
	v.base = v.domain().Disks[0].Path
	v.overlay = v.base + ".snap"
	return v
}

// reopen opens the host again, as a new daemon would.
func (v *vps) reopen() {
	v.Helper()
	if v.Host != nil {
		must(v, v.Close())
	}
	h, err := fake.Open(v.dir)
	must(v, err)
	v.Host = h
}

func (v *vps) domain() hypervisor.Domain {
	v.Helper()
	d, err := v.Domain(v.ctx, v.id)
	must(v, err)
	return d
}

func (v *vps) write(n int64, pattern byte) {
	v.Helper()
	must(v, v.Write(v.id, "vda", n*block, pattern, block))
}

// sees checks one block as the guest reads it.
func (v *vps) sees(n int64, want byte) {
	v.Helper()
	data, err := v.Read(v.id, "vda", n*block, block)
	must(v, err)
	if data[0] != want || data[block-1] != want {
		v.Fatalf("block %d reads as %d, want %d", n, data[0], want)
	}
}

// holds checks one block of an image.
func (v *vps) holds(path string, n int64, want byte) {
	v.Helper()
	data, err := v.ReadImage(path, "qcow2", n*block, block)
	must(v, err)
	if data[0] != want {
		v.Fatalf("block %d of %s is %d, want %d", n, filepath.Base(path), data[0], want)
	}
}

func (v *vps) want(err, want error) {
	v.Helper()
	if !errors.Is(err, want) {
		v.Fatalf("got error %v, want %v", err, want)
	}
}

func (v *vps) create() error {
	_, err := v.CreateOverlay(v.ctx, hypervisor.Overlay{Path: v.overlay, Base: v.base, BaseFormat: "qcow2", SizeBytes: size})
	return err
}

func (v *vps) switchDisk() error {
	return v.SwitchToOverlays(v.ctx, v.id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: v.overlay}})
}

// take takes a snapshot, and lets the guest write on.
func (v *vps) take() {
	v.Helper()
	must(v, v.create())
	must(v, v.switchDisk())
	v.write(0, 2)
	v.write(1, 2)
}

func (v *vps) merge() error {
	return v.StartMerge(v.ctx, v.id, hypervisor.Merge{Target: "vda", Top: v.overlay, Base: v.base, Active: true})
}

// names checks the images that the live and the persistent definition name.
func (v *vps) names(live, next string) {
	v.Helper()
	d := v.domain()
	if d.Disks[0].Path != live || d.PersistentDisks[0].Path != next {
		v.Fatalf("vda is %s, and %s after the next boot", d.Disks[0].Path, d.PersistentDisks[0].Path)
	}
}

func TestFailNextPreventsOrHides(t *testing.T) {
	v := newVPS(t)
	v.FailNext("Suspend.before", hypervisor.ErrUnavailable)
	v.FailNext("Suspend.after", hypervisor.ErrUnavailable)
	v.want(v.Suspend(v.ctx, v.id), hypervisor.ErrUnavailable)
	if s := v.domain().State; s != hypervisor.Running {
		t.Errorf("after a failure before the effect the VPS is %s", s)
	}
	v.want(v.Suspend(v.ctx, v.id), hypervisor.ErrUnavailable)
	if s := v.domain().State; s != hypervisor.Paused {
		t.Errorf("after a failure behind the effect the VPS is %s", s)
	}
	must(t, v.Suspend(v.ctx, v.id))
}

func TestHangEndsWithItsContext(t *testing.T) {
	v := newVPS(t)
	v.HangNext("Suspend.before")
	v.HangNext("Stat.before")
	ctx, cancel := context.WithTimeout(v.ctx, 10*time.Millisecond)
	defer cancel()
	err := v.Suspend(ctx, v.id)
	v.want(err, hypervisor.ErrUnavailable)
	v.want(err, context.DeadlineExceeded)
	ctx, cancel = context.WithTimeout(v.ctx, 10*time.Millisecond)
	defer cancel()
	_, err = v.Stat(ctx, v.base)
	v.want(err, context.DeadlineExceeded)
	must(t, v.Suspend(v.ctx, v.id))
}

func TestSwitchHalfDone(t *testing.T) {
	v := newVPS(t)
	must(t, v.create())
	v.FailNext("SwitchToOverlays.half", hypervisor.ErrUnavailable)
	v.want(v.switchDisk(), hypervisor.ErrUnavailable)
	v.names(v.overlay, v.base)
	v.write(0, 2)
	v.holds(v.base, 0, 1)
}

// The split brain of PROTOCOL's pivot: the guest has written to the base, the
// definition still names the stale overlay.
func TestPivotHalfDoneAndGuestDead(t *testing.T) {
	v := newVPS(t)
	v.take()
	must(t, v.merge())
	v.FailNext("Pivot.half", hypervisor.ErrUnavailable)
	v.want(v.Pivot(v.ctx, v.id, "vda"), hypervisor.ErrUnavailable)
	v.names(v.base, v.overlay)
	v.write(0, 3)
	v.sees(0, 3)
	v.holds(v.overlay, 0, 2)
	must(t, v.KillGuest(v.id))
	v.names(v.overlay, v.overlay)
}

func TestMergeWritesTheBaseAtOnce(t *testing.T) {
	v := newVPS(t)
	v.MergeReadyAfter(fake.Never)
	v.take()
	must(t, v.merge())
	v.want(v.Pivot(v.ctx, v.id, "vda"), hypervisor.ErrNotReady)
	v.holds(v.base, 0, 2)
	v.holds(v.base, 1, 0)
	v.want(v.Unused(v.ctx, v.base, "qcow2"), hypervisor.ErrBusy)
	must(t, v.KillGuest(v.id))
	must(t, v.Unused(v.ctx, v.base, "qcow2"))
	v.sees(0, 2)
	v.sees(1, 2)
}

func TestMergeFails(t *testing.T) {
	v := newVPS(t)
	v.MergeReadyAfter(fake.Never)
	v.take()
	must(t, v.merge())
	must(t, v.FailMerge(v.id, "vda"))
	if j, err := v.MergeJob(v.ctx, v.id, "vda"); err != nil || j.Found {
		t.Fatalf("a failed merge reads as %+v, %v", j, err)
	}
	v.sees(1, 2)
	must(t, v.merge())
	must(t, v.FinishMerge(v.id, "vda"))
	must(t, v.Pivot(v.ctx, v.id, "vda"))
	v.names(v.base, v.base)
	v.sees(1, 2)
}

func TestFullProgressIsNotReady(t *testing.T) {
	v := newVPS(t)
	v.MergeReadyAfter(2)
	v.take()
	must(t, v.merge())
	for _, want := range []hypervisor.Job{
		{Found: true, Done: block, Total: 2 * block},
		{Found: true, Done: 2 * block, Total: 2 * block},
		{Found: true, Done: 2 * block, Total: 2 * block, Ready: true},
	} {
		if j, err := v.MergeJob(v.ctx, v.id, "vda"); err != nil || j != want {
			t.Fatalf("the merge reads as %+v, %v, want %+v", j, err, want)
		}
	}
}

func TestForeignJob(t *testing.T) {
	v := newVPS(t)
	v.take()
	must(t, v.ForeignJob(v.id, "vda"))
	v.want(v.merge(), hypervisor.ErrBusy)
	if j, err := v.MergeJob(v.ctx, v.id, "vda"); err != nil || !j.Foreign || j.Ready {
		t.Fatalf("the job reads as %+v, %v", j, err)
	}
}

func TestOfflineMergeHalfDone(t *testing.T) {
	v := newVPS(t)
	v.take()
	must(t, v.PowerOff(v.ctx, v.id))
	m := hypervisor.OfflineMerge{Overlay: v.overlay, Base: v.base, BaseFormat: "qcow2"}
	died := errors.New("died")
	v.SetHook(func(ctx context.Context, point, subject string) error {
		if point != "MergeOffline.half" || subject != v.overlay {
			return nil
		}
		v.want(v.Start(ctx, v.id, false), hypervisor.ErrBusy)
		v.want(v.MergeOffline(ctx, m, nil), hypervisor.ErrBusy)
		v.want(v.Unused(ctx, v.base, "qcow2"), hypervisor.ErrBusy)
		return died
	})
	v.want(v.MergeOffline(v.ctx, m, nil), died)
	v.SetHook(nil)
	v.holds(v.base, 0, 2)
	v.holds(v.base, 1, 0)
	v.sees(1, 2)
	must(t, v.MergeOffline(v.ctx, m, nil))
	v.holds(v.base, 1, 2)
	must(t, v.Start(v.ctx, v.id, false))
}

func TestFilesHalfDone(t *testing.T) {
	v := newVPS(t)
	died := errors.New("died")
	v.FailNext("CreateOverlay.half", died)
	v.want(v.create(), died)
	if _, err := v.Inspect(v.ctx, v.overlay, "qcow2"); err == nil {
		t.Error("an empty file reads as an overlay")
	}
	if err := v.create(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an overlay over a leftover: %v", err)
	}
	v.FailNext("Copy.half", died)
	_, err := v.Copy(v.ctx, v.base, v.base+".copy")
	v.want(err, died)
	whole, err := v.Stat(v.ctx, v.base)
	must(t, err)
	if part, err := os.Stat(v.base + ".copy"); err != nil || part.Size() == 0 || part.Size() >= whole.Size {
		t.Errorf("half a copy has %d bytes, %v", part.Size(), err)
	}
}

func TestCutUser(t *testing.T) {
	v := newVPS(t)
	must(t, v.create())
	v.SetHook(func(_ context.Context, point, _ string) error {
		if point == "SwitchToOverlays.before" {
			v.Cut()
		}
		return nil
	})
	v.want(v.switchDisk(), hypervisor.ErrUnavailable)
	if err := v.Remove(v.ctx, v.overlay, 1); err == nil {
		t.Error("a dead daemon removed a file")
	}
	v.reopen()
	v.names(v.base, v.base)
	must(t, v.switchDisk())
}

func TestDisconnected(t *testing.T) {
	v := newVPS(t)
	v.Disconnect()
	v.want(v.Suspend(v.ctx, v.id), hypervisor.ErrUnavailable)
	v.want(v.Thaw(v.ctx, v.id, time.Second), hypervisor.ErrUnavailable)
	_, err := v.List(v.ctx)
	v.want(err, hypervisor.ErrUnavailable)
	_, err = v.Info(v.ctx)
	v.want(err, hypervisor.ErrUnavailable)
	_, err = v.Stat(v.ctx, v.base)
	must(t, err)
	v.write(1, 1)
	v.Connect()
	v.sees(1, 1)
	must(t, v.Suspend(v.ctx, v.id))
}

func TestSetFree(t *testing.T) {
	v := newVPS(t)
	v.SetFree(12345)
	if s, err := v.Space(v.ctx, v.ImageDir()); err != nil || s.Free != 12345 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestExchangeUnderAGuestIsFelt(t *testing.T) {
	v := newVPS(t)
	must(t, v.create())
	must(t, v.Exchange(v.ctx, v.base, v.overlay))
	if err := v.Write(v.id, "vda", 0, 9, block); err == nil {
		t.Error("the guest wrote to a file that it never opened")
	}
}

// TestTornFiles is what a kill in the middle of a write leaves.
func TestTornFiles(t *testing.T) {
	v := newVPS(t)
	for _, path := range []string{v.base, filepath.Join(v.dir, "domains", v.id+".json")} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = f.WriteString("\n{\"offset\":40")
		must(t, errors.Join(err, f.Close()))
	}
	v.sees(0, 1)
	v.write(1, 2)
	must(t, v.Suspend(v.ctx, v.id))
	v.reopen()
	v.sees(0, 1)
	v.sees(1, 2)
	if s := v.domain().State; s != hypervisor.Paused {
		t.Errorf("the VPS is %s", s)
	}
}

// TestKilledProcess is the daemon's crash in earnest: a process of its own is
// killed in the middle of a pivot, and the next one finds all of it.
func TestKilledProcess(t *testing.T) {
	const dirVariable, idVariable = "FAKE_TEST_DIR", "FAKE_TEST_ID"
	if dir := os.Getenv(dirVariable); dir != "" {
		v := &vps{T: t, ctx: t.Context(), dir: dir, id: os.Getenv(idVariable)}
		v.reopen()
		v.SetHook(func(_ context.Context, point, _ string) error {
			if point == "Pivot.half" {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return nil
		})
		must(t, v.Suspend(v.ctx, v.id))
		t.Fatalf("outlived the pivot: %v", v.Pivot(v.ctx, v.id, "vda"))
	}
	v := newVPS(t)
	v.take()
	must(t, v.merge())
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$")
	child.Env = append(os.Environ(), dirVariable+"="+v.dir, idVariable+"="+v.id)
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process was not killed: %v\n%s", err, out)
	}
	v.reopen()
	if s := v.domain().State; s != hypervisor.Paused {
		t.Errorf("the VPS is %s", s)
	}
	v.names(v.base, v.overlay)
	v.sees(1, 2)
}
