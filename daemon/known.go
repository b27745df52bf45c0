package daemon

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"sync"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// names remembers the last name of every VPS that was ever seen here, so that a
// record without its VPS can be named, and a name that was given away again is
// not taken for the VPS that had it.
type names struct {
	mu   sync.Mutex
	of   map[string]string // by id
	news map[string]string // not recorded yet
}

func newNames(known map[string]store.KnownVPS) *names {
	n := &names{of: map[string]string{}, news: map[string]string{}}
	for id, v := range known {
		n.of[id] = v.Name
	}
	return n
}

// note takes up the names of domains, and says whether there is news to record.
func (n *names) note(domains ...hypervisor.Domain) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, dom := range domains {
		if n.of[dom.ID] != dom.Name {
			n.of[dom.ID], n.news[dom.ID] = dom.Name, dom.Name
		}
	}
	return len(n.news) > 0
}

// name is the last known name of a VPS, its id when it was never seen.
func (n *names) name(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := n.of[id]; ok {
		return name
	}
	return id
}

// knows says whether a VPS with this id was ever seen here.
func (n *names) knows(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.of[id]
	return ok
}

// bearers are the ids of all VPSes whose last known name this is.
func (n *names) bearers(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for id, of := range n.of {
		if of == name {
			ids = append(ids, id)
		}
	}
	return ids
}

// recordNames writes down what is new.
func (d *Daemon) recordNames(ctx context.Context) {
	d.names.mu.Lock()
	news := maps.Clone(d.names.news)
	d.names.mu.Unlock()
	if len(news) == 0 {
		return
	}
	err := d.store.Write(ctx, func(tx *store.Tx) error {
		for id, name := range news {
			if err := tx.SawVPS(ctx, store.KnownVPS{ID: id, Name: name, LastSeen: d.now()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() == nil {
			d.Logger.Warn("names of VPSes not recorded", "error", err)
		}
		return // they stay news
	}
	d.names.mu.Lock()
	defer d.names.mu.Unlock()
	for id, name := range news {
		if d.names.news[id] == name {
			delete(d.names.news, id)
		}
	}
}

// nameIsClear refuses a name that belonged to another VPS with a record here,
// which is gone: the caller may mean that one.
func (d *Daemon) nameIsClear(ctx context.Context, ref string, now hypervisor.Domain) error {
	if strings.EqualFold(ref, now.ID) {
		return nil
	}
	for _, id := range d.names.bearers(ref) {
		if _, present := d.inventory.find(id); id == now.ID || present {
			continue
		}
		rec, err := readRecord(ctx, d.store, id)
		if err != nil {
			return err
		}
		if rec.option != nil || rec.snapshot != nil || rec.operation != nil {
			return vps.Errorf(vps.CodeVPSChanged, "the name %s belonged to another VPS, %s, which is gone from the host and still has a snapshot or an option here", ref, id).
				WithRemedy("name the VPS by its id: %s is the one that bears the name now; vpssnap doctor says what can be done about the other", now.ID)
		}
	}
	return nil
}

// logAttr names a VPS in the log by its last known name.
func (d *Daemon) logAttr(id string) slog.Attr { return vps.LogAttr(id, d.names.name(id)) }
