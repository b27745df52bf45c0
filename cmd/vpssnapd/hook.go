package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/libvirt"
)

// hookLimit bounds how long a VPS's start may wait for us. libvirt waits for its hooks
// without a limit of its own.
const hookLimit = 10 * time.Second

// maxDomainXML is more than any definition is long.
const maxDomainXML = 16 << 20

// hookDomain is what the hook reads of the definition that is about to start.
type hookDomain struct {
	UUID  string `xml:"uuid"`
	Name  string `xml:"name"`
	Disks []struct {
		Source struct {
			File string `xml:"file,attr"`
		} `xml:"source"`
	} `xml:"devices>disk"`
}

// runHook is libvirt's qemu hook (packaging/libvirt-hook calls it): the operation
// and its phase come as arguments, the definition on standard input. Exit 1
// refuses the start, and libvirt shows what we say to whoever asked for it.
func runHook(c config, args []string, stdin io.Reader) error {
	// libvirt calls the hook for every phase; only this one can still refuse.
	if len(args) < 3 || args[1] != "prepare" || args[2] != "begin" {
		return nil
	}
	var d hookDomain
	// It runs as root, on text that a customer's panel may have written.
	if err := xml.NewDecoder(io.LimitReader(stdin, maxDomainXML)).Decode(&d); err != nil {
		return fmt.Errorf("the definition of %s cannot be read: %w", args[0], err)
	}
	// Not all storage has locks that keep a second QEMU from its images (FAULTS.md row 44).
	if pid := libvirt.QEMUOf(d.UUID); pid != 0 {
		return fmt.Errorf("refusing to start: %s runs, and libvirt has lost track of its QEMU (process %d). "+
			"What to do is told by vpssnap doctor", d.Name, pid)
	}
	var images []string
	for _, disk := range d.Disks {
		if disk.Source.File != "" {
			images = append(images, disk.Source.File)
		}
	}
	// It never calls libvirt: libvirt waits for us, so that would deadlock.
	ctx, cancel := context.WithTimeout(context.Background(), hookLimit)
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- hook.BeforeStart(ctx, c.StateDir, d.UUID, d.Name, images) }()
	var err error
	select {
	case err = <-asked:
	case <-ctx.Done(): // the record is on a mount that hangs, perhaps: nothing of it ends by ctx
		err = fmt.Errorf("the record in %s does not answer within %s", c.StateDir, hookLimit)
	}
	if refusal, ok := errors.AsType[*vps.Error](err); ok &&
		(refusal.Code == vps.CodeVPSChanged || refusal.Code == vps.CodeOperationInProgress) {
		return fmt.Errorf("refusing to start: %s. %s", refusal.Detail, refusal.Remedy)
	}
	if err != nil {
		// A record that cannot be read must not keep every VPS of the host down.
		fmt.Fprintf(os.Stderr, "vpssnapd: %s starts unchecked: %v\n", d.Name, err)
	}
	return nil
}
