package fake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// maxDomainFile is the size, in bytes, at which a domain's file is rewritten: by then nearly all
// lines are outdated.
const maxDomainFile = 64 << 10

// domain is one domain as kept in its file. Of the embedded Domain, Disks is the live
// definition: nil while the domain is off. It is stored whole as JSON, so that a test
// can look at it.
type domain struct {
	hypervisor.Domain
	// Panel is the definition that a panel keeps and may define again.
	Panel []hypervisor.Disk
	// Open are the images that the guest's QEMU has open, by path with their inode.
	Open  map[string]uint64
	Jobs  map[string]job
	Stray map[string]stray // disks of which libvirt has lost track
	// Forgotten: libvirt takes it for off, and it runs.
	Forgotten bool
	Guest     Guest
	Mind      AgentMind
	// Freezing: the agent accepted a freeze late and will do it at the next chance.
	Freezing bool

	stored   []byte // as it lies in the file
	fileSize int
	events   []hypervisor.EventKind
	gone     bool
}

func (d *domain) active() bool { return d.State != hypervisor.Off }

func (d *domain) tell(kinds ...hypervisor.EventKind) { d.events = append(d.events, kinds...) }

// live returns the disk of the live definition, or ErrOff or ErrNotFound.
func (d *domain) live(target string) (*hypervisor.Disk, error) {
	if !d.active() {
		return nil, hypervisor.ErrOff
	}
	return find(d.Disks, target)
}

func find(disks []hypervisor.Disk, target string) (*hypervisor.Disk, error) {
	for i := range disks {
		// By target, as libvirt's calls name disks.
		if disks[i].Target == target {
			return &disks[i], nil
		}
	}
	return nil, fmt.Errorf("%w: disk %s", hypervisor.ErrNotFound, target)
}

// layers returns a disk's images, the top first: as the definition states them,
// else as the headers do.
func layers(d *hypervisor.Disk) ([]hypervisor.Layer, error) {
	if d.Type != "file" || d.Path == "" {
		return nil, nil
	}
	// libvirt trusts what is stated, even when the headers say something else.
	if d.ChainKnown {
		return append([]hypervisor.Layer{{Path: d.Path, Format: d.Format}}, d.Chain...), nil
	}
	return headerChain(d.Path, d.Format)
}

