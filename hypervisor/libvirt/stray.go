package libvirt

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// libvirt opens the overlays of a switch in QEMU, has QEMU switch, and then writes down
// what it has done. If it dies before that, it believes afterwards that the guest uses the
// bases. QEMU has the overlays open all the same, in use or not, under names that libvirt
// is about to give out again. A libvirt that dies when it aborts a merge which is ready
// believes afterwards that it had pivoted, or that the merge goes on.

// takeBackPrefix is what our own jobs are called by in QEMU; libvirt leaves them alone.
const takeBackPrefix = "vpssnap-take-back-"

// TakeBackSwitch takes back a switch of which libvirt knows nothing.
func (h *Host) TakeBackSwitch(
	ctx context.Context, id string, disks []hypervisor.DiskSwitch, pivot bool,
) (hypervisor.Job, error) {
	job, err := on(ctx, h, ordinary, id, func(d *libvirt.Domain) (hypervisor.Job, error) {
		if active, err := d.IsActive(); err != nil || !active {
			return hypervisor.Job{}, orOff(err)
		}
		live, err := readDefinition(d, 0)
		if err != nil {
			return hypervisor.Job{}, err
		}
		return takeBack(d, live, disks, pivot)
	})
	if err != nil {
		return hypervisor.Job{}, fmt.Errorf("cannot take back the switch of domain %s: %w", id, err)
	}
	return job, nil
}

// takeBack does what can be done now for each disk, once all are seen to be as expected.
func takeBack(
	d *libvirt.Domain, live *definition, disks []hypervisor.DiskSwitch, pivot bool,
) (all hypervisor.Job, err error) {
	g, err := readGraph(d)
	if err != nil {
		return all, err
	}
	var stray []strayDisk
	for _, s := range disks {
		disk, err := findStray(live, g, s)
		if err != nil {
			return all, err
		}
		stray = append(stray, disk)
	}
	all.Ready = true
	for _, disk := range stray {
		job, err := disk.takeBack(d, g, pivot)
		if err != nil {
			return hypervisor.Job{}, fmt.Errorf("disk %s: %w", disk.target, err)
		}
		if !job.Found {
			continue
		}
		all.Found, all.Ready = true, all.Ready && job.Ready
		all.Done, all.Total = all.Done+job.Done, all.Total+job.Total
	}
	all.Ready = all.Ready && all.Found
	return all, nil
}

// strayDisk is one disk of such a switch: through which nodes QEMU has the base and the
// overlay open. A node is "" when there is none.
type strayDisk struct {
	target          string
	base            string
	format, storage string // of the overlay
	inUse           bool   // the guest writes to the overlay
}

// findStray holds what QEMU does against what the switch would have left behind.
func findStray(live *definition, g graph, s hypervisor.DiskSwitch) (strayDisk, error) {
	e := live.disk(s.Target)
	if e == nil {
		return strayDisk{}, fmt.Errorf("%w: %s", hypervisor.ErrNotFound, s.Target)
	}
	unexpected := func(what string) (strayDisk, error) {
		return strayDisk{}, fmt.Errorf("%w: disk %s: %s", hypervisor.ErrReplaced, s.Target, what)
	}
	base := filePath(e)
	if mirror := e.SelectElement("mirror"); mirror != nil {
		base = filePath(mirror) // of a merge that libvirt believes in, and QEMU knows nothing of
	}
	if base == s.Overlay {
		return unexpected("libvirt knows of its overlay")
	}
	disk := strayDisk{target: s.Target}
	disk.format, disk.storage = g.open(s.Overlay)
	disk.base, _ = g.open(base)
	used := g.uses(attr(e, "alias", "name"))
	disk.inUse = disk.format != "" && used == disk.format
	if !disk.inUse && (disk.base == "" || used != disk.base) {
		return unexpected(fmt.Sprintf("QEMU uses %q for it", used))
	}
	for _, job := range g.jobs {
		if !strings.HasPrefix(job.ID, takeBackPrefix) {
			return unexpected("QEMU does the job " + job.ID)
		}
	}
	return disk, nil
}

// takeBack does the next thing for one disk: it has the overlay merged into the base, has
// the guest use the base, or closes the overlay.
func (s strayDisk) takeBack(d *libvirt.Domain, g graph, pivot bool) (hypervisor.Job, error) {
	name := takeBackPrefix + s.target
	job, found := g.job(name)
	switch {
	case !s.inUse:
		return hypervisor.Job{}, s.close(d)
	case !found:
		return hypervisor.Job{Found: true}, ask(d, "block-commit", map[string]any{
			"job-id": name, "device": s.format, "base-node": s.base,
		}, nil)
	case job.ready() && pivot:
		if err := ask(d, "job-complete", map[string]any{"id": name}, nil); err != nil {
			return hypervisor.Job{}, err
		}
	}
	return hypervisor.Job{Found: true, Ready: job.ready(), Done: job.Done, Total: job.Total}, nil
}

// close has QEMU close an overlay that no disk uses; it refuses where one does.
func (s strayDisk) close(d *libvirt.Domain) error {
	for _, node := range slices.Compact([]string{s.format, s.storage}) {
		if node == "" {
			continue
		}
		if err := ask(d, "blockdev-del", map[string]any{"node-name": node}, nil); err != nil {
			return err
		}
	}
	return nil
}
