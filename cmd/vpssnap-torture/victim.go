package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vpssnapd/hypervisor/lab"
)

// victim is one VPS and what must be true of it.
type victim struct {
	name, id string
	targets  []string
	bases    map[string]image
	state    string // as virsh says it: running, paused, shut off
	console  console
	// beginnings is what lies before the first slot of each disk.
	beginnings map[string][]byte
	// now is what its disks hold; nil for a running VPS, of which the console tells that.
	now moment
	// snapshot and undo are nil while there is none.
	snapshot, undo moment
	undoUntil      time.Time
	orders         int // options that were ordered so far
}

// running reports whether the guest writes by itself.
func (v *victim) running() bool { return v.state == "running" }

// populate makes the VPSes: each state, one to three disks, both formats.
func (c *campaign) populate(ctx context.Context) error {
	for i, state := range []string{"running", "running", "running", "paused", "shut off"} {
		v := &victim{name: fmt.Sprintf("vps%d", i), state: state, bases: map[string]image{}, beginnings: map[string][]byte{}}
		spec := lab.Spec{Name: v.name, Recorder: true}
		for j := range 1 + i%3 {
			target, format := fmt.Sprintf("vd%c", 'a'+j), []string{"qcow2", "raw"}[(i+j)%2]
			path := filepath.Join(c.site.Lab.ImageDir(), v.name+"-"+target+"."+format)
			v.targets = append(v.targets, target)
			v.bases[target] = image{path, format}
			spec.Disks = append(
				spec.Disks, lab.DiskSpec{Target: target, Format: format, Path: path, SizeBytes: lab.RecorderDisk},
			)
		}
		var err error
		if v.id, err = c.site.Lab.DefineDomain(ctx, spec); err != nil {
			return err
		}
		v.console.path = c.site.Lab.ConsoleFile(v.name)
		if err := c.settleIn(ctx, v); err != nil {
			return err
		}
		c.victims = append(c.victims, v)
	}
	return c.layDecoys()
}

// settleIn notes how a new VPS begins, starts it and orders its option.
func (c *campaign) settleIn(ctx context.Context, v *victim) error {
	for target, image := range v.bases {
		data, err := c.site.Lab.ReadImage(ctx, image.path, image.format)
		if err != nil {
			return err
		}
		v.beginnings[target] = data[:lab.SlotSize]
	}
	var err error
	if !v.running() {
		if v.now, err = c.momentOf(ctx, v, v.bases, 0, 0); err != nil {
			return err
		}
	}
	if err := c.bring(ctx, v); err != nil {
		return err
	}
	return c.activate(ctx, v)
}

// bring starts a VPS that is off, as its state says.
func (c *campaign) bring(ctx context.Context, v *victim) error {
	args := map[string][]string{"running": {"start", v.name}, "paused": {"start", v.name, "--paused"}}[v.state]
	if args == nil {
		return nil
	}
	_, err := c.site.Lab.Virsh(ctx, args...)
	return err
}

// stir lets the guest write a little: one that is paused is let run for a
// moment, and for one that is off the campaign itself writes.
func (c *campaign) stir(ctx context.Context, v *victim) error {
	switch v.state {
	case "running":
		return v.advances()
	case "paused":
		return c.letRun(ctx, v)
	}
	images, err := c.present(ctx, v)
	if err != nil {
		return err
	}
	n := v.now[v.targets[0]].found + 1
	for _, target := range v.targets {
		if err := c.site.Lab.Record(ctx, images[target].path, images[target].format, n); err != nil {
			return err
		}
	}
	v.now, err = c.momentOf(ctx, v, images, n, n)
	return err
}

// aliveWithin is how long a guest may take to boot and write, on a busy machine.
const aliveWithin = 30 * time.Second

// advances returns when the guest has written more.
func (v *victim) advances() error {
	if err := v.console.read(); err != nil {
		return err
	}
	was := v.console.acked
	return v.console.wait(aliveWithin, func() bool { return v.console.acked > was })
}

// letRun resumes a paused VPS until it has written, and notes what it has.
func (c *campaign) letRun(ctx context.Context, v *victim) error {
	v.console.boots = nil
	if _, err := c.site.Lab.Virsh(ctx, "resume", v.name); err != nil {
		return err
	}
	if err := v.advances(); err != nil {
		return err
	}
	if _, err := c.site.Lab.Virsh(ctx, "suspend", v.name); err != nil {
		return err
	}
	if err := v.console.read(); err != nil {
		return err
	}
	for _, b := range v.console.boots {
		if found := v.now[v.targets[0]].found; b.found != found {
			return fmt.Errorf("%s booted with record %d, its disk had %d", v.name, b.found, found)
		}
	}
	images, err := c.present(ctx, v)
	if err != nil {
		return err
	}
	v.now, err = c.momentOf(ctx, v, images, v.console.acked, v.console.acked+1)
	return err
}

// present is what a VPS's disks are by its persistent definition.
func (c *campaign) present(ctx context.Context, v *victim) (map[string]image, error) {
	d, err := c.site.Lab.Definition(ctx, v.name)
	return imagesOf(d.Inactive), err
}

func imagesOf(disks []lab.DiskUse) map[string]image {
	images := map[string]image{}
	for _, d := range disks {
		images[d.Target] = image{d.Path, d.Format}
	}
	return images
}

// decoys are files that look like ours, and are not: nobody may remove them.
var decoys = []string{
	"vps0-vda.qcow2.vpssnap-0123456789ab.vda.qcow2",
	"vps0-vda.qcow2.vpssnap-0123456789ab.vda.undo-op-0123456789abcdef0123.qcow2",
	"vps1-vda.raw.vpssnap-fedcba987654.vda.qcow2",
	"vps1-vda.raw.vpssnap-.vda.qcow2",
	"vps2-vdb.raw.vpssnap-0123456789ab.vdb.qcow2.bak",
	"vps4-vda.qcow2.vpssnap-0123456789ab.nvram",
}

func (c *campaign) layDecoys() error {
	for _, name := range decoys {
		if err := os.WriteFile(filepath.Join(c.site.Lab.ImageDir(), name), []byte(name), 0o600); err != nil {
			return err
		}
	}
	return nil
}
