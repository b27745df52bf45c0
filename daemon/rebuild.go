package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Rebuilt is what Rebuild did.
type Rebuilt struct {
	// Aside are the files of the damaged database, where they lie now.
	Aside     []string
	Snapshots []RebuiltSnapshot
	// Report is how the host compares with the new record.
	Report vps.Report
}

// RebuiltSnapshot is a snapshot that was found on the host, or why it could not be recorded.
type RebuiltSnapshot struct {
	VPSName  string
	Snapshot vps.Snapshot
	Recorded bool
	// Why says why it is not available, or not recorded.
	Why string
}

// rebuilder is who made a record that a rebuild has found.
var rebuilder = vps.Actor{Name: "vpssnapd rebuild", Way: vps.WayRecovery}

// Rebuild makes the database of a host anew from what the definitions and files
// of its VPSes say. A damaged one is put aside; one that is whole and not empty
// is refused, and so is a state directory on which a daemon works. Options cannot
// be found on the host: order systems have to order them again.
func Rebuild(ctx context.Context, c Config) (done Rebuilt, err error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	lock, err := lockState(c.StateDir)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	file := filepath.Join(c.StateDir, databaseFile)
	db, err := store.Open(ctx, file)
	damaged := errors.Is(err, store.ErrDamaged)
	if err != nil && !damaged {
		return done, err
	}
	if !damaged {
		if err := mustBeEmpty(ctx, db, c.StateDir); err != nil {
			return done, errors.Join(err, db.Close())
		}
	}
	// The host is read before anything is moved: without it there is nothing to gain.
	domains, err := readDomains(ctx, c.Host)
	if err == nil && damaged {
		if done.Aside, err = store.MoveAside(file, c.Now()); err == nil {
			db, err = store.Open(ctx, file)
		}
	}
	if err != nil {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
		return done, err
	}
	d, err := assemble(ctx, c, db, lock)
	if err != nil {
		return done, errors.Join(err, db.Close())
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer d.stop()
	if err := d.refill(ctx, domains, &done); err != nil {
		return done, err
	}
	return done, db.Accept(ctx)
}

// mustBeEmpty refuses a database that is whole and has something in it.
func mustBeEmpty(ctx context.Context, db *store.Store, dir string) error {
	empty, err := db.Empty(ctx)
	if err == nil && !empty {
		return fmt.Errorf("the database in %s is whole: there is nothing to rebuild. vpssnap doctor --repair records a single snapshot that it does not know", dir)
	}
	return err
}

// readDomains reads every VPS of the host.
func readDomains(ctx context.Context, host hypervisor.Host) ([]hypervisor.Domain, error) {
	listed, err := host.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot rebuild without libvirt: %w", err)
	}
	var domains []hypervisor.Domain
	for _, l := range listed {
		dom, err := host.Domain(ctx, l.ID)
		if errors.Is(err, hypervisor.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot rebuild: %w", err)
		}
		domains = append(domains, dom)
	}
	return domains, nil
}

// refill records every snapshot that the host tells of, all in one transaction.
func (d *Daemon) refill(ctx context.Context, domains []hypervisor.Domain, done *Rebuilt) error {
	found, claimed := map[string]reconstruction{}, map[string]string{}
	for _, dom := range domains {
		if !speaksOfSnapshot(dom) {
			continue
		}
		r := d.reconstruct(ctx, dom)
		recorded := r.exists && !r.hopeless
		if other := claimed[r.snap.ID]; recorded && other != "" {
			recorded, r.why = false, "the VPS "+other+" uses its files too"
		}
		if recorded {
			found[dom.ID], claimed[r.snap.ID] = r, dom.Name
		}
		done.Snapshots = append(done.Snapshots, RebuiltSnapshot{VPSName: dom.Name, Snapshot: r.snap, Recorded: recorded, Why: r.why})
	}
	err := d.store.Write(ctx, func(tx *store.Tx) error {
		for _, dom := range domains {
			if err := tx.SawVPS(ctx, store.KnownVPS{ID: dom.ID, Name: dom.Name, LastSeen: d.now()}); err != nil {
				return err
			}
			if r, ok := found[dom.ID]; ok {
				if err := d.recordFound(ctx, tx, dom, r, rebuilder); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot record what was found: %w", err)
	}
	for _, dom := range domains {
		if r, ok := found[dom.ID]; ok && r.snap.State == vps.SnapshotAvailable {
			if err := d.rightMetadata(ctx, dom, r.snap); err != nil {
				d.Logger.Warn("metadata not put right", vps.LogAttr(dom.ID, dom.Name), "error", err)
			}
		}
	}
	d.names.note(domains...)
	if err := d.inventory.reload(ctx); err != nil {
		return fmt.Errorf("everything was recorded, but not compared: %w", err)
	}
	done.Report, err = d.Checks(ctx)
	return err
}
