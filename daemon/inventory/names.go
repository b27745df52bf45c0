package inventory

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// names remembers the last name of every VPS that was seen here, until the record forgets
// it, so that a record without its VPS can be named, and a name that was given away again
// is not taken for the VPS that had it.
type names struct {
	mu   sync.Mutex
	of   map[string]string // by id
	news map[string]string // not recorded yet
	due  work.Signal       // there is news
}

func newNames() names {
	return names{of: map[string]string{}, news: map[string]string{}, due: work.NewSignal()}
}

// note takes up the names of domains. Nothing is written here: it is called under load,
// and a write waits for the disk.
func (n *names) note(domains ...hypervisor.Domain) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, dom := range domains {
		if n.of[dom.ID] != dom.Name {
			n.of[dom.ID], n.news[dom.ID] = dom.Name, dom.Name
		}
	}
	if len(n.news) > 0 {
		n.due.Wake()
	}
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

// knows reports whether a VPS with this id was ever seen here.
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
func (v *Inventory) recordNames(ctx context.Context) {
	v.names.mu.Lock()
	news := maps.Clone(v.names.news)
	v.names.mu.Unlock()
	if len(news) == 0 {
		return
	}
	err := v.store.Write(ctx, func(tx *store.Tx) error {
		for id, name := range news {
			if err := tx.SawVPS(ctx, store.KnownVPS{ID: id, Name: name, LastSeen: tx.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() == nil {
			v.logger.Warn("names of VPSes not recorded", "error", err)
		}
		return // they stay news
	}
	// A name that changed while it was written stays news.
	v.names.mu.Lock()
	defer v.names.mu.Unlock()
	for id, name := range news {
		if v.names.news[id] == name {
			delete(v.names.news, id)
		}
	}
}

// RecordNames writes the names of VPSes down, as they become known, until ctx ends.
func (v *Inventory) RecordNames(ctx context.Context) {
	ctx = failpoint.Within(ctx, "daemon", "drift")
	for {
		v.recordNames(ctx)
		select {
		case <-ctx.Done():
			return
		case <-v.names.due:
		}
	}
}

// NotePresent records that the VPSes of the picture are here now. Prune needs it: what
// was not seen for a long time and has no record is forgotten.
func (v *Inventory) NotePresent(ctx context.Context) error {
	present := v.All()
	return v.store.Write(ctx, func(tx *store.Tx) error {
		for _, dom := range present {
			if err := tx.SawVPS(ctx, store.KnownVPS{ID: dom.ID, Name: dom.Name, LastSeen: tx.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetNames forgets the names that the record has pruned, of VPSes that are gone.
func (v *Inventory) ForgetNames(ctx context.Context) error {
	v.names.mu.Lock()
	pruned := maps.Clone(v.names.of)
	maps.DeleteFunc(pruned, func(id, _ string) bool { return v.names.news[id] != "" })
	v.names.mu.Unlock()
	recorded, err := v.store.KnownVPSes(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(pruned, func(id, _ string) bool { return recorded[id].ID != "" })
	v.mu.Lock()
	maps.DeleteFunc(pruned, func(id, _ string) bool { return v.domains[id].ID != "" })
	v.mu.Unlock()
	v.names.mu.Lock()
	defer v.names.mu.Unlock()
	maps.DeleteFunc(v.names.of, func(id, _ string) bool { return pruned[id] != "" })
	return nil
}

// Name is the last known name of a VPS; its id when it was never seen.
func (v *Inventory) Name(id string) string { return v.names.name(id) }

// LogAttr names a VPS in the log by its last known name.
func (v *Inventory) LogAttr(id string) slog.Attr { return vps.LogAttr(id, v.Name(id)) }

// Saw takes up the names of domains that were read elsewhere.
func (v *Inventory) Saw(domains ...hypervisor.Domain) { v.names.note(domains...) }

// CheckName refuses a name that belonged to another VPS with a record here, which is
// gone: the caller may mean that one. Codes: vps_changed.
func (v *Inventory) CheckName(ctx context.Context, ref string, now hypervisor.Domain) error {
	if vps.ReadID(ref) == now.ID {
		return nil
	}
	for _, id := range v.names.bearers(ref) {
		if _, present := v.Find(id); id == now.ID || present {
			continue
		}
		// Without a record there is nothing that could be mixed up.
		rec, err := v.store.Record(ctx, id)
		if err != nil {
			return err
		}
		if rec.Option != nil || rec.Snapshot != nil || rec.Operation != nil {
			return vps.Errorf(vps.CodeVPSChanged, "the name %s belonged to another VPS, %s, which is gone from the host and still has a snapshot or an option here", ref, id).
				WithRemedy("name the VPS by its id: %s is the one that bears the name now; vpssnap doctor says what can be done about the other", now.ID)
		}
	}
	return nil
}
