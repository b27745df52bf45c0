package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Rebuilt is what Rebuild did.
type Rebuilt struct {
	// Aside are the files of the damaged database, where they lie now.
	Aside     []string
	Snapshots []adoption.Found
	// Report is how the host compares with the new record.
	Report vps.Report
}

// Rebuild makes the database of a host again from what the definitions and files
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
	file := filepath.Join(c.StateDir, store.FileName)
	db, err := store.Open(ctx, file, c.Now)
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
			db, err = store.Open(ctx, file, c.Now)
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
	defer d.group.Stop()
	if err := d.refill(ctx, domains, &done); err != nil {
		return done, err
	}
	return done, db.Accept(ctx)
}

// refill records what the host tells, and compares the host with it.
func (d *Daemon) refill(ctx context.Context, domains []hypervisor.Domain, done *Rebuilt) (err error) {
	if done.Snapshots, err = d.adopter.Refill(ctx, domains); err != nil {
		return err
	}
	if err := d.inventory.Reload(ctx); err != nil {
		return fmt.Errorf("everything was recorded, but not compared: %w", err)
	}
	done.Report, err = d.Doctor.Checks(ctx)
	return err
}

// mustBeEmpty refuses a database that is whole and has something in it.
func mustBeEmpty(ctx context.Context, db *store.Store, dir string) error {
	empty, err := db.Empty(ctx)
	if err == nil && !empty {
		return fmt.Errorf(
			"the database in %s is whole: there is nothing to rebuild. vpssnap doctor --repair records a single "+
				"snapshot that it does not know",
			dir,
		)
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
		if err == nil && dom.Astray != nil { // what its disks hold would be recorded wrongly
			err = fault.Explain("cannot rebuild", &hypervisor.AstrayError{Domain: dom})
		}
		if err != nil {
			return nil, fmt.Errorf("cannot rebuild: %w", err)
		}
		domains = append(domains, dom)
	}
	return domains, nil
}
