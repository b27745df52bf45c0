package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// scenes are the life of the package on a host, in order.
var scenes = []struct {
	name string
	play func(context.Context, *host) error
}{
	{"the package is installed, and a snapshot taken within a minute", install},
	{"the main job by command line, REST and D-Bus", mainJob},
	{"who may not is refused", refusals},
	{"a merge with its VPS off gives way", givesWay},
	{
		"the daemon is killed in the middle of everything",
		func(ctx context.Context, h *host) error { return round(ctx, h, killed) },
	},
	{
		"libvirt is restarted in the middle of everything",
		func(ctx context.Context, h *host) error { return round(ctx, h, libvirtRestarted) },
	},
	{
		"the daemon is stopped and started in the middle of everything",
		func(ctx context.Context, h *host) error { return round(ctx, h, stopped) },
	},
	{"the package is upgraded in the middle of everything, the database with it", upgradeRound},
	{"an older version is refused", downgrade},
	{
		"the host is rebooted in the middle of everything",
		func(ctx context.Context, h *host) error { return round(ctx, h, rebooted) },
	},
	{"the host dies in the middle of everything", func(ctx context.Context, h *host) error { return round(ctx, h, died) }},
	{"the package is removed and purged", purge},
}

// firstWithin is how long it may take from the package to the first snapshot.
const firstWithin = time.Minute

// install ends with the first snapshot: what a new operator does in the first minutes.
func install(ctx context.Context, h *host) error {
	start := time.Now()
	if _, err := h.run(ctx, "apt-get", "install", "-y", "-q", h.packages[0]); err != nil {
		return err
	}
	if err := h.ready(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"vpssnap", "option", "activate", "web1", "--order-ref", "A-1"},
		{"vpssnap", "take", "web1"},
	} {
		if _, err := h.run(ctx, args...); err != nil {
			return err
		}
	}
	took := time.Since(start)
	fmt.Printf("   first snapshot after %.1f s\n", took.Seconds())
	if took > firstWithin {
		return fmt.Errorf("the first snapshot took %s from the installation on", took)
	}
	if _, err := h.run(ctx, "systemctl", "is-enabled", "vpssnapd"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"vpssnap", "option", "activate", "db1", "--order-ref", "A-2"},
		{"vpssnap", "delete", "web1", "--yes"},
	} {
		if _, err := h.run(ctx, args...); err != nil {
			return err
		}
	}
	return h.whole(ctx)
}

// whole expects the disks of all VPSes to be as they must be, and the daemon to
// find nothing wrong.
func (h *host) whole(ctx context.Context) error {
	for _, v := range h.vpses {
		if err := v.whole(ctx); err != nil {
			return err
		}
	}
	if _, err := h.run(ctx, "vpssnap", "doctor"); err != nil {
		return err
	}
	return nil
}

