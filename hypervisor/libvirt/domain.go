package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// facts is what libvirt tells of a domain outside its XML. Each is a call of its own,
// cheap one by one and not for hundreds of domains; see groups.
type facts struct {
	id, name    string
	state       libvirt.DomainState
	reason      int
	persistent  bool
	autostart   bool
	managedSave bool
	snapshots   []string
	checkpoints int
}

// Domain reads one domain from libvirt, not from memory. Its QEMU must answer for the sizes: ErrUnavailable when
// it does not within libvirt's 30 s.
func (h *Host) Domain(ctx context.Context, id string) (hypervisor.Domain, error) {
	return h.domain(ctx, id, readSizes)
}

// Glance does so without the sizes.
func (h *Host) Glance(ctx context.Context, id string) (hypervisor.Domain, error) {
	return h.domain(ctx, id, func(*libvirt.Domain, *hypervisor.Domain) error { return nil })
}

// Named returns the id of the domain that has a name.
func (h *Host) Named(ctx context.Context, name string) (string, error) {
	if strings.ContainsRune(name, 0) { // where C would end it
		return "", fmt.Errorf("%w: no domain is called %q", hypervisor.ErrNotFound, name)
	}
	id, err := call(ctx, h, reading, "", func(c *libvirt.Connect) (string, error) {
		d, err := c.LookupDomainByName(name)
		if err != nil {
			return "", err
		}
		defer d.Free()
		return d.GetUUIDString()
	})
	if err != nil {
		return "", fmt.Errorf("cannot look for a domain called %q: %w", name, err)
	}
	return id, nil
}

// domain reads a domain, and what more there is to be read.
func (h *Host) domain(
	ctx context.Context, id string, more func(*libvirt.Domain, *hypervisor.Domain) error,
) (hypervisor.Domain, error) {
	// On the ordinary line: reading waits behind a call that may be changing the domain.
	domain, err := on(ctx, h, ordinary, id, func(d *libvirt.Domain) (hypervisor.Domain, error) {
		domain, err := h.readDomain(d)
		if err == nil && domain.Astray == nil {
			err = more(d, &domain)
		}
		return domain, err
	})
	if err != nil {
		return hypervisor.Domain{}, fmt.Errorf("cannot read domain %s: %w", id, err)
	}
	return domain, nil
}

// readDomain reads one domain with its facts, for a call about that domain alone.
func (h *Host) readDomain(d *libvirt.Domain) (hypervisor.Domain, error) {
	f, err := readFacts(d)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	var running qemus
	if f.state == libvirt.DOMAIN_SHUTOFF {
		running = findQEMUs()
	}
	domain, err := h.describe(d, f, running)
	if err != nil || domain.Astray != nil {
		return domain, err // its QEMU cannot be asked
	}
	// For libvirt both are I/O errors; to the customer one is over when there is room
	// again.
	if domain.PauseReason == hypervisor.PausedByIO && starved(d) {
		domain.PauseReason = hypervisor.PausedByNoSpace
	}
	for i := range domain.Disks {
		if err := findJob(d, domain.State, &domain.Disks[i]); err != nil {
			return hypervisor.Domain{}, err
		}
	}
	return domain, nil
}

// findJob finds a job on a disk: the XML shows only those that end in a pivot, and one of
// these, when libvirt died in the pivot, for ever.
func findJob(d *libvirt.Domain, state hypervisor.State, disk *hypervisor.Disk) error {
	if state == hypervisor.Off {
		return nil
	}
	info, err := d.GetBlockJobInfo(disk.Target, 0)
	switch found := err == nil && info.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN; {
	case disk.Job && err == nil && !found:
		return followQEMU(d, disk)
	case disk.Job:
	case hasCode(err, libvirt.ERR_OPERATION_TIMEOUT):
		// No answer is not "no job": a merge must not be begun beside one that is not seen.
		return silent(err)
	default:
		disk.Job = found
	}
	return nil
}

