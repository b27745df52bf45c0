package libvirt

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// facts is what libvirt tells of a domain outside its XML.
type facts struct {
	id, name    string
	state       libvirt.DomainState
	reason      int
	persistent  bool
	autostart   bool
	managedSave bool
	snapshots   int
	checkpoints int
}

// Domain reads one domain anew.
func (h *Host) Domain(ctx context.Context, id string) (hypervisor.Domain, error) {
	d, err := on(ctx, h, ordinary, id, readDomain)
	if err != nil {
		return hypervisor.Domain{}, fmt.Errorf("cannot read domain %s: %w", id, err)
	}
	return d, nil
}

func readDomain(d *libvirt.Domain) (hypervisor.Domain, error) {
	f, err := readFacts(d)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	domain, err := describe(d, f)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	for i := range domain.Disks {
		readLive(d, domain.State, &domain.Disks[i])
		for j := range domain.PersistentDisks {
			if p := &domain.PersistentDisks[j]; p.Path != "" && p.Path == domain.Disks[i].Path {
				p.SizeBytes = domain.Disks[i].SizeBytes
			}
		}
	}
	return domain, nil
}

// readLive adds to a disk what only a question of its own tells. An image that
// cannot be read leaves its size unknown; reading the domain does not fail for that.
func readLive(d *libvirt.Domain, state hypervisor.State, disk *hypervisor.Disk) {
	if disk.Path != "" {
		if info, err := d.GetBlockInfo(disk.Target, 0); err == nil {
			disk.SizeBytes = int64(info.Capacity)
		}
	}
	// The XML shows only jobs that end in a pivot.
	if state != hypervisor.Off && !disk.Job {
		if info, err := d.GetBlockJobInfo(disk.Target, 0); err == nil {
			disk.Job = info.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN
		}
	}
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

// countMetadata counts the snapshot and checkpoint objects that others made.
func countMetadata(d *libvirt.Domain, f *facts) (err error) {
	if f.snapshots, err = d.SnapshotNum(0); err != nil {
		return err
	}
	checkpoints, err := d.ListAllCheckpoints(0)
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
	list, err := call(ctx, h, ordinary, listDomains)
	if err != nil {
		return nil, fmt.Errorf("cannot list the domains: %w", err)
	}
	return list, nil
}

func listDomains(c *libvirt.Connect) ([]hypervisor.Domain, error) {
	records, err := c.GetAllDomainStats(nil, libvirt.DOMAIN_STATS_STATE, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, r := range records {
			_ = r.Domain.Free()
		}
	}()
	flags, err := readFlags(c)
	if err != nil {
		return nil, err
	}
	var list []hypervisor.Domain
	for _, r := range records {
		f, err := flags.factsOf(r)
		if err == nil {
			var domain hypervisor.Domain
			if domain, err = describe(r.Domain, f); err == nil {
				list = append(list, domain)
			}
		}
		if err != nil && !hasCode(err, libvirt.ERR_NO_DOMAIN) {
			return nil, err
		}
	}
	return list, nil
}

// flags are the ids of the domains to which something applies.
type flags struct{ persistent, autostart, managedSave, snapshots, checkpoints map[string]bool }

func readFlags(c *libvirt.Connect) (flags, error) {
	var f flags
	for _, ask := range []struct {
		answer *map[string]bool
		flag   libvirt.ConnectListAllDomainsFlags
	}{
		{&f.persistent, libvirt.CONNECT_LIST_DOMAINS_PERSISTENT},
		{&f.autostart, libvirt.CONNECT_LIST_DOMAINS_AUTOSTART},
		{&f.managedSave, libvirt.CONNECT_LIST_DOMAINS_MANAGEDSAVE},
		{&f.snapshots, libvirt.CONNECT_LIST_DOMAINS_HAS_SNAPSHOT},
		{&f.checkpoints, libvirt.CONNECT_LIST_DOMAINS_HAS_CHECKPOINT},
	} {
		domains, err := c.ListAllDomains(ask.flag)
		if err != nil {
			return flags{}, err
		}
		*ask.answer = map[string]bool{}
		for i := range domains {
			if id, err := domains[i].GetUUIDString(); err == nil {
				(*ask.answer)[id] = true
			}
			_ = domains[i].Free()
		}
	}
	return f, nil
}

// factsOf puts together what is known of one domain of the list.
func (s flags) factsOf(r libvirt.DomainStats) (f facts, err error) {
	if f.name, err = r.Domain.GetName(); err != nil {
		return f, err
	}
	if f.id, err = r.Domain.GetUUIDString(); err != nil {
		return f, err
	}
	if r.State != nil {
		f.state, f.reason = r.State.State, r.State.Reason
	}
	f.persistent, f.autostart, f.managedSave = s.persistent[f.id], s.autostart[f.id], s.managedSave[f.id]
	if s.snapshots[f.id] || s.checkpoints[f.id] {
		err = countMetadata(r.Domain, &f)
	}
	return f, err
}

// describe adds to the facts what the XML says.
func describe(d *libvirt.Domain, f facts) (hypervisor.Domain, error) {
	live, next, err := readDefinitions(d, &f)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	domain := hypervisor.Domain{
		ID: f.id, Name: f.name, State: states[f.state], Persistent: f.persistent,
		Autostart: f.autostart, ManagedSave: f.managedSave,
		ForeignSnapshots: f.snapshots, Checkpoints: f.checkpoints,
	}
	if domain.State == "" {
		domain.State = hypervisor.Unknown
	}
	if domain.State == hypervisor.Paused {
		domain.PauseReason = pauseReason(libvirt.DomainPausedReason(f.reason))
	}
	if next != nil {
		domain.PersistentDisks = next.disks()
		if domain.Metadata, err = next.metadata(); err != nil {
			return hypervisor.Domain{}, err
		}
	}
	present := live
	if present == nil {
		present = next
	}
	domain.Disks = present.disks()
	domain.Agent = present.agent()
	domain.TPM = present.tpm()
	domain.NVRAM, domain.NVRAMOther = present.nvram()
	return domain, nil
}

var states = map[libvirt.DomainState]hypervisor.State{
	libvirt.DOMAIN_RUNNING:     hypervisor.Running,
	libvirt.DOMAIN_BLOCKED:     hypervisor.Running,
	libvirt.DOMAIN_SHUTDOWN:    hypervisor.Running, // on its way down, QEMU still there
	libvirt.DOMAIN_PAUSED:      hypervisor.Paused,
	libvirt.DOMAIN_SHUTOFF:     hypervisor.Off,
	libvirt.DOMAIN_CRASHED:     hypervisor.Crashed,
	libvirt.DOMAIN_PMSUSPENDED: hypervisor.Suspended,
}

func pauseReason(reason libvirt.DomainPausedReason) hypervisor.PauseReason {
	switch reason {
	case libvirt.DOMAIN_PAUSED_USER:
		return hypervisor.PausedByUser
	case libvirt.DOMAIN_PAUSED_IOERROR:
		return hypervisor.PausedByIO
	}
	return hypervisor.PausedByOther
}

// readDefinitions reads the live XML (nil when off) and the persistent one (nil
// when transient). State and XML are asked for one after the other; when they
// disagree the domain was started or ended in between, and both are asked again.
func readDefinitions(d *libvirt.Domain, f *facts) (live, next *definition, err error) {
	for {
		live, next = nil, nil
		on := f.state != libvirt.DOMAIN_SHUTOFF
		if on {
			if live, err = readDefinition(d, 0); err != nil {
				return nil, nil, err
			}
		}
		if f.persistent {
			if next, err = readDefinition(d, libvirt.DOMAIN_XML_INACTIVE); err != nil {
				return nil, nil, err
			}
		}
		active, err := d.IsActive()
		if err != nil {
			return nil, nil, err
		}
		if active == on && (live == nil || live.active()) && (live != nil || next != nil) {
			return live, next, nil
		}
		if f.persistent, err = d.IsPersistent(); err != nil {
			return nil, nil, err
		}
		if f.state, f.reason, err = d.GetState(); err != nil {
			return nil, nil, err
		}
	}
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
