// Package inventory knows which VPSes the host has: the last known picture of its
// domains, kept by events so that reading it costs libvirt nothing; their names; and
// the lock of each. Before the host is changed, or something is promised about it,
// the domain is read again instead (Read, Resolve).
package inventory

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// Inventory is the picture of one host.
type Inventory struct {
	host     hypervisor.Host
	store    *store.Store
	group    *work.Group
	logger   *slog.Logger
	watchers []Watcher

	mu        sync.Mutex
	connected bool
	read      bool // everything was read since the connection
	domains   map[string]hypervisor.Domain
	silent    map[string]bool          // of which the last reading got no answer
	losses    int                      // how often the connection was lost
	resumed   map[string]int           // how often each domain of the picture began to run
	changed   map[string]*waiters      // by domain, for its next event
	next      map[string]chan struct{} // by domain, for the waiters for the next refresh
	begun     uint64                   // how many readings were begun
	underWay  int                      // how many of them have not ended
	newest    uint64                   // the number of the last reading of all domains
	kept      map[string]uint64        // by domain, the number of a newer one of it alone
	gone      []string                 // of those in kept, the domains that were not found

	refreshing work.KeyedLock
	locks      work.KeyedLock // one for each VPS
	followers  followers
	names      names
}

// New makes the inventory of a host, without a picture yet: see Watch.
func New(
	ctx context.Context, host hypervisor.Host, db *store.Store, group *work.Group, logger *slog.Logger,
) (*Inventory, error) {
	known, err := db.KnownVPSes(ctx)
	if err != nil {
		return nil, err
	}
	v := newInventory(host, logger)
	v.store, v.group = db, group
	for id, k := range known {
		v.names.of[id] = k.Name
	}
	return v, nil
}

// For tests too, which need no record.
func newInventory(host hypervisor.Host, logger *slog.Logger) *Inventory {
	return &Inventory{
		host: host, logger: logger, domains: map[string]hypervisor.Domain{}, silent: map[string]bool{},
		resumed: map[string]int{}, changed: map[string]*waiters{}, next: map[string]chan struct{}{},
		kept: map[string]uint64{}, followers: newFollowers(), names: newNames(),
	}
}

// Ready reports whether the host was read since it was last connected. A picture from
// before a loss of the connection is not shown: days may have passed.
func (v *Inventory) Ready() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.connected && v.read
}

// All returns every domain, by name. They are copies; a domain that does not answer has
// the state Unknown.
func (v *Inventory) All() []hypervisor.Domain {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := slices.SortedFunc(maps.Values(v.domains), func(a, b hypervisor.Domain) int {
		return strings.Compare(a.Name, b.Name)
	})
	for i, d := range all {
		all[i] = v.lastKnown(d)
	}
	return all
}

// Each shows every domain, in no order, without a copy: see must not wait, nor keep or
// change what it is shown. It holds the lock of the picture.
func (v *Inventory) Each(see func(*hypervisor.Domain)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var d hypervisor.Domain // one for all: in the loop, see would make each a new one
	for _, d = range v.domains {
		see(&d)
	}
}

// Find returns the domain with this UUID, else the one with this name. The
// UUID wins: a name may be given away again. Of two with one name, the one that was
// read last has it: the other is gone, or has another now.
func (v *Inventory) Find(ref string) (hypervisor.Domain, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found, known := v.domains[cmp.Or(vps.ReadID(ref), ref)]
	if known {
		return v.lastKnown(found), true
	}
	for _, d := range v.domains {
		if d.Name == ref && (!known || v.kept[d.ID] > v.kept[found.ID]) {
			found, known = d, true
		}
	}
	return v.lastKnown(found), known
}
