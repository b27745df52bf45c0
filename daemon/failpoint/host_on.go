//go:build failpoints

package failpoint

import (
	"context"
	"time"

	"vpssnapd/hypervisor"
)

// Host returns h with points around every call that changes something.
func Host(h hypervisor.Host) hypervisor.Host { return &pointedHost{h} }

// pointedHost is a host whose every effect has a failpoint before and after.
type pointedHost struct{ hypervisor.Host }

func (h *pointedHost) Freeze(ctx context.Context, id string, limit time.Duration) error {
	return Around(ctx, "Freeze", func() error { return h.Host.Freeze(ctx, id, limit) })
}

func (h *pointedHost) Thaw(ctx context.Context, id string, limit time.Duration) error {
	return Around(ctx, "Thaw", func() error { return h.Host.Thaw(ctx, id, limit) })
}

func (h *pointedHost) SwitchToOverlays(ctx context.Context, id string, disks []hypervisor.DiskSwitch) error {
	return Around(ctx, "SwitchToOverlays", func() error { return h.Host.SwitchToOverlays(ctx, id, disks) })
}

func (h *pointedHost) TakeBackSwitch(
	ctx context.Context, id string, disks []hypervisor.DiskSwitch, pivot bool,
) (job hypervisor.Job, err error) {
	err = Around(ctx, "TakeBackSwitch", func() error {
		job, err = h.Host.TakeBackSwitch(ctx, id, disks, pivot)
		return err
	})
	return job, err
}

func (h *pointedHost) AllowMerge(ctx context.Context, id string, bases []string) error {
	return Around(ctx, "AllowMerge", func() error { return h.Host.AllowMerge(ctx, id, bases) })
}

func (h *pointedHost) StartMerge(ctx context.Context, id string, m hypervisor.Merge) error {
	return Around(ctx, "StartMerge", func() error { return h.Host.StartMerge(ctx, id, m) })
}

func (h *pointedHost) SetMergeSpeed(ctx context.Context, id, target string, bytesPerSecond int64) error {
	return Around(ctx, "SetMergeSpeed", func() error { return h.Host.SetMergeSpeed(ctx, id, target, bytesPerSecond) })
}

func (h *pointedHost) Pivot(ctx context.Context, id, target string) error {
	return Around(ctx, "Pivot", func() error { return h.Host.Pivot(ctx, id, target) })
}

func (h *pointedHost) AbortMerge(ctx context.Context, id, target string) error {
	return Around(ctx, "AbortMerge", func() error { return h.Host.AbortMerge(ctx, id, target) })
}

func (h *pointedHost) PointDisks(ctx context.Context, id string, disks []hypervisor.DiskSource) error {
	return Around(ctx, "PointDisks", func() error { return h.Host.PointDisks(ctx, id, disks) })
}

func (h *pointedHost) SyncDefinition(ctx context.Context, id string) error {
	return Around(ctx, "SyncDefinition", func() error { return h.Host.SyncDefinition(ctx, id) })
}

func (h *pointedHost) SetMetadata(ctx context.Context, id, xml string) error {
	return Around(ctx, "SetMetadata", func() error { return h.Host.SetMetadata(ctx, id, xml) })
}

func (h *pointedHost) Suspend(ctx context.Context, id string) error {
	return Around(ctx, "Suspend", func() error { return h.Host.Suspend(ctx, id) })
}

func (h *pointedHost) Resume(ctx context.Context, id string) error {
	return Around(ctx, "Resume", func() error { return h.Host.Resume(ctx, id) })
}

func (h *pointedHost) PowerOff(ctx context.Context, id string) error {
	return Around(ctx, "PowerOff", func() error { return h.Host.PowerOff(ctx, id) })
}

func (h *pointedHost) Start(ctx context.Context, id string, paused bool) error {
	return Around(ctx, "Start", func() error { return h.Host.Start(ctx, id, paused) })
}

func (h *pointedHost) RemoveManagedSave(ctx context.Context, id string) error {
	return Around(ctx, "RemoveManagedSave", func() error { return h.Host.RemoveManagedSave(ctx, id) })
}

func (h *pointedHost) CreateOverlay(ctx context.Context, o hypervisor.Overlay) (file hypervisor.File, err error) {
	err = Around(ctx, "CreateOverlay", func() error { file, err = h.Host.CreateOverlay(ctx, o); return err })
	return file, err
}

func (h *pointedHost) Copy(ctx context.Context, src, dst string) (file hypervisor.File, err error) {
	err = Around(ctx, "Copy", func() error { file, err = h.Host.Copy(ctx, src, dst); return err })
	return file, err
}

func (h *pointedHost) MergeOffline(ctx context.Context, m hypervisor.OfflineMerge, progress func(done, total int64)) error {
	return Around(ctx, "MergeOffline", func() error { return h.Host.MergeOffline(ctx, m, progress) })
}

func (h *pointedHost) Rebase(ctx context.Context, overlay, backing, backingFormat string) error {
	return Around(ctx, "Rebase", func() error { return h.Host.Rebase(ctx, overlay, backing, backingFormat) })
}

func (h *pointedHost) Exchange(ctx context.Context, a, b string) error {
	return Around(ctx, "Exchange", func() error { return h.Host.Exchange(ctx, a, b) })
}

func (h *pointedHost) Remove(ctx context.Context, path string, inode uint64) error {
	return Around(ctx, "Remove", func() error { return h.Host.Remove(ctx, path, inode) })
}
