package daemon_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// outrunMerge begins a delete whose merge the guest outruns.
func outrunMerge(w *world, id string) vps.Operation {
	w.t.Helper()
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	w.host.OutrunMerges()
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	return op
}

// warnings are the texts of the VPS's warnings.
func warnings(w *world, id string) (texts []string) {
	w.t.Helper()
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id, Kind: vps.MessageWarning})
	w.must(err)
	for _, m := range page.Messages {
		texts = append(texts, m.Text)
	}
	return texts
}

// TestMergeThatIsOutrunIsTold: without help it is reported, once, and goes on;
// the guest is left alone. It ends when the guest no longer outruns it.
func TestMergeThatIsOutrunIsTold(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Merge = merge.Policy{Limit: 2, Bandwidth: mib, StalledAfter: time.Millisecond, LongestStop: time.Second}
	})
	id := w.vps("web1", hypervisor.Running)
	op := outrunMerge(w, id)
	w.eventually("the operation says why it does not end", func() bool {
		now, err := w.daemon.Operations.Operation(ctx, op.ID)
		return err == nil && strings.Contains(now.Progress.Note, "writes as fast")
	})
	now, err := w.daemon.Operations.WaitOperation(ctx, op.ID, 2*time.Second)
	w.must(err)
	if now.Status != vps.StatusRunning || now.Step != "merge" {
		t.Errorf("the operation is %s at %s", now.Status, now.Step)
	}
	if said := warnings(w, id); len(said) != 1 || !strings.Contains(said[0], "takes longer") ||
		strings.Contains(said[0], "stopped") {
		t.Errorf("the journal says %q", said)
	}
	if speed, err := w.host.MergeSpeed(id, "vda"); err != nil || speed != mib {
		t.Errorf("the merge's limit is %d, %v", speed, err)
	}
	if got := w.state(id); got != hypervisor.Running {
		t.Errorf("the guest is %s", got)
	}
	w.must(w.host.FinishMerge(id, "vda"))
	w.done(op, nil)
	w.sees(id, "vda", 0, 'b')
	w.clean(id)
}

// stops measures for how long a guest is suspended at a time.
type stops struct {
	mu    sync.Mutex
	since time.Time
	took  []time.Duration
}

func (s *stops) watch(_ context.Context, point, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case point == "Suspend.after":
		s.since = time.Now()
	case point == "Resume.before" && !s.since.IsZero():
		s.took, s.since = append(s.took, time.Since(s.since)), time.Time{}
	}
	return nil
}

// TestMergeThatIsOutrunIsHelped: the limit is lifted, and then the guest is
// stopped for moments until the merge has caught up; the last one is the pivot's.
func TestMergeThatIsOutrunIsHelped(t *testing.T) {
	const longest = 200 * time.Millisecond
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Merge = merge.Policy{
			Limit:        2,
			Bandwidth:    mib,
			StalledAfter: time.Millisecond,
			Help:         true,
			LongestStop:  longest,
		}
	})
	id := w.vps("web1", hypervisor.Running)
	w.host.MergeReadyAfter(40) // looks while it stands still: more than one stop has time for
	var s stops
	var limit int64 = -1
	w.host.SetHook(func(ctx context.Context, point, subject string) error {
		if point == "Suspend.before" && limit < 0 {
			limit, _ = w.host.MergeSpeed(id, "vda")
		}
		return s.watch(ctx, point, subject)
	})
	op := w.done(outrunMerge(w, id), nil)
	if limit != 0 {
		t.Errorf("the guest was stopped while the merge had a limit of %d", limit)
	}
	if len(s.took) < 2 || !s.since.IsZero() {
		t.Errorf("the guest was stopped for %v", s.took)
	}
	for _, took := range s.took {
		if took > longest+2*time.Second { // for a busy machine
			t.Errorf("the guest stood still for %v", took)
		}
	}
	if said := warnings(w, id); len(said) != 1 || !strings.Contains(said[0], "stopped for moments of at most 200ms") {
		t.Errorf("the journal says %q", said)
	}
	if got := w.state(id); got != hypervisor.Running {
		t.Errorf("after %s the guest is %s", op.Kind, got)
	}
	w.sees(id, "vda", 0, 'b')
	w.clean(id)
}

// TestMergeWithoutStops: longest_stop 0 lifts the limit, and no more.
func TestMergeWithoutStops(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Merge = merge.Policy{Limit: 2, Bandwidth: mib, StalledAfter: time.Millisecond, Help: true}
	})
	id := w.vps("web1", hypervisor.Running)
	op := outrunMerge(w, id)
	w.eventually("the limit is lifted", func() bool {
		speed, err := w.host.MergeSpeed(id, "vda")
		return err == nil && speed == 0
	})
	op, err := w.daemon.Operations.WaitOperation(ctx, op.ID, time.Second)
	w.must(err)
	if op.Status != vps.StatusRunning || w.state(id) != hypervisor.Running {
		t.Errorf("the operation is %s, the guest %s", op.Status, w.state(id))
	}
	w.must(w.host.FinishMerge(id, "vda"))
	w.done(op, nil)
}

// TestStoppedDaemonLetsGo: a daemon that is told to end while it has stopped a
// guest to help a merge lets it run, and the next one goes on.
func TestStoppedDaemonLetsGo(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Merge = merge.Policy{Limit: 2, StalledAfter: time.Millisecond, Help: true, LongestStop: 10 * time.Second}
	})
	id := w.vps("web1", hypervisor.Running)
	w.host.MergeReadyAfter(10000)
	op := outrunMerge(w, id)
	w.eventually("the guest is stopped", func() bool { return w.state(id) == hypervisor.Paused })
	w.close()
	host, err := fake.Open(w.hostDir)
	w.must(err)
	dom, err := host.Domain(ctx, id)
	w.must(err)
	if dom.State != hypervisor.Running {
		t.Errorf("the guest is %s", dom.State)
	}
	w.must(host.FinishMerge(id, "vda"))
	w.must(host.Close())
	w.open()
	w.done(op, nil)
	w.sees(id, "vda", 0, 'b')
	w.clean(id)
}
