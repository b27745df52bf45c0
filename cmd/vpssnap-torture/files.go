package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// sameFiles makes sure that exactly the files are there that are on record, and
// all that are not ours.
func (c *campaign) sameFiles(ctx context.Context) error {
	want, err := c.expectedFiles(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(c.site.Lab.ImageDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !want[e.Name()] {
			return fmt.Errorf("the file %s is left over", e.Name())
		}
		delete(want, e.Name())
	}
	for name := range want {
		return fmt.Errorf("the file %s is gone", name)
	}
	return c.sameDecoys()
}

// expectedFiles are the bases, what live records name, and the decoys.
func (c *campaign) expectedFiles(ctx context.Context) (map[string]bool, error) {
	db, err := store.OpenReadOnly(c.site.Database())
	if err != nil {
		return nil, err
	}
	defer db.Close()
	snapshots, err := db.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for _, name := range decoys {
		want[name] = true
	}
	all := c.victims
	if c.os != nil {
		all = append(slices.Clone(all), c.os.victim)
	}
	for _, v := range all {
		for _, base := range v.bases {
			want[filepath.Base(base.path)] = true
		}
	}
	for _, s := range snapshots {
		for _, d := range s.Disks {
			want[filepath.Base(d.Overlay)] = true
			if d.Undo != "" {
				want[filepath.Base(d.Undo)] = true
			}
		}
	}
	return want, nil
}

// sameDecoys makes sure that nobody has touched the files that only look like ours.
func (c *campaign) sameDecoys() error {
	for _, name := range decoys {
		text, err := os.ReadFile(filepath.Join(c.site.Lab.ImageDir(), name))
		if err != nil {
			return fmt.Errorf("a file that is not ours was removed: %w", err)
		}
		if string(text) != name {
			return fmt.Errorf("the file %s is not ours and was changed", name)
		}
	}
	return nil
}

// midway is what must hold at any moment, looked at right after a kill: no file
// is gone that something needs, no snapshot has changed that can be restored,
// and nobody has touched a VPS with which nothing is done.
func (c *campaign) midway(ctx context.Context, works []*work) error {
	if err := c.sameDecoys(); err != nil {
		return err
	}
	db, err := store.OpenReadOnly(c.site.Database())
	if err != nil {
		return err
	}
	defer db.Close()
	for _, v := range c.victims {
		busy := slices.ContainsFunc(works, func(w *work) bool { return w.victim == v })
		snapshots, err := db.SnapshotsOf(ctx, v.id)
		if err == nil {
			err = c.midwayOf(v, snapshots, busy)
		}
		if err != nil {
			return fmt.Errorf("%s right after a kill: %w", v.name, err)
		}
	}
	return nil
}

// midwayOf looks at one VPS; of one that is being worked on only what holds at any
// moment.
func (c *campaign) midwayOf(v *victim, snapshots []vps.Snapshot, busy bool) error {
	disks, err := c.site.Lab.PersistentDisks(v.name)
	if err != nil {
		return err
	}
	for _, use := range disks {
		if err := exists(use.Path); err != nil {
			return fmt.Errorf("the next boot has no disk %s: %w", use.Target, err)
		}
	}
	var current *vps.Snapshot
	for i, s := range snapshots {
		if s.State != vps.SnapshotAvailable && s.State != vps.SnapshotRestoring {
			continue
		}
		current = &snapshots[i]
		if err := frozen(s); err != nil {
			return err
		}
	}
	if busy {
		return nil
	}
	if (current != nil) != (v.snapshot != nil) {
		return fmt.Errorf("a snapshot is on record: %t, expected: %t", current != nil, v.snapshot != nil)
	}
	return v.sameDisks(current, disks)
}

// frozen makes sure that the data of a snapshot that can be restored is there, and was
// not written to since. By the time of its last change: to read every byte at every kill
// would take too long.
func frozen(s vps.Snapshot) error {
	for _, d := range s.Disks {
		info, err := os.Stat(d.Base)
		if err != nil {
			return fmt.Errorf("the snapshot's data of disk %s: %w", d.Target, err)
		}
		if !d.BaseModified.IsZero() && !info.ModTime().Equal(d.BaseModified) {
			return fmt.Errorf("the snapshot's data of disk %s was written to at %s, after %s", d.Target,
				info.ModTime().Format(time.RFC3339Nano), d.BaseModified.Format(time.RFC3339Nano))
		}
		if err := exists(d.Overlay); err != nil {
			return fmt.Errorf("the overlay of disk %s: %w", d.Target, err)
		}
	}
	return nil
}

// exists follows no link: one would be a file of somebody else.
func exists(path string) error {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New(path + " is no file")
	}
	return err
}
