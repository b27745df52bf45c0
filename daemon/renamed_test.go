package daemon_test

import (
	"slices"
	"testing"

	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestDiskWithAnotherName (FAULTS.md row 38): a disk is known by its image. A panel defines
// the VPS with other names for its disks, on the bases or on the overlays, off or on: the
// record notes the names, the definition is put right, a start is refused until then, and
// restore, undo and delete do to each image what they would have done.
func TestDiskWithAnotherName(t *testing.T) {
	for name, names := range map[string]map[string]string{
		"another bus":       {"vda": "hda", "vdb": "vdb"},
		"all others":        {"vda": "sda", "vdb": "sdb"},
		"swapped":           {"vda": "vdb", "vdb": "vda"},
		"another's old one": {"vda": "vdc", "vdb": "vda"},
	} {
		for _, where := range []string{"base", "overlay"} {
			for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running} {
				t.Run(name+" on the "+where+" "+string(state), func(t *testing.T) { rename(t, names, where == "base", state) })
			}
		}
	}
}

func rename(t *testing.T, names map[string]string, onBase bool, state hypervisor.State) {
	w := newWorld(t, nil)
	id := w.vps("web1", state, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib}, hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib})
	w.write(id, "vda", 0, 'a')
	w.write(id, "vdb", 0, 'b')
	w.take(id, vps.TakeRequest{})
	was := map[string]vps.SnapshotDisk{}
	for _, disk := range w.snapshot(id).Disks {
		was[disk.Target] = disk
	}
	w.write(id, "vda", 0, 'c')
	w.write(id, "vdb", 0, 'd')
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	w.must(w.host.RedefineWith(id, renamed(dom.PersistentDisks, names, was, onBase)))

	var bases []string
	for _, disk := range was {
		bases = append(bases, disk.Base)
	}
	w.refuses(vps.CodeVPSChanged, hook.BeforeStart(ctx, w.stateDir, id, "web1", bases))
	w.eventually("the definition names the overlays", func() bool {
		dom, err := w.host.Domain(ctx, id)
		w.must(err)
		for old, disk := range was {
			if next, ok := dom.NextDisk(names[old]); !ok || next.Path != disk.Overlay {
				return false
			}
		}
		return true
	})
	if state == hypervisor.Running {
		w.must(w.host.PowerOff(ctx, id))
		w.must(w.host.Start(ctx, id, false))
	}
	w.eventually("the record has the names", func() bool {
		return !slices.ContainsFunc(w.snapshot(id).Disks, func(disk vps.SnapshotDisk) bool {
			for old, had := range was {
				if had.Overlay == disk.Overlay {
					return disk.Target != names[old]
				}
			}
			return true
		})
	})
	w.sees(id, names["vda"], 0, 'c')
	w.sees(id, names["vdb"], 0, 'd')
	w.restore(id)
	w.sees(id, names["vda"], 0, 'a')
	w.sees(id, names["vdb"], 0, 'b')
	w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
	w.sees(id, names["vda"], 0, 'c')
	w.sees(id, names["vdb"], 0, 'd')
	w.take(id, vps.TakeRequest{Replace: true})
	w.delete(id)
	w.sees(id, names["vda"], 0, 'c')
	w.sees(id, names["vdb"], 0, 'd')
	w.clean(id)
}

// renamed gives disks other names, and the images of before the snapshot where that is asked for.
func renamed(
	disks []hypervisor.Disk, names map[string]string, was map[string]vps.SnapshotDisk, onBase bool,
) []hypervisor.Disk {
	disks = slices.Clone(disks)
	for i := range disks {
		disk := was[disks[i].Target]
		disks[i].Target = names[disks[i].Target]
		if onBase {
			disks[i].Path, disks[i].Format, disks[i].Chain, disks[i].ChainKnown = disk.Base, disk.BaseFormat, nil, false
		}
	}
	return disks
}
