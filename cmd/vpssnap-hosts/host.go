package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// endsWithin is how long an operation may take to end by itself.
const endsWithin = 3 * time.Minute

// host is a machine with VPSes and, once it is installed, our package.
type host struct {
	*machine
	lab      *lab.Lab
	client   *client.Client
	packages [2]string
	vpses    []*vps
}

// slowHook makes what takes milliseconds take seconds where a file of that name is
// in /run: libvirt waits for its hooks, also when a VPS has stopped.
const slowHook = `#!/bin/sh
[ "$2" != stopped ] || [ ! -e /run/slow ] || sleep 4
`

const slowHookFile = "etc/libvirt/hooks/qemu.d/slow"

// guestsConfig keeps a shutdown short: a VPS without an OS hears of none.
const guestsConfig = "ON_BOOT=ignore\nON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=10\nPARALLEL_SHUTDOWN=4\n"

func newHost(ctx context.Context, work, suite, tree string, packages [2]string) (*host, error) {
	share := filepath.Join(work, suite+"-vps")
	m, err := newMachine(filepath.Join(work, suite), tree, share)
	if err != nil {
		return nil, err
	}
	h := &host{machine: m}
	if err := h.prepare(ctx, packages); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// prepare boots the host and two VPSes on it: one with an OS and a guest agent,
// and one that only holds two disks.
func (h *host) prepare(ctx context.Context, packages [2]string) (err error) {
	for i, file := range packages {
		h.packages[i] = filepath.Join(h.share, filepath.Base(file))
		if err := copyFile(h.packages[i], file); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{slowHookFile: slowHook, "etc/default/libvirt-guests": guestsConfig, "etc/hostname": "kvm1\n"} {
		if err := writeFile(filepath.Join(h.root(), name), text); err != nil {
			return err
		}
	}
	if h.lab, err = lab.On(filepath.Join(h.share, "run/libvirt/libvirt-sock"), h.share); err != nil {
		return err
	}
	if err := h.bringGuest(ctx); err != nil {
		return err
	}
	if h.client, err = client.Unix(filepath.Join(h.share, "run/vpssnapd/api.sock")); err != nil {
		return err
	}
	if err := h.boot(ctx); err != nil {
		return err
	}
	h.vpses = []*vps{
		{
			h:    h,
			spec: lab.Spec{Name: "web1", OS: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 256 << 20, Ext4: true}}},
		},
		{h: h, spec: lab.Spec{Name: "db1", Disks: []lab.DiskSpec{
			{Target: "vda", SizeBytes: diskSize}, {Target: "vdb", Format: "raw", SizeBytes: diskSize},
		}}},
	}
	for _, v := range h.vpses {
		if err := v.create(ctx); err != nil {
			return err
		}
	}
	return nil
}

// bringGuest copies the guest's kernel to where QEMU of another user finds it.
func (h *host) bringGuest(ctx context.Context) error {
	boot, err := lab.Build(ctx, "")
	if err != nil {
		return err
	}
	for _, file := range []string{boot.Kernel, boot.Initramfs} {
		to := filepath.Join(h.share, "guest", filepath.Base(filepath.Dir(file)), filepath.Base(file))
		if err := copyFile(to, file); err != nil {
			return err
		}
	}
	return nil
}

// boot boots the host and finds its /run, where the sockets are.
func (h *host) boot(ctx context.Context) error {
	if err := h.machine.boot(ctx); err != nil {
		return err
	}
	return h.findRun()
}

func (h *host) reboot(ctx context.Context) error {
	if err := h.machine.reboot(ctx); err != nil {
		return err
	}
	return h.findRun()
}

// die is the end of every process of the host at once.
func (h *host) die(ctx context.Context) error {
	if err := h.kill(); err != nil {
		return err
	}
	return h.boot(ctx)
}

func (h *host) findRun() error {
	first, err := h.first()
	if err != nil {
		return err
	}
	link := filepath.Join(h.share, "run")
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(fmt.Sprintf("/proc/%d/root/run", first), link)
}

// ready waits until the daemon answers and has recovered.
func (h *host) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := h.until(ctx, func() (bool, error) { return h.client.Ready(ctx) == nil, nil })
	if err != nil {
		return fmt.Errorf("the daemon does not answer: %w", err)
	}
	return nil
}

// journal is what the daemon said last.
func (h *host) journal(ctx context.Context) string {
	text, err := h.run(context.WithoutCancel(ctx), "journalctl", "--unit=vpssnapd", "--lines=60", "--no-pager")
	if err != nil {
		return err.Error()
	}
	return text
}

// ended waits until an operation has ended, by itself.
func (h *host) ended(ctx context.Context, op api.Operation) (api.Operation, error) {
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	op, err := h.client.Await(ctx, op, time.Second, nil)
	if err != nil {
		return op, fmt.Errorf("the %s of %s does not end: it is %s at %s: %w", op.Kind, op.VPSName, op.Status, op.Step, err)
	}
	return op, nil
}

// await expects an operation to end well, by itself.
func (h *host) await(ctx context.Context, op api.Operation) error {
	op, err := h.ended(ctx, op)
	switch {
	case err != nil || op.Status == api.OperationStatusSucceeded:
		return err
	case op.Error != nil:
		return fmt.Errorf("the %s of %s ended %s: %s (%s)", op.Kind, op.VPSName, op.Status, op.Error.Detail, op.Error.Remedy)
	}
	return fmt.Errorf("the %s of %s ended %s", op.Kind, op.VPSName, op.Status)
}

// configure replaces the configuration and has it read.
func (h *host) configure(ctx context.Context, text string) error {
	if err := writeFile(filepath.Join(h.root(), "etc/vpssnapd/config.toml"), text); err != nil {
		return err
	}
	if _, err := h.run(ctx, "systemctl", "restart", "vpssnapd"); err != nil {
		return err
	}
	return h.ready(ctx)
}

// refused expects a program of the host to fail with these words.
func (h *host) refused(ctx context.Context, words string, args ...string) error {
	printed, err := h.run(ctx, args...)
	switch {
	case err == nil:
		return fmt.Errorf("%s was not refused: %s", strings.Join(args, " "), printed)
	case !strings.Contains(err.Error(), words):
		return fmt.Errorf("it is not said that %q: %w", words, err)
	}
	return nil
}

// writeFile replaces a file of the host.
func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if strings.HasPrefix(text, "#!") {
		mode = 0o755
	}
	return os.WriteFile(path, []byte(text), mode)
}

// copyFile brings a file into the host's tree.
func copyFile(to, from string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, string(text))
}