// readSizes asks for the size of each disk. An image that cannot be read leaves it
// unknown; reading the domain does not fail for that, but for a QEMU that does not
// answer.
func readSizes(d *libvirt.Domain, domain *hypervisor.Domain) error {
	for i := range domain.Disks {
		disk := &domain.Disks[i]
		if disk.Path == "" || disk.NotFile != "" && disk.NotFile != string(pathname.BlockDevice) {
			continue // libvirt would open it, and the open of a named pipe never returns
		}
		info, err := d.GetBlockInfo(disk.Target, 0)
		if hasCode(err, libvirt.ERR_OPERATION_TIMEOUT) {
			return silent(err)
		}
		if err != nil {
			continue
		}
		disk.SizeBytes = int64(info.Capacity)
		// The next boot's disk has no QEMU to ask; the same file has the same size.
		for j := range domain.PersistentDisks {
			if p := &domain.PersistentDisks[j]; p.Is(disk.Path) {
				p.SizeBytes = disk.SizeBytes
			}
		}
	}
	return nil
}

// silent is the error of a question that waited in vain for another call's end.
func silent(err error) error {
	return fmt.Errorf("%w: its QEMU does not answer: %w", hypervisor.ErrUnavailable, err)
}

// readFacts asks for each fact of one domain.
func readFacts(d *libvirt.Domain) (f facts, err error) {
	if f.name, err = d.GetName(); err != nil {
		return f, err
	}
	if f.id, err = d.GetUUIDString(); err != nil {
		return f, err
	}
	if f.state, f.reason, err = d.GetState(); err != nil {
		return f, err
	}
	if f.persistent, err = d.IsPersistent(); err != nil {
		return f, err
	}
	if f.persistent {
		if f.autostart, err = d.GetAutostart(); err != nil {
			return f, err
		}
		if f.managedSave, err = d.HasManagedSaveImage(0); err != nil {
			return f, err
		}
	}
	return f, countMetadata(d, &f)
}

// countMetadata counts the snapshot and checkpoint objects that others made. Most
// domains have none: to ask for names makes room for a thousand first.
func countMetadata(d *libvirt.Domain, f *facts) error {
	n, err := d.SnapshotNum(0)
	if err == nil && n > 0 {
		f.snapshots, err = d.SnapshotListNames(0)
	}
	if err != nil {
		return err
	}
	checkpoints, err := d.ListAllCheckpoints(0)
	// A driver that knows no checkpoints has none.
	if hasCode(err, libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED) {
		return nil
	}
	for i := range checkpoints {
		_ = checkpoints[i].Free()
	}
	f.checkpoints = len(checkpoints)
	return err
}

// List returns every domain, without sizes. A host has hundreds: what can be
// asked for all of them at once is, and each domain is asked only for its XML.
func (h *Host) List(ctx context.Context) ([]hypervisor.Domain, error) {
	list, err := call(ctx, h, reading, "", h.listDomains)
	if err != nil {
		return nil, fmt.Errorf("cannot list the domains: %w", err)
	}
	// Outside of the call: the line for reading has two places and must not wait for a
	// QEMU.
	h.findStarved(ctx, list)
	return list, nil
}

// starvedWithin is how long List waits for what the QEMUs of paused domains must be asked.
const starvedWithin = 2 * time.Second

// findStarved tells a lack of space from other I/O errors. Each domain is asked
// by itself: its QEMU may not answer.
func (h *Host) findStarved(ctx context.Context, list []hypervisor.Domain) {
	ctx, cancel := context.WithTimeoutCause(ctx, starvedWithin, errLate)
	defer cancel()
	var asked sync.WaitGroup
	for i := range list {
		if list[i].PauseReason != hypervisor.PausedByIO {
			continue
		}
		asked.Go(func() {
			full, err := on(
				ctx, h, ordinary, list[i].ID, func(d *libvirt.Domain) (bool, error) { return starved(d), nil },
			)
			if err == nil && full {
				list[i].PauseReason = hypervisor.PausedByNoSpace
			}
		})
	}
	asked.Wait()
}

