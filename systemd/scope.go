package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	// scopeWithin bounds how long a process waits for systemd. It works all the same.
	scopeWithin = 2 * time.Second
	// leastNice is what a process gets where systemd does not run.
	leastNice = 5
)

// Confine returns what gives a process little of the processors and of the disks when
// guests want them, too: a scope of its own with that weight, beside the guests' in
// machine.slice, because weights count among neighbours only. Where systemd does not
// run it is made nice.
func Confine(weight uint64, logger *slog.Logger) func(ctx context.Context, pid int) {
	return func(ctx context.Context, pid int) {
		err := intoScope(ctx, pid, weight)
		if err == nil {
			return
		}
		if e := unix.Setpriority(unix.PRIO_PROCESS, pid, leastNice); e != nil {
			logger.Warn("a merge takes as much of the host as it gets", "process", pid, "error", err, "nice", e)
		}
	}
}

func intoScope(ctx context.Context, pid int, weight uint64) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return err // systemd does not run: sd_booted(3)
	}
	ctx, cancel := context.WithTimeout(ctx, scopeWithin)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return err
	}
	defer conn.Close()
	return startScope(ctx, conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1"), pid, weight)
}

// property is one of a unit's, as StartTransientUnit takes them.
type property struct {
	Name  string
	Value dbus.Variant
}

func startScope(ctx context.Context, manager dbus.BusObject, pid int, weight uint64) error {
	properties := []property{
		{"Description", dbus.MakeVariant("vpssnapd: merge of a VPS that is off")},
		{"Slice", dbus.MakeVariant("machine.slice")},
		{"PIDs", dbus.MakeVariant([]uint32{uint32(pid)})}, //nolint:gosec // a process id
		{"CPUWeight", dbus.MakeVariant(weight)},
		{"IOWeight", dbus.MakeVariant(weight)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}
	auxiliary := []struct {
		Name       string
		Properties []property
	}{}
	name := fmt.Sprintf("vpssnapd-merge-%d.scope", pid)
	// "fail": a leftover scope of the same name would be another process's.
	return manager.CallWithContext(
		ctx, "org.freedesktop.systemd1.Manager.StartTransientUnit", 0, name, "fail", properties, auxiliary,
	).Err
}
