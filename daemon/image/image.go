// Package image knows the images of VPSes: which disks a snapshot covers, whether an
// image can become its base, what it lies on, who else uses it, and how our own files
// are named.
package image

import (
	"log/slog"

	"golang.org/x/sync/semaphore"

	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/hypervisor"
)

// Images reads the images of one host.
type Images struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	policy    func() Policy
	logger    *slog.Logger
	headers   headerCache
	comparing *semaphore.Weighted // see comparedAtOnce
}

// New makes the reader of a host's images.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, policy func() Policy, logger *slog.Logger,
) *Images {
	return &Images{
		host: host, inventory: inv, store: db, policy: policy, logger: logger,
		comparing: semaphore.NewWeighted(comparedAtOnce),
	}
}
