// Package daemon is what the product does: it takes, restores and deletes the
// one snapshot of a VPS, keeps the option that pays for it, and recovers.
package daemon

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

type Daemon struct{}

func (d *Daemon) ListVPS(ctx context.Context) ([]vps.VPS, error)           { return nil, nil }
func (d *Daemon) ShowVPS(ctx context.Context, ref string) (vps.VPS, error) { return vps.VPS{}, nil }
func (d *Daemon) Offers() []vps.Offer                                      { return nil }
func (d *Daemon) Option(ctx context.Context, ref string) (vps.Option, error) {
	return vps.Option{}, nil
}
func (d *Daemon) PutOption(ctx context.Context, ref string, o vps.OptionOrder, a vps.Actor) (vps.Option, error) {
	return vps.Option{}, nil
}
func (d *Daemon) CancelOption(ctx context.Context, ref string, now bool, a vps.Actor) (vps.Option, error) {
	return vps.Option{}, nil
}
func (d *Daemon) Snapshot(ctx context.Context, ref string) (vps.Snapshot, error) {
	return vps.Snapshot{}, nil
}
func (d *Daemon) DescribeSnapshot(ctx context.Context, ref, description string, a vps.Actor) (vps.Snapshot, error) {
	return vps.Snapshot{}, nil
}
func (d *Daemon) Take(ctx context.Context, ref string, r vps.TakeRequest, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) Restore(ctx context.Context, ref string, r vps.RestoreRequest, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) UndoRestore(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) Delete(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) Operation(ctx context.Context, id string) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error) {
	return vps.OperationPage{}, nil
}

// WaitOperation returns the operation when it is final or parked, or after limit as it then is.
func (d *Daemon) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) CancelOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}

// ResumeOperation takes up a parked operation again.
func (d *Daemon) ResumeOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error) {
	return vps.Operation{}, nil
}
func (d *Daemon) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	return vps.MessagePage{}, nil
}
func (d *Daemon) Host(ctx context.Context) (vps.Host, error) { return vps.Host{}, nil }

// Ready is nil when the database and libvirt answer.
func (d *Daemon) Ready(ctx context.Context) error { return nil }
