package site_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
)

// splitHost is a host whose libvirtd and QEMU die at the first pivot, after meanwhile.
type splitHost struct {
	hypervisor.Host
	meanwhile func() error
	first     sync.Once
}

func (s *splitHost) Pivot(ctx context.Context, id, target string) (err error) {
	s.first.Do(func() { err = s.meanwhile() })
	return errors.Join(err, s.Host.Pivot(ctx, id, target))
}

// monitor is QEMU's own, which libvirtd gives up when it dies.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

func openMonitor(l *lab.Lab) (*monitor, error) {
	sockets, err := filepath.Glob(filepath.Join(l.Dir(), "var/lib/libvirt/qemu/domain-*/monitor.sock"))
	if err != nil || len(sockets) != 1 {
		return nil, fmt.Errorf("monitors: %v, %w", sockets, err)
	}
	conn, err := net.Dial("unix", sockets[0])
	if err != nil {
		return nil, err
	}
	m := &monitor{conn, json.NewDecoder(conn)}
	_, err = m.do("qmp_capabilities", nil)
	return m, err
}

func (m *monitor) do(command string, arguments map[string]any) (json.RawMessage, error) {
	if arguments == nil {
		arguments = map[string]any{}
	}
	err := json.NewEncoder(m.conn).Encode(map[string]any{"execute": command, "arguments": arguments})
	for err == nil {
		var said struct {
			Return, Error json.RawMessage
		}
		if err = m.in.Decode(&said); err == nil && said.Error != nil {
			err = fmt.Errorf("QEMU refuses %s: %s", command, said.Error)
		}
		if err != nil || said.Return != nil {
			return said.Return, err
		}
	}
	return nil, err
}

// pivot ends the merge, as libvirtd was about to, and returns when it has ended.
func (m *monitor) pivot() error {
	for asked := false; ; time.Sleep(5 * time.Millisecond) {
		var jobs []struct{ ID, Status string }
		answer, err := m.do("query-jobs", nil)
		if err == nil {
			err = json.Unmarshal(answer, &jobs)
		}
		if err != nil || len(jobs) != 1 {
			return fmt.Errorf("jobs: %s, %w", answer, err)
		}
		if jobs[0].Status == "concluded" {
			return nil
		}
		if asked {
			continue
		}
		if _, err := m.do("job-complete", map[string]any{"id": jobs[0].ID}); err != nil {
			return err
		}
		asked = true
	}
}

// runAndWrite lets the guest run, and writes as if it had.
func (m *monitor) runAndWrite(command string) error {
	var blocks []struct {
		QDev string `json:"qdev"`
	}
	answer, err := m.do("query-block", nil)
	if err == nil {
		err = json.Unmarshal(answer, &blocks)
	}
	if err != nil || len(blocks) == 0 {
		return fmt.Errorf("no disk in %s: %w", answer, err)
	}
	if _, err := m.do("cont", nil); err != nil {
		return err
	}
	for _, c := range []string{command, "flush"} {
		if _, err := m.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io -d %s %q", blocks[0].QDev, c)}); err != nil {
			return err
		}
	}
	return nil
}

// TestLibvirtDiesInThePivot kills libvirtd when a pivot is asked for, and QEMU after
// it: what libvirt has written down then is the overlay, whatever QEMU did. An
// operator is asked only where the guest wrote to the base meanwhile.
func TestLibvirtDiesInThePivot(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		pivots, wrote bool
		want          vps.Status
	}{
		{"nothing had happened", false, false, vps.StatusSucceeded},
		{"QEMU had pivoted", true, false, vps.StatusSucceeded},
		{"QEMU had pivoted, and the guest wrote", true, true, vps.StatusNeedsAttention},
	} {
		t.Run(c.name, func(t *testing.T) { libvirtDiesInThePivot(t, c.pivots, c.wrote, c.want) })
	}
}

func libvirtDiesInThePivot(t *testing.T, pivots, wrote bool, want vps.Status) {
	ctx := t.Context()
	l, err := lab.Start(ctx, lab.Options{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	t.Cleanup(func() { must(l.Close()) })
	id, err := l.DefineDomain(ctx, lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}})
	must(err)
	_, err = l.Virsh(ctx, "start", "web1")
	must(err)

	images, err := qemuimg.New()
	must(err)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	real, err := libvirt.Open(
		ctx, libvirt.Config{URI: l.URI(), ConfigDir: filepath.Join(l.ConfigDir(), "qemu"), Images: images, Logger: log},
	)
	must(err)
	host := &splitHost{Host: real, meanwhile: func() error {
		if err := l.KillLibvirtd(); err != nil {
			return err
		}
		m, err := openMonitor(l)
		if err == nil && pivots {
			err = m.pivot()
		}
		if err == nil && wrote {
			err = m.runAndWrite("write -P 122 1M 64k")
		}
		return errors.Join(err, l.KillQEMU("web1"), l.StartLibvirtd(ctx))
	}}
	d, err := daemon.Open(ctx, daemon.Config{Host: host, StateDir: t.TempDir(), Version: "test", Logger: log,
		Settings: daemon.Settings{
			Offer:    vps.Offer{ID: "snapshot"},
			Guest:    guest.Policy{FreezeLimit: 10 * time.Second},
			Snapshot: snapshot.Policy{AgentWait: time.Minute},
			Merge:    merge.Policy{Limit: 1},
		}})
	must(err)
	t.Cleanup(func() { must(errors.Join(d.Close(), real.Close())) })
	operator := vps.Actor{Name: "test", Way: vps.WayOperator}
	ended := func(op vps.Operation, err error) vps.Operation {
		t.Helper()
		must(err)
		op, err = d.Operations.WaitOperation(ctx, op.ID, time.Minute)
		must(err)
		return op
	}
	_, err = d.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
	must(err)
	must(l.WriteDisk(ctx, "web1", "vda", 0, 'a', 8<<20))
	if op := ended(d.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)); op.Status != vps.StatusSucceeded {
		t.Fatalf("the take is %s: %+v", op.Status, op.Error)
	}
	must(l.WriteDisk(ctx, "web1", "vda", 1<<20, 'b', 1<<20))
	snap, err := d.Snapshots.Snapshot(ctx, id)
	must(err)
	op := ended(d.Snapshots.Delete(ctx, id, operator))
	if op.Status != want {
		t.Fatalf("the delete is %s: %+v", op.Status, op.Error)
	}
	written := byte('b')
	if wrote {
		written = 'z'
		base := snap.Disks[0]
		must(real.PointDisks(ctx, id, []hypervisor.DiskSource{{Target: "vda", Path: base.Base, Format: base.BaseFormat}}))
		if op := ended(d.Operations.ResumeOperation(ctx, op.ID, operator)); op.Status != vps.StatusSucceeded {
			t.Fatalf("the delete is %s then: %+v", op.Status, op.Error)
		}
	}
	must(l.CheckDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	must(l.CheckDisk(ctx, "web1", "vda", 1<<20, written, 64<<10))
	must(l.CheckDisk(ctx, "web1", "vda", 1<<20+64<<10, 'b', 1<<20-64<<10))
}
