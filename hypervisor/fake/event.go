package fake

import (
	"slices"
	"sync"

	"vpssnapd/hypervisor"
)

// open lists the Hosts of this process by their directory, to share events. Another
// process on the same directory gets no events: it would be a second libvirtd.
var open = struct {
	sync.Mutex
	hosts map[string][]*Host
}{hosts: map[string][]*Host{}}

func join(h *Host) {
	open.Lock()
	defer open.Unlock()
	open.hosts[h.dir] = append(open.hosts[h.dir], h)
}

func leave(h *Host) {
	open.Lock()
	defer open.Unlock()
	rest := slices.DeleteFunc(open.hosts[h.dir], func(o *Host) bool { return o == h })
	if len(rest) == 0 {
		delete(open.hosts, h.dir)
		return
	}
	open.hosts[h.dir] = rest
}

// emit tells every connected Host of this directory.
func (h *Host) emit(events []hypervisor.Event) {
	open.Lock()
	defer open.Unlock()
	for _, o := range open.hosts[h.dir] {
		// What happens while a connection is down is lost to it, as with libvirt.
		if !o.connected() {
			continue
		}
		for _, e := range events {
			o.events.Put(e)
		}
	}
}

// Events delivers what happens on the host.
func (h *Host) Events() <-chan hypervisor.Event { return h.events.Events() }