// reopen notes which images the guest has open now. By inode: QEMU keeps a file open
// that was renamed or removed, and no longer sees the name.
func (d *domain) reopen() error {
	d.Open = map[string]uint64{}
	for i := range d.Disks {
		disk := &d.Disks[i]
		if lost, ok := d.Stray[disk.Target]; ok {
			disk = &lost.Disk
		}
		chain, err := layers(disk)
		if err != nil {
			return err
		}
		for _, l := range chain {
			if d.Open[l.Path], err = inodeOf(l.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasOpen reports whether the guest's QEMU has a file open, by whatever name.
func (d *domain) hasOpen(path string) bool {
	inode, err := inodeOf(path)
	if err != nil {
		return false
	}
	for _, open := range d.Open {
		if open == inode {
			return true
		}
	}
	return false
}

// off is what remains when the QEMU process is gone. Jobs end with it and leave no
// trace, as with a killed QEMU.
func (d *domain) off() {
	d.State, d.PauseReason = hypervisor.Off, ""
	d.Disks, d.Open, d.Jobs, d.Stray = nil, nil, nil, nil
	d.Guest.Frozen, d.Freezing, d.Forgotten = false, false, false
	// A transient domain ends with its QEMU.
	d.gone = !d.Persistent
	d.tell(hypervisor.EventChanged)
}

func (h *Host) domainFile(id string) string {
	return filepath.Join(h.dir, "domains", id+".json")
}

// load reads one domain. Every id is a file name here, so only names that were
// given out are looked at.
func (h *Host) load(id string) (*domain, error) {
	if id == "" || strings.ContainsAny(id, "/\\.\x00") {
		return nil, hypervisor.ErrNotFound
	}
	data, err := os.ReadFile(h.domainFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hypervisor.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	// From the end, to the last whole line: a test that was killed may have torn the
	// very last.
	for rest := data; len(rest) > 0; {
		start := bytes.LastIndexByte(rest, '\n') + 1
		d := &domain{stored: rest[start:], fileSize: len(data)}
		if json.Unmarshal(d.stored, d) == nil {
			return d, nil
		}
		rest = rest[:max(0, start-1)]
	}
	return nil, fmt.Errorf("cannot read fake domain %s", id)
}

// glance is a domain as it lay in its file when it was last read, and which file
// that was: another one, or one that has grown, is read again.
type glance struct {
	domain  *domain
	inode   uint64
	size    int64
	written unix.Timespec
}

// loadAll returns all domains to look at, not to change: they are shared. With 500
// of them, reading each again under the lock of all kept every other call waiting.
func (h *Host) loadAll() ([]*domain, error) {
	entries, err := os.ReadDir(filepath.Join(h.dir, "domains"))
	if err != nil {
		return nil, err
	}
	var all []*domain
	seen := map[string]glance{}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(h.domainFile(id), &st); err != nil {
			return nil, err
		}
		g := h.seen[id]
		// A file that was renamed over or grew; the time alone ticks too slowly.
		if g.inode != st.Ino || g.size != st.Size || g.written != st.Mtim {
			d, err := h.load(id)
			if err != nil {
				return nil, err
			}
			g = glance{domain: d, inode: st.Ino, size: st.Size, written: st.Mtim}
		}
		seen[id] = g
		all = append(all, g.domain)
	}
	// Domains that are gone are forgotten with the old map.
	h.seen = seen
	return all, nil
}

// save adds the domain's state to its file as a new last line; a line that was
// torn by a kill is passed over by load. Not by renaming a new file over the
// old one each time: ext4 then writes it out at once, which costs more than all
// else that the fake does.
func (h *Host) save(d *domain) error {
	file := h.domainFile(d.ID)
	if d.gone {
		return os.Remove(file)
	}
	data, err := json.Marshal(d)
	// A call that changes nothing writes nothing, as reads are calls too.
	if err != nil || bytes.Equal(data, d.stored) {
		return err
	}
	if d.fileSize > maxDomainFile {
		if err := os.WriteFile(file+".new", data, 0o600); err != nil {
			return err
		}
		return os.Rename(file+".new", file)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte{'\n'}, data...))
	return errors.Join(err, f.Close())
}

// update changes one domain, or leaves it as it was when change fails. The events go out
// after the lock is free: a listener calls the host.
func (h *Host) update(id string, change func(d *domain) error) error {
	var events []hypervisor.Event
	err := h.locked(func() error {
		d, err := h.load(id)
		if err != nil {
			return err
		}
		if err := change(d); err != nil {
			return err
		}
		for _, k := range d.events {
			events = append(events, hypervisor.Event{Kind: k, Domain: d.ID, Name: d.Name})
		}
		return h.save(d)
	})
	if err == nil {
		h.emit(events)
	}
	return err
}

// look reads one domain.
func (h *Host) look(id string, see func(d *domain) error) error {
	return h.locked(func() error {
		d, err := h.load(id)
		if err != nil {
			return err
		}
		return see(d)
	})
}

// call runs one Domains call between its two points. An error at "after" comes when the
// effect is there: the caller cannot know, as with a libvirtd that died in the call.
func (h *Host) call(ctx context.Context, call, id string, change func(d *domain) error) error {
	err := h.reach(ctx, call+".before", id)
	if err == nil {
		err = h.update(id, func(d *domain) error {
			if d.Forgotten {
				return d.refuse(call)
			}
			return change(d)
		})
	}
	if err == nil {
		err = h.reach(ctx, call+".after", id)
	}
	if err != nil {
		return fmt.Errorf("%s of domain %s failed: %w", call, id, err)
	}
	return nil
}

// unused is ErrBusy when a domain other than except has one of the images open. It
// stands for QEMU's image locks between two QEMUs.
func (h *Host) unused(except string, paths ...string) error {
	all, err := h.loadAll()
	if err != nil {
		return err
	}
	for _, d := range all {
		for _, p := range paths {
			if d.ID != except && d.hasOpen(p) {
				return fmt.Errorf("%w: %s has %s open", hypervisor.ErrBusy, d.Name, p)
			}
		}
	}
	return nil
}

// Info tells versions.
func (h *Host) Info(ctx context.Context) (hypervisor.Info, error) {
	if err := h.reach(ctx, "Info.before", ""); err != nil {
		return hypervisor.Info{}, fmt.Errorf("cannot read versions: %w", err)
	}
	// As Debian 12 has them, on which FAULTS.md was seen.
	return hypervisor.Info{Hostname: "fake", LibvirtVersion: "9.0.0", HypervisorVersion: "7.2.0"}, nil
}

// Pools are the directories that AddPool named.
func (h *Host) Pools(ctx context.Context) ([]string, error) {
	if err := h.reach(ctx, "Pools.before", ""); err != nil {
		return nil, fmt.Errorf("cannot list the storage pools: %w", err)
	}
	data, err := os.ReadFile(h.poolFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n"), err
}

// AddPool defines a storage pool of a directory.
func (h *Host) AddPool(dir string) error {
	f, err := os.OpenFile(h.poolFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, dir)
	return errors.Join(err, f.Close())
}

func (h *Host) poolFile() string { return filepath.Join(h.dir, "pools") }

// List returns every domain, without sizes.
func (h *Host) List(ctx context.Context) ([]hypervisor.Domain, error) {
	if err := h.reach(ctx, "List.before", ""); err != nil {
		return nil, fmt.Errorf("cannot list domains: %w", err)
	}
	var list []hypervisor.Domain
	err := h.locked(func() error {
		all, err := h.loadAll()
		for _, d := range all {
			list = append(list, d.shown())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list domains: %w", err)
	}
	return list, nil
}

// Domain reads one domain. On the real host its QEMU must answer for the sizes.
func (h *Host) Domain(ctx context.Context, id string) (hypervisor.Domain, error) {
	shown, err := h.Glance(ctx, id)
	size(shown.Disks)
	size(shown.PersistentDisks)
	return shown, err
}

// Glance does so without the sizes.
func (h *Host) Glance(ctx context.Context, id string) (hypervisor.Domain, error) {
	if err := h.reach(ctx, "Domain.before", id); err != nil {
		return hypervisor.Domain{}, fmt.Errorf("cannot read domain %s: %w", id, err)
	}
	var shown hypervisor.Domain
	err := h.look(id, func(d *domain) error {
		shown = d.shown()
		for _, disks := range [][]hypervisor.Disk{shown.Disks, shown.PersistentDisks} {
			for i := range disks {
				// A glance of the real host has none either; a test must not pass by
				// them.
				disks[i].SizeBytes = 0
			}
		}
		return nil
	})
	if err != nil {
		return hypervisor.Domain{}, fmt.Errorf("cannot read domain %s: %w", id, err)
	}
	return shown, nil
}

// Named returns the id of the domain that has a name.
func (h *Host) Named(ctx context.Context, name string) (id string, err error) {
	err = h.reach(ctx, "Domain.before", name)
	if err == nil {
		err = h.locked(func() error {
			all, err := h.loadAll()
			for _, d := range all {
				if d.Name == name {
					id = d.ID
				}
			}
			if err == nil && id == "" {
				return hypervisor.ErrNotFound
			}
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("cannot look for a domain called %q: %w", name, err)
	}
	return id, nil
}

// shown is the domain as a caller sees it. Copies of all slices: callers keep what they
// get.
func (d *domain) shown() hypervisor.Domain {
	s := d.Domain
	if d.Forgotten {
		s = forgotten(s)
	}
	if !d.active() {
		// Off, libvirt shows the persistent definition for both.
		s.Disks = s.PersistentDisks
	}
	s.Disks, s.PersistentDisks = slices.Clone(s.Disks), slices.Clone(s.PersistentDisks)
	for _, disks := range [][]hypervisor.Disk{s.Disks, s.PersistentDisks} {
		for i := range disks {
			disks[i].LookAt()
		}
	}
	for i := range s.Disks {
		_, s.Disks[i].Job = d.Jobs[s.Disks[i].Target]
	}
	s.Agent = d.agentState()
	return s
}

// size reads the virtual sizes of the disks that have an image. An image that cannot be
// read leaves 0, as libvirt does.
func size(disks []hypervisor.Disk) {
	for i := range disks {
		disks[i].SizeBytes = 0
		if disks[i].NotFile != "" {
			continue
		}
		if l, err := readLayer(disks[i].Path, disks[i].Format); err == nil {
			disks[i].SizeBytes = l.header.Size
		}
	}
}
