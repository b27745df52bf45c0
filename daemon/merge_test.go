package daemon_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestMergeIsWatchedCalmly: while a merge copies, which may take hours, libvirt
// is asked now and then and not as fast as it answers.
func TestMergeIsWatchedCalmly(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.host.MergeReadyAfter(fake.Never)
	var asked atomic.Int32
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if strings.HasPrefix(point, "MergeJob.before") {
			asked.Add(1)
		}
		return nil
	})
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	w.eventually("the merge runs", func() bool { return asked.Load() > 1 })
	before := asked.Load()
	op, err = w.daemon.Operations.WaitOperation(ctx, op.ID, 2*time.Second)
	w.must(err)
	if n := asked.Load() - before; n > 10 {
		t.Errorf("libvirt was asked %d times in 2 s", n)
	}
	w.must(w.host.FinishMerge(id, "vda"))
	w.done(op, nil)
}

// unclosedHost says of one image that nobody closed it.
type unclosedHost struct {
	hypervisor.Host
	path atomic.Pointer[string]
}

func (h *unclosedHost) Inspect(ctx context.Context, path, format string) (hypervisor.Image, error) {
	img, err := h.Host.Inspect(ctx, path, format)
	unclosed := h.path.Load()
	img.Dirty = unclosed != nil && *unclosed == path
	return img, err
}

// TestNoLiveMergeIntoAnUnclosedBase: QEMU died in a merge into an image with lazy
// refcounts. A running VPS must not write to it; with the VPS off it is repaired.
func TestNoLiveMergeIntoAnUnclosedBase(t *testing.T) {
	host := &unclosedHost{}
	w := newWorld(t, func(c *daemon.Config) {
		host.Host = c.Host
		c.Host = host
	})
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	base := w.snapshot(id).Disks[0].Base
	host.path.Store(&base)
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusNeedsAttention {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	if job, err := w.host.MergeJob(ctx, id, "vda"); err != nil || job.Found {
		t.Fatalf("the base is merged into by the running VPS: %+v, %v", job, err)
	}
	w.must(w.host.PowerOff(ctx, id))
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.done(op, err)
	w.sees(id, "vda", 0, 'b')
}

// TestNoTakeOfAnUnclosedImage: behind the flag its counts are wrong, and below an
// overlay nobody would put them right. While the VPS is on, the flag is as it should be.
func TestNoTakeOfAnUnclosedImage(t *testing.T) {
	host := &unclosedHost{}
	w := newWorld(t, func(c *daemon.Config) {
		host.Host = c.Host
		c.Host = host
	})
	id := w.vps("web1", hypervisor.Off)
	image := w.domain(id).PersistentDisks[0].Path
	host.path.Store(&image)
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeUnsupportedDisk, err)
	var refusal *vps.Error
	if !errors.As(err, &refusal) || !strings.Contains(refusal.Remedy, "start the VPS") {
		t.Errorf("the remedy is %+v", refusal)
	}
	w.must(w.host.Start(ctx, id, false))
	w.take(id, vps.TakeRequest{})
}

// TestFullProgressIsNoEnd: libvirt says that all is copied before it says that
// the merge is ready (FAULTS row 16). Until it does, the guest is left in peace.
func TestFullProgressIsNoEnd(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	const ready = 5 // the first answer says that there is no merge, the fourth that all is copied
	w.host.MergeReadyAfter(3)
	var answers atomic.Int32
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		switch n := answers.Load(); {
		case point == "MergeJob.after":
			answers.Add(1)
		case (point == "Suspend.before" || point == "Pivot.before") && n < ready:
			t.Errorf("%s after %d answers", point, n)
		}
		return nil
	})
	w.delete(id)
	if answers.Load() < ready {
		t.Errorf("the merge was asked for %d times", answers.Load())
	}
	w.sees(id, "vda", 0, 'b')
	w.clean(id)
}