// listDomains reads all domains. What libvirt can tell of all at once is asked once, not
// for each domain.
func (h *Host) listDomains(c *libvirt.Connect) ([]hypervisor.Domain, error) {
	domains, err := c.ListAllDomains(0)
	if err != nil {
		return nil, err
	}
	defer free(domains)
	have, err := readGroups(c)
	if err != nil {
		return nil, err
	}
	running := findQEMUs() // once for all
	var list []hypervisor.Domain
	for i := range domains {
		domain, err := h.listed(&domains[i], have, running)
		// One that was undefined since the list was made is left out, and is no error.
		if err == nil {
			list = append(list, domain)
		} else if !hasCode(err, libvirt.ERR_NO_DOMAIN) && !errors.Is(err, hypervisor.ErrNotFound) {
			return nil, err
		}
	}
	return list, nil
}

// free gives the handles back; libvirt counts them, and a daemon runs for months.
func free(domains []libvirt.Domain) {
	for i := range domains {
		_ = domains[i].Free()
	}
}

// groups are the ids of the domains to which something applies.
type groups struct{ persistent, autostart, managedSave, snapshots, checkpoints map[string]bool }

// readGroups asks for the domains of each kind, which takes one call for each kind instead
// of one for each domain.
func readGroups(c *libvirt.Connect) (groups, error) {
	var g groups
	for _, ask := range []struct {
		answer *map[string]bool
		flag   libvirt.ConnectListAllDomainsFlags
	}{
		{&g.persistent, libvirt.CONNECT_LIST_DOMAINS_PERSISTENT},
		{&g.autostart, libvirt.CONNECT_LIST_DOMAINS_AUTOSTART},
		{&g.managedSave, libvirt.CONNECT_LIST_DOMAINS_MANAGEDSAVE},
		{&g.snapshots, libvirt.CONNECT_LIST_DOMAINS_HAS_SNAPSHOT},
		{&g.checkpoints, libvirt.CONNECT_LIST_DOMAINS_HAS_CHECKPOINT},
	} {
		domains, err := c.ListAllDomains(ask.flag)
		if err != nil {
			return groups{}, err
		}
		*ask.answer = map[string]bool{}
		for i := range domains {
			if id, err := domains[i].GetUUIDString(); err == nil {
				(*ask.answer)[id] = true
			}
		}
		free(domains)
	}
	return g, nil
}

// facts puts together what is known of one domain of the list.
func (g groups) facts(d *libvirt.Domain) (f facts, err error) {
	if f.name, err = d.GetName(); err != nil {
		return f, err
	}
	if f.id, err = d.GetUUIDString(); err != nil {
		return f, err
	}
	f.persistent, f.autostart, f.managedSave = g.persistent[f.id], g.autostart[f.id], g.managedSave[f.id]
	if f.state, f.reason, err = d.GetState(); err != nil {
		return f, err
	}
	if g.snapshots[f.id] || g.checkpoints[f.id] {
		err = countMetadata(d, &f)
	}
	return f, err
}

// describe adds to the facts what the XML says.
func (h *Host) describe(d *libvirt.Domain, f facts, running qemus) (hypervisor.Domain, error) {
	live, next, err := readDefinitions(d, &f)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	domain, err := f.with(live, next)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	if domain.Astray, err = h.isAstray(d, f, running); err != nil {
		return hypervisor.Domain{}, err
	}
	if domain.Astray != nil { // nothing is allowed to it
		domain.State, domain.PauseReason, domain.MigratedAway = hypervisor.Unknown, "", false
	}
	return domain, nil
}