// mainJob does every kind of operation in each way of asking for it.
func mainJob(ctx context.Context, h *host) error {
	if _, err := h.run(ctx, "busctl", "introspect", busName, h.vpses[0].object()); err != nil {
		return err
	}
	for i, way := range []func(context.Context, *vps, act) error{byCommand, byREST, onBus} {
		for j, a := range []act{take, restore, undo, replace, remove} {
			if err := h.vpses[0].job(ctx, a, way, byte('B'+2*i+j%2)); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
	}
	return h.whole(ctx)
}

// job does one operation, before which a restore or a replace finds other content.
func (v *vps) job(ctx context.Context, a act, way func(context.Context, *vps, act) error, letter byte) error {
	if a.name == restore.name || a.name == replace.name {
		if err := v.write(ctx, letter); err != nil {
			return err
		}
	}
	if err := way(ctx, v, a); err != nil {
		return err
	}
	a.becomes(v)
	return v.whole(ctx)
}

// byCommand is the command line, as root.
func byCommand(ctx context.Context, v *vps, a act) error {
	_, err := v.h.run(ctx, append([]string{"vpssnap"}, a.command...)...)
	return err
}

// byREST is the API with a token, as panels call it.
func byREST(ctx context.Context, v *vps, a act) error {
	op, err := a.ask(ctx, v)
	if err != nil {
		return err
	}
	return v.h.await(ctx, op)
}

const (
	busName = "org.vpssnapd1"
	busVPS  = "org.vpssnapd1.VPS"
)

// object is the VPS's path on the bus.
func (v *vps) object() string { return "/org/vpssnapd1/vps/" + strings.ReplaceAll(v.id, "-", "_") }

// onBus is D-Bus, as Cockpit calls it.
func onBus(ctx context.Context, v *vps, a act) error {
	call := append([]string{"busctl", "call", busName, v.object(), busVPS}, a.method...)
	if a.name == restore.name {
		snapshot, err := v.h.client.Snapshot(ctx, v.id)
		if err != nil {
			return err
		}
		call = append(call, "sa{sv}", snapshot.ID, "0")
	}
	printed, err := v.h.run(ctx, call...)
	if err != nil {
		return err
	}
	_, object, _ := strings.Cut(strings.TrimSpace(printed), "/operation/")
	op, err := v.h.client.Operation(ctx, strings.ReplaceAll(strings.Trim(object, `"`), "_", "-"))
	if err != nil {
		return err
	}
	return v.h.await(ctx, op)
}

// refusals tries what must not work on a host as it is shipped.
func refusals(ctx context.Context, h *host) error {
	as := []string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"}
	for _, r := range []struct {
		words string
		args  []string
	}{
		{"Access denied", append(as[:4:4], "busctl", "call", busName, h.vpses[0].object(), busVPS, "Take", "a{sv}", "0")},
		{"vpssnap", append(as[:4:4], "vpssnap", "list")},
		{"another vpssnapd", []string{"vpssnapd"}},
	} {
		if err := h.refused(ctx, r.words, r.args...); err != nil {
			return err
		}
	}
	return h.hookWorks(ctx)
}

// hookWorks: a VPS that is defined again with its base must not start on it. The
// daemon would put the definition right, so it is stopped meanwhile.
func (h *host) hookWorks(ctx context.Context) error {
	db := h.vpses[1]
	old, err := h.lab.Virsh(ctx, "dumpxml", "--inactive", "--security-info", db.spec.Name)
	if err != nil {
		return err
	}
	op, err := take.ask(ctx, db)
	if err != nil {
		return err
	}
	if err := h.await(ctx, op); err != nil {
		return err
	}
	if _, err := h.run(ctx, "systemctl", "stop", "vpssnapd.service"); err != nil {
		return err
	}
	if _, err := h.lab.Virsh(ctx, "destroy", db.spec.Name); err != nil {
		return err
	}
	if err := h.lab.DefineXML(ctx, old); err != nil {
		return err
	}
	if out, err := h.lab.Virsh(ctx, "start", db.spec.Name); err == nil || !strings.Contains(err.Error(), "frozen base") {
		return fmt.Errorf("the hook does not refuse a start on the base: %s (%w)", out, err)
	}
	if _, err := h.run(ctx, "systemctl", "start", "vpssnapd.service"); err != nil {
		return err
	}
	if err := h.ready(ctx); err != nil {
		return err
	}
	if err := h.until(ctx, func() (bool, error) {
		_, err := h.lab.Virsh(ctx, "start", db.spec.Name)
		if err != nil && !strings.Contains(err.Error(), "frozen base") {
			return false, err
		}
		return err == nil, nil
	}); err != nil {
		return err
	}
	if op, err = remove.ask(ctx, db); err != nil {
		return err
	}
	return errors.Join(h.await(ctx, op), h.whole(ctx))
}

// downgrade: the package refuses one, since the older daemon could not read the database,
// and the newer daemon runs on.
func downgrade(ctx context.Context, h *host) error {
	if err := h.refused(ctx, "Keep the newer version", "dpkg", "--install", h.packages[0]); err != nil {
		return err
	}
	if err := h.ready(ctx); err != nil {
		return err
	}
	printed, err := h.run(ctx, "dpkg-query", "--show", "--showformat=${Status} ${Version}", "vpssnapd")
	if err == nil && printed != "install ok installed 2.0-1" {
		err = fmt.Errorf("after the refusal dpkg says %q", printed)
	}
	return errors.Join(err, h.whole(ctx))
}

// purge removes the package, in both ways, with and without a snapshot.
func purge(ctx context.Context, h *host) error {
	web, db := h.vpses[0], h.vpses[1]
	op, err := take.ask(ctx, web)
	if err != nil {
		return err
	}
	if err := h.await(ctx, op); err != nil {
		return err
	}
	if _, err := h.run(ctx, "apt-get", "purge", "-y", "-q", "vpssnapd"); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(h.root(), "var/lib/vpssnapd/vpssnapd.db")); err != nil {
		return fmt.Errorf("the record of a snapshot must outlive a purge: %w", err)
	}
	// VPSes start and stop as if we had never been there.
	for _, verb := range []string{"destroy", "start"} {
		if _, err := h.lab.Virsh(ctx, verb, db.spec.Name); err != nil {
			return err
		}
	}
	for _, v := range h.vpses {
		if err := v.whole(ctx); err != nil {
			return err
		}
	}
	if _, err := h.run(ctx, "apt-get", "install", "-y", "-q", h.packages[1]); err != nil {
		return err
	}
	if err := h.ready(ctx); err != nil {
		return err
	}
	if op, err = remove.ask(ctx, web); err != nil {
		return err
	}
	if err := errors.Join(h.await(ctx, op), h.whole(ctx)); err != nil {
		return err
	}
	if _, err := h.run(ctx, "apt-get", "remove", "-y", "-q", "vpssnapd"); err != nil {
		return err
	}
	if _, err := h.lab.Virsh(ctx, "destroy", db.spec.Name); err != nil {
		return err
	}
	if _, err := h.lab.Virsh(ctx, "start", db.spec.Name); err != nil {
		return fmt.Errorf("without the daemon a VPS must start: %w", err)
	}
	if _, err := h.run(ctx, "apt-get", "purge", "-y", "-q", "vpssnapd"); err != nil {
		return err
	}
	return h.nothingLeft(ctx)
}

// leftBehind is what may remain of us, as the README says: dpkg, apt and systemd
// keep notes of their own.
var leftBehind = []string{"/var/log/", "/var/cache/", "/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/systemd/"}

// Files of customers are no leftovers: overlays stay with their VPSes.
func (h *host) nothingLeft(ctx context.Context) error {
	printed, err := h.run(
		ctx, "find", "/", "-xdev", "(", "-path", filepath.Dir(h.share), "-o", "-path", "/proc", "-o", "-path", "/sys",
		")", "-prune", "-o", "-iname", "*vpssnap*", "-print",
	)
	if err != nil {
		return err
	}
	var left []string
next:
	for line := range strings.Lines(printed) {
		for _, may := range leftBehind {
			if strings.HasPrefix(line, may) {
				continue next
			}
		}
		left = append(left, strings.TrimSpace(line))
	}
	files, err := filepath.Glob(filepath.Join(h.lab.ImageDir(), "*.vpssnap-*"))
	if left = append(left, files...); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind: %v", left))
	}
	for _, v := range h.vpses {
		err = errors.Join(err, v.whole(ctx))
	}
	return err
}
