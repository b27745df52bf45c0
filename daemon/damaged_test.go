package daemon_test

import (
	"slices"
	"strings"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestDamagedRow: a row that was changed by another hand is neither served nor acted on,
// and told by name with its remedy; the other VPS goes on; and the remedy gives a snapshot
// that restores byte for byte.
func TestDamagedRow(t *testing.T) {
	for column, change := range map[string]string{
		"snapshot.description": `UPDATE snapshot SET description = 'fept' WHERE vps = '%s'`,
		"snapshot.vps":         `UPDATE snapshot SET vps = 'another' WHERE vps = '%s'`,
		"snapshot_disk.base":   `UPDATE snapshot_disk SET base = '/elsewhere' WHERE snapshot = (SELECT id FROM snapshot WHERE vps = '%s')`,
		"snapshot_disk":        `DELETE FROM snapshot_disk WHERE snapshot = (SELECT id FROM snapshot WHERE vps = '%s')`,
	} {
		t.Run(column, func(t *testing.T) {
			w := newWorld(t, nil)
			id, other := w.vps("web1", hypervisor.Running), w.vps("web2", hypervisor.Running)
			for _, one := range []string{id, other} {
				w.activate(one)
				w.write(one, "vda", 0, 'a')
				w.take(one, vps.TakeRequest{Description: "kept"})
				w.write(one, "vda", 0, 'b')
			}
			snap := w.snapshot(id)
			damage(change)(w, id)

			_, err := w.daemon.Snapshots.Snapshot(ctx, id)
			w.refuses(vps.CodeVPSChanged, err)
			_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: snap.ID}, operator)
			w.refuses(vps.CodeVPSChanged, err)
			_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			w.refuses(vps.CodeVPSChanged, err)
			if told := vps.Readable(err); !strings.Contains(told.Detail, "web1") || !strings.Contains(told.Remedy, "--repair") {
				t.Errorf("told is %+v", told)
			}
			w.restore(other)
			w.sees(other, "vda", 0, 'a')
			named := func(findings []vps.Finding) bool {
				return slices.ContainsFunc(findings, func(f vps.Finding) bool {
					return f.Code == vps.CheckRecordDamaged && f.VPS == id && f.Snapshot == snap.ID && len(f.Remedies) > 0
				})
			}
			if found := mustCheck(w); !named(found) {
				t.Errorf("found is %+v", found)
			}
			report, err := w.daemon.Doctor.Repair(ctx, operator)
			w.must(err)
			if named(report.Findings) {
				t.Errorf("after the repair: %+v, %+v", report.Repairs, report.Findings)
			}
			if again := w.snapshot(id); again.ID != snap.ID || again.Description != "kept" || again.State != vps.SnapshotAvailable {
				t.Errorf("recorded is %+v", again)
			}
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
			w.delete(id)
		})
	}
}