// with adds to the facts what the definitions say.
func (f *facts) with(live, next *definition) (domain hypervisor.Domain, err error) {
	domain = hypervisor.Domain{
		ID: f.id, Name: f.name, State: states[f.state], Persistent: f.persistent,
		Autostart: f.autostart, ManagedSave: f.managedSave,
		ForeignSnapshots: len(f.snapshots), SnapshotNames: f.snapshots, Checkpoints: f.checkpoints,
	}
	// A state of a newer libvirt: nothing is allowed to such a domain.
	if domain.State == "" {
		domain.State = hypervisor.Unknown
	}
	domain.MigratedAway = domain.State == hypervisor.Off &&
		libvirt.DomainShutoffReason(f.reason) == libvirt.DOMAIN_SHUTOFF_MIGRATED
	if domain.State == hypervisor.Paused {
		domain.PauseReason = pauseReason(libvirt.DomainPausedReason(f.reason))
	}
	// Metadata is read of the persistent definition only: it is the copy that survives a
	// power-off.
	if next != nil {
		domain.PersistentDisks = next.disks()
		if domain.Metadata, err = next.metadata(); err != nil {
			return hypervisor.Domain{}, err
		}
	}
	// What runs counts; the definition may have been changed for the next boot.
	present := live
	if present == nil {
		present = next
	}
	if present == nil {
		return domain, nil
	}
	domain.Disks = present.disks()
	domain.Agent = present.agent()
	domain.TPM = present.tpm()
	domain.NVRAM, domain.NVRAMOther = present.nvram()
	return domain, nil
}

// states leaves out what libvirt cannot tell: that is Unknown.
var states = map[libvirt.DomainState]hypervisor.State{
	libvirt.DOMAIN_RUNNING:     hypervisor.Running,
	libvirt.DOMAIN_BLOCKED:     hypervisor.Running,
	libvirt.DOMAIN_SHUTDOWN:    hypervisor.Running, // on its way down, QEMU still there
	libvirt.DOMAIN_PAUSED:      hypervisor.Paused,
	libvirt.DOMAIN_SHUTOFF:     hypervisor.Off,
	libvirt.DOMAIN_CRASHED:     hypervisor.Crashed,
	libvirt.DOMAIN_PMSUSPENDED: hypervisor.Suspended,
}

// pauseReason is what the reason alone tells; starved tells more of I/O errors.
func pauseReason(reason libvirt.DomainPausedReason) hypervisor.PauseReason {
	switch reason {
	case libvirt.DOMAIN_PAUSED_USER:
		return hypervisor.PausedByUser
	case libvirt.DOMAIN_PAUSED_IOERROR:
		return hypervisor.PausedByIO
	}
	return hypervisor.PausedByOther
}

// starved reports whether every disk with an error ran out of space, by what libvirt
// noted of the disks. That note outlives the lack, so alone it would prove nothing.
func starved(d *libvirt.Domain) bool {
	// A full disk beside a broken one is not healed by room.
	faulty, err := d.GetDiskErrors(0)
	for _, disk := range faulty {
		if disk.Error != libvirt.DOMAIN_DISK_ERROR_NO_SPACE {
			return false
		}
	}
	return err == nil && len(faulty) > 0
}

// readDefinitions reads the live XML (nil when off) and the persistent one (nil
// when transient). State and XML are asked for one after the other: a domain
// that ended in between is off.
func readDefinitions(d *libvirt.Domain, f *facts) (live, next *definition, err error) {
	if f.state != libvirt.DOMAIN_SHUTOFF {
		if live, err = readDefinition(d, 0); err != nil {
			return nil, nil, err
		}
		if !live.active() {
			live, f.state, f.reason = nil, libvirt.DOMAIN_SHUTOFF, 0
		}
	}
	if f.persistent {
		if next, err = readDefinition(d, libvirt.DOMAIN_XML_INACTIVE); err != nil {
			return nil, nil, err
		}
	}
	if live == nil && next == nil {
		return nil, nil, fmt.Errorf("%w: it ended meanwhile", hypervisor.ErrNotFound)
	}
	return live, next, nil
}

// readDefinition reads a domain's XML. It is never logged: with
// DOMAIN_XML_SECURE it holds passwords.
func readDefinition(d *libvirt.Domain, flags libvirt.DomainXMLFlags) (*definition, error) {
	text, err := d.GetXMLDesc(flags)
	if err != nil {
		return nil, err
	}
	return parseDefinition(text)
}
