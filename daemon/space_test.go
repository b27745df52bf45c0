package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestHeadroom (FAULTS row 25): a take is refused below the headroom, with the numbers.
func TestHeadroom(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Space.Headroom = 1 << 30 })
	id := w.vps("web1", hypervisor.Running)
	w.host.SetFree(1<<30 - 1)
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeInsufficientSpace, err)
	for _, number := range []string{"1073741823", "1073741824"} {
		if !strings.Contains(err.Error(), number) {
			t.Errorf("%v does not name %s", err, number)
		}
	}
	if left := w.files(); len(left) > 0 {
		t.Errorf("files made: %v", left)
	}
	w.host.SetFree(1 << 30)
	w.take(id, vps.TakeRequest{})
}

// TestStarvedGuestRunsOn (FAULTS row 25): a guest that stopped for lack of space runs on
// when there is some, one that stopped for another I/O error does not.
func TestStarvedGuestRunsOn(t *testing.T) {
	for reason, runs := range map[hypervisor.PauseReason]bool{
		hypervisor.PausedByNoSpace: true, hypervisor.PausedByIO: false, hypervisor.PausedByUser: false} {
		w := newWorld(t, func(c *daemon.Config) { c.Settings.Space.Headroom = 1 << 30 })
		id := w.vps("web1", hypervisor.Running)
		w.host.SetFree(0)
		w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.State, d.PauseReason = hypervisor.Paused, reason }))
		w.eventually("the pause is known", func() bool {
			v, err := w.daemon.Overview.ShowVPS(ctx, id)
			return err == nil && v.State == vps.StatePaused
		})
		w.daemon.LookAtSpace(ctx)
		if got := w.state(id); got != hypervisor.Paused {
			t.Errorf("%s: the guest is %s without any space", reason, got)
		}
		w.host.SetFree(1 << 30)
		w.daemon.LookAtSpace(ctx)
		if got := w.state(id) == hypervisor.Running; got != runs {
			t.Errorf("%s: running %v with space, want %v", reason, got, runs)
		}
	}
}

// TestSpaceIsTold: crossing a level writes one message, with the forecast.
func TestSpaceIsTold(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Space.Headroom = 1 << 30 })
	w.host.SetFree(100 << 30)
	start := w.now()
	w.setClock(start)
	w.vps("web1", hypervisor.Running)
	said := func() []string {
		page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{Kind: vps.MessageSpace})
		w.must(err)
		var texts []string
		for _, m := range page.Messages {
			texts = append(texts, m.Text)
		}
		return texts
	}
	w.daemon.LookAtSpace(ctx)
	if got := said(); len(got) != 0 {
		t.Fatalf("messages without need: %v", got)
	}
	w.setClock(start.Add(5 * 60e9))
	w.host.SetFree(90 << 30) // 10 GiB in 5 minutes: full in 45
	w.daemon.LookAtSpace(ctx)
	w.daemon.LookAtSpace(ctx)
	if got := said(); len(got) != 1 || !strings.Contains(got[0], "critical") || !strings.Contains(got[0], "full in 45m") {
		t.Fatalf("messages: %v", got)
	}
	w.setClock(start.Add(60 * 60e9))
	w.daemon.LookAtSpace(ctx)
	if got := said(); len(got) != 2 || !strings.Contains(got[0], "ok") {
		t.Fatalf("messages: %v", got)
	}
}

// TestRoomThatComesBack: the room of an overlay that was just removed comes back a
// little later. A take waits for it where it would be refused, and only there.
func TestRoomThatComesBack(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Space.Headroom = 1 << 30 })
	id := w.vps("web1", hypervisor.Off)
	comesBack, waits := int64(1<<30), 0
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "AwaitRoom.before" {
			waits++
			w.host.SetFree(comesBack)
		}
		return nil
	})
	w.host.SetFree(1<<30 - 1)
	w.take(id, vps.TakeRequest{})
	if waits != 1 {
		t.Errorf("it waited %d times", waits)
	}
	w.delete(id)
	w.take(id, vps.TakeRequest{})
	if waits != 1 {
		t.Errorf("it waited for room that there was, %d times", waits)
	}
	w.delete(id)
	comesBack = 1<<30 - 1
	w.host.SetFree(1 << 20)
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeInsufficientSpace, err)
}

// deadMount is a host on which nothing below one directory answers, as on NFS whose
// server is gone.
type deadMount struct {
	hypervisor.Host
	dir   string
	asked atomic.Int32 // how often its space was asked for
}

func (h *deadMount) dead(path string) error {
	if strings.HasPrefix(path, h.dir) {
		return fmt.Errorf("%s does not answer: %w", h.dir, hypervisor.ErrUnavailable)
	}
	return nil
}

func (h *deadMount) Space(ctx context.Context, dir string) (hypervisor.Space, error) {
	if err := h.dead(dir); err != nil {
		h.asked.Add(1)
		return hypervisor.Space{}, err
	}
	return h.Host.Space(ctx, dir)
}

func (h *deadMount) Files(ctx context.Context, dir string) ([]hypervisor.NamedFile, error) {
	if err := h.dead(dir); err != nil {
		return nil, err
	}
	return h.Host.Files(ctx, dir)
}

// TestDeadMountHidesNoOther (FAULTS row 46): one mount that does not answer is named, asked
// once however many disks lie there, and everything else is watched, shown and compared.
func TestDeadMountHidesNoOther(t *testing.T) {
	mount := &deadMount{dir: "/mnt/dead"}
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Space.Headroom = 1 << 30
		mount.Host, c.Host = c.Host, mount
	})
	w.host.SetFree(100 << 30)
	w.vps("web1", hypervisor.Running)
	for _, name := range []string{"web2", "web3"} {
		id := w.vps(name, hypervisor.Off)
		w.must(w.host.Edit(id, func(d *hypervisor.Domain) {
			d.PersistentDisks[0].Path = "/mnt/dead/" + name
		}))
		w.eventually("it lies on the dead mount", func() bool {
			v, err := w.daemon.Overview.ShowVPS(ctx, id)
			return err == nil && v.Disks[0].Path == "/mnt/dead/"+name
		})
	}
	before := mount.asked.Load()
	w.daemon.LookAtSpace(ctx)
	if n := mount.asked.Load() - before; n != 1 {
		t.Errorf("the dead mount was asked %d times", n)
	}
	w.host.SetFree(1 << 20)
	w.daemon.LookAtSpace(ctx)
	w.eventually(
		"the log tells of the other file system",
		func() bool { return strings.Contains(w.log.String(), "space.critical") },
	)
	if n := strings.Count(w.log.String(), `msg="space is not watched" directory=/mnt/dead`); n != 1 {
		t.Errorf("the log names the dead mount %d times", n)
	}
	h, err := w.daemon.Overview.Host(ctx)
	w.must(err)
	if len(h.Storage) != 1 || h.Storage[0].Path != w.host.ImageDir() {
		t.Errorf("the host shows %+v", h.Storage)
	}
	report, err := w.daemon.Doctor.Checks(ctx)
	w.must(err)
	named := slices.ContainsFunc(
		report.Findings, func(f vps.Finding) bool { return f.Code == vps.CheckUnreachable && f.Path == "/mnt/dead" },
	)
	if !named {
		t.Errorf("doctor finds %+v", report.Findings)
	}
}
