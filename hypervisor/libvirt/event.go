package libvirt

import (
	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/feed"
)

// register asks for the events of all domains. The callbacks run in libvirt's
// event loop on borrowed arguments: they copy name and UUID, and neither free
// anything nor call libvirtd.
func (s *session) register(events *feed.Feed) error {
	c := s.events
	// Name and UUID are both in the event; neither asks libvirtd.
	tell := func(d *libvirt.Domain, kinds ...hypervisor.EventKind) {
		name, err := d.GetName()
		if err != nil {
			return
		}
		id, err := d.GetUUIDString()
		if err != nil {
			return
		}
		for _, kind := range kinds {
			events.Put(hypervisor.Event{Kind: kind, Domain: id, Name: name})
		}
	}
	// Devices and the agent change what a snapshot covers, and whether a freeze can
	// work.
	changed := func(d *libvirt.Domain) { tell(d, hypervisor.EventChanged) }
	for _, register := range []func() (int, error){
		func() (int, error) {
			return c.DomainEventLifecycleRegister(
				nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
					tell(d, lifecycleKinds(e)...)
				},
			)
		},
		func() (int, error) {
			return c.DomainEventBlockJob2Register(
				nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventBlockJob) {
					tell(d, hypervisor.EventJob)
				},
			)
		},
		func() (int, error) {
			return c.DomainEventDeviceAddedRegister(
				nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) { changed(d) },
			)
		},
		func() (int, error) {
			return c.DomainEventDeviceRemovedRegister(
				nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) { changed(d) },
			)
		},
		func() (int, error) {
			return c.DomainEventAgentLifecycleRegister(
				nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventAgentLifecycle) { changed(d) },
			)
		},
	} {
		// All or none: a session that misses one kind of event would look healthy.
		number, err := register()
		if err != nil {
			return err
		}
		s.undo = append(s.undo, func() error { return c.DomainEventDeregister(number) })
	}
	return nil
}

// lifecycleKinds is what a lifecycle event means to the daemon.
func lifecycleKinds(e *libvirt.DomainEventLifecycle) []hypervisor.EventKind {
	switch {
	case e.Event == libvirt.DOMAIN_EVENT_DEFINED:
		return []hypervisor.EventKind{hypervisor.EventDefined}
	case e.Event == libvirt.DOMAIN_EVENT_UNDEFINED:
		return []hypervisor.EventKind{hypervisor.EventUndefined}
	case e.Event == libvirt.DOMAIN_EVENT_RESUMED:
		return []hypervisor.EventKind{hypervisor.EventResumed, hypervisor.EventChanged}
	// From the host that the domain leaves. On the other it is an ordinary start.
	case e.Event == libvirt.DOMAIN_EVENT_STOPPED &&
		libvirt.DomainEventStoppedDetailType(e.Detail) == libvirt.DOMAIN_EVENT_STOPPED_MIGRATED:
		return []hypervisor.EventKind{hypervisor.EventDeparted, hypervisor.EventChanged}
	}
	return []hypervisor.EventKind{hypervisor.EventChanged}
}
