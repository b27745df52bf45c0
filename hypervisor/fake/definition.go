package fake

import (
	"context"
	"fmt"

	"vpssnapd/hypervisor"
)

// errTransient: there is no persistent definition to change.
var errTransient = fmt.Errorf("%w: the domain is transient", hypervisor.ErrPersistence)

// PointDisks rewrites the named disks' sources in the persistent definition.
func (h *Host) PointDisks(ctx context.Context, id string, disks []hypervisor.DiskSource) error {
	return h.call(ctx, "PointDisks", id, func(d *domain) error {
		if !d.Persistent {
			return errTransient
		}
		for _, s := range disks {
			disk, err := find(d.PersistentDisks, s.Target)
			if err != nil {
				return err
			}
			disk.Path, disk.Format = s.Path, s.Format
			// As the real host does: a stated chain of the old image would override the
			// new one's header.
			disk.Chain, disk.ChainKnown = nil, false
		}
		d.tell(hypervisor.EventDefined)
		return nil
	})
}

// SaveDefinition has nothing to do either.
func (h *Host) SaveDefinition(ctx context.Context, id string) error {
	return h.call(ctx, "SaveDefinition", id, func(d *domain) error {
		if !d.Persistent {
			return errTransient
		}
		return nil
	})
}

// SyncDefinition has nothing to do: a fake host never loses power.
func (h *Host) SyncDefinition(ctx context.Context, id string) error {
	return h.call(ctx, "SyncDefinition", id, func(d *domain) error {
		if !d.Persistent {
			return errTransient
		}
		return nil
	})
}

// SetMetadata stores our XML element; "" removes it.
func (h *Host) SetMetadata(ctx context.Context, id, xml string) error {
	return h.call(ctx, "SetMetadata", id, func(d *domain) error {
		// Shared by the live and the persistent definition here. Without the latter
		// there is nowhere to keep it.
		if d.Persistent {
			d.Metadata = xml
		}
		return nil
	})
}
