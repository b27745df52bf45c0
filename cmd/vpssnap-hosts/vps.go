package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

const (
	diskSize = 64 << 20
	// filled is how much of a disk is written between two looks at it.
	filled = 24 << 20
)

// vps is a VPS, and what must be on its disks: the content is one letter, written
// all over the beginning.
type vps struct {
	h    *host
	spec lab.Spec
	id   string
	// now is on the disks, taken in the snapshot, replaced by the last restore.
	now, taken, replaced byte
}

// create defines and starts the VPS, with its content in place.
func (v *vps) create(ctx context.Context) (err error) {
	if v.id, err = v.h.lab.DefineDomain(ctx, v.spec); err != nil {
		return err
	}
	if _, err := v.h.lab.Virsh(ctx, "autostart", v.spec.Name); err != nil {
		return err
	}
	if _, err := v.h.lab.Virsh(ctx, "start", v.spec.Name); err != nil {
		return err
	}
	return v.write(ctx, 'A')
}

// up waits until the VPS runs and, where there is one, its agent answers.
func (v *vps) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	if err := v.h.lab.WaitState(ctx, v.spec.Name, "running"); err != nil || !v.spec.OS {
		return err
	}
	return v.h.lab.WaitAgent(ctx, v.spec.Name)
}

// write fills the disks again, durably.
func (v *vps) write(ctx context.Context, letter byte) error {
	if err := v.up(ctx); err != nil {
		return err
	}
	v.now = letter
	if v.spec.OS {
		script := fmt.Sprintf(`dd if=/dev/zero bs=1M count=%d | tr '\0' %c >/mnt/vda/letters && sync`, filled>>20, letter)
		_, code, err := v.h.lab.GuestExec(ctx, v.spec.Name, "sh", "-c", script)
		if err == nil && code != 0 {
			err = fmt.Errorf("%s cannot write: exit code %d", v.spec.Name, code)
		}
		return err
	}
	for _, d := range v.spec.Disks {
		if err := v.h.lab.WriteDisk(ctx, v.spec.Name, d.Target, 0, letter, filled); err != nil {
			return err
		}
	}
	return nil
}

// whole expects every byte to be what it must be.
func (v *vps) whole(ctx context.Context) error {
	if err := v.up(ctx); err != nil {
		return err
	}
	if v.spec.OS {
		printed, _, err := v.h.lab.GuestExec(ctx, v.spec.Name, "sha256sum", "/mnt/vda/letters")
		if err != nil {
			return err
		}
		if got, _, _ := strings.Cut(printed, " "); got != sum(v.now, filled) {
			return fmt.Errorf("the file of %s is not of letters %c: its SHA-256 is %q", v.spec.Name, v.now, got)
		}
		return nil
	}
	for _, d := range v.spec.Disks {
		got, err := v.h.lab.HashDisk(ctx, v.spec.Name, d.Target)
		if err != nil {
			return err
		}
		if got != sum(v.now, diskSize) {
			return fmt.Errorf(
				"disk %s of %s does not begin with letters %c: its SHA-256 is %s", d.Target, v.spec.Name, v.now, got,
			)
		}
	}
	return nil
}

// sum is the SHA-256 of so many bytes, of which the first filled are that letter.
func sum(letter byte, size int) string {
	content := make([]byte, size)
	copy(content, bytes.Repeat([]byte{letter}, filled))
	hash := sha256.Sum256(content)
	return hex.EncodeToString(hash[:])
}

// act is one kind of operation: in which step it can be made slow, how it is asked
// for, and what it does to the content.
type act struct {
	name, step string
	command    []string // of web1
	method     []string // on the bus, with what is the same each time
	ask        func(ctx context.Context, v *vps) (api.Operation, error)
	becomes    func(v *vps)
}

var (
	take = act{
		name: "take", step: "switch",
		command: []string{"take", "web1"},
		method:  []string{"Take", "a{sv}", "0"},
		ask: func(ctx context.Context, v *vps) (api.Operation, error) {
			return v.h.client.Take(ctx, v.id, api.TakeRequest{})
		},
		becomes: func(v *vps) { v.taken = v.now },
	}
	restore = act{
		name: "restore", step: "stop",
		command: []string{"restore", "web1", "--yes"},
		method:  []string{"Restore"},
		ask: func(ctx context.Context, v *vps) (api.Operation, error) {
			snapshot, err := v.h.client.Snapshot(ctx, v.id)
			if err != nil {
				return api.Operation{}, err
			}
			return v.h.client.Restore(
				ctx, v.id, api.RestoreRequest{Confirm: snapshot.ID, PowerAfter: api.RestoreRequestPowerAfterRunning},
			)
		},
		becomes: func(v *vps) { v.now, v.replaced = v.taken, v.now },
	}
	undo = act{
		name: "undo", step: "stop",
		command: []string{"undo-restore", "web1", "--yes"},
		method:  []string{"UndoRestore"},
		ask: func(ctx context.Context, v *vps) (api.Operation, error) {
			return v.h.client.UndoRestore(ctx, v.id)
		},
		becomes: func(v *vps) { v.now = v.replaced },
	}
	replace = act{
		name: "replace", step: "old_merge",
		command: []string{"take", "web1", "--replace"},
		method:  []string{"Take", "a{sv}", "1", "replace", "b", "true"},
		ask: func(ctx context.Context, v *vps) (api.Operation, error) {
			return v.h.client.Take(ctx, v.id, api.TakeRequest{Replace: true})
		},
		becomes: func(v *vps) { v.taken = v.now },
	}
	remove = act{
		name: "delete", step: "merge",
		command: []string{"delete", "web1", "--yes"},
		method:  []string{"Delete"},
		ask: func(ctx context.Context, v *vps) (api.Operation, error) {
			return v.h.client.Delete(ctx, v.id)
		},
		becomes: func(v *vps) { v.taken = 0 },
	}
)

// slowFreeze makes the guest's next freezes take seconds. The guest forgets it
// when it boots.
func (v *vps) slowFreeze(ctx context.Context) error {
	if !v.spec.OS {
		return nil
	}
	return v.h.lab.GuestWriteFile(ctx, v.spec.Name, "/run/hook", []byte("[ \"$1\" != freeze ] || sleep 4\n"))
}
