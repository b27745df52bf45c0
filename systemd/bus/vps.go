package bus

import (
	"context"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// Snapshots takes, restores and deletes snapshots.
type Snapshots interface {
	DescribeSnapshot(ctx context.Context, ref, description string, a vps.Actor) (vps.Snapshot, error)
	Take(ctx context.Context, ref string, r vps.TakeRequest, a vps.Actor) (vps.Operation, error)
	Restore(ctx context.Context, ref string, r vps.RestoreRequest, a vps.Actor) (vps.Operation, error)
	UndoRestore(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)
	Delete(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)
}

// Vouchers takes the word of operators.
type Vouchers interface {
	Vouch(ctx context.Context, ref, confirm string, a vps.Actor) (vps.Snapshot, error)
}

// Options keeps what customers order.
type Options interface {
	Option(ctx context.Context, ref string) (vps.Option, error)
	PutOption(ctx context.Context, ref string, o vps.OptionOrder, a vps.Actor) (vps.Option, error)
	CancelOption(ctx context.Context, ref string, now bool, a vps.Actor) (vps.Option, error)
}

// show answers Show with the same properties that a subscriber would see change. It asks
// libvirt itself, unlike the properties.
func (s *server) show(c *call) ([]any, error) {
	v, err := s.Services.Overview.ShowVPS(c.ctx, c.id)
	if err != nil {
		return nil, err
	}
	return []any{vpsProperties(v)}, nil
}

// take answers Take.
func (s *server) take(c *call) ([]any, error) {
	var r vps.TakeRequest
	var quiesce string
	err := options(
		c.args[0].(map[string]dbus.Variant),
		map[string]any{"description": &r.Description, "quiesce": &quiesce, "replace": &r.Replace},
	)
	if err != nil {
		return nil, err
	}
	r.Quiesce = vps.Quiesce(quiesce)
	return c.begun(s.Services.Snapshots.Take(c.ctx, c.id, r, c.actor))
}

// restore answers Restore. The caller repeats the name of the VPS as confirmation, as in
// REST.
func (s *server) restore(c *call) ([]any, error) {
	var power string
	if err := options(c.args[1].(map[string]dbus.Variant), map[string]any{"power_after": &power}); err != nil {
		return nil, err
	}
	r := vps.RestoreRequest{Confirm: c.args[0].(string), PowerAfter: vps.PowerAfter(power)}
	return c.begun(s.Services.Snapshots.Restore(c.ctx, c.id, r, c.actor))
}

func (s *server) undoRestore(c *call) ([]any, error) {
	return c.begun(s.Services.Snapshots.UndoRestore(c.ctx, c.id, c.actor))
}

func (s *server) delete(c *call) ([]any, error) {
	return c.begun(s.Services.Snapshots.Delete(c.ctx, c.id, c.actor))
}

func (s *server) describe(c *call) ([]any, error) {
	_, err := s.Services.Snapshots.DescribeSnapshot(c.ctx, c.id, c.args[0].(string), c.actor)
	return nil, err
}

// vouch answers Vouch. Without the confirmation the error tells what differs.
func (s *server) vouch(c *call) ([]any, error) {
	_, err := s.Services.Vouchers.Vouch(c.ctx, c.id, c.args[0].(string), c.actor)
	return nil, err
}

func (s *server) getOption(c *call) ([]any, error) {
	o, err := s.Services.Options.Option(c.ctx, c.id)
	return []any{optionDict(&o)}, err
}

// setOption answers SetOption, the activation call of order systems on the same host.
func (s *server) setOption(c *call) ([]any, error) {
	order, err := orderOf(c.args[0].(string), c.args[1].(map[string]dbus.Variant))
	if err != nil {
		return nil, err
	}
	o, err := s.Services.Options.PutOption(c.ctx, c.id, order, c.actor)
	return []any{optionDict(&o)}, err
}

func (s *server) cancelOption(c *call) ([]any, error) {
	o, err := s.Services.Options.CancelOption(c.ctx, c.id, c.args[0].(bool), c.actor)
	return []any{optionDict(&o)}, err
}

type listedDisk struct {
	Target, Format string
	Size           uint64
	Included       bool
	Reason         string
}

type verdict struct {
	Allowed      bool
	Code, Reason string
}

func verdictOf(v vps.Verdict) verdict {
	return verdict{v.Allowed, string(v.Code), text(v.Reason.String())}
}

// vpsProperties are those of the interface, as D-Bus types. The sentences are in
// English: the bus knows no language of its caller.
func vpsProperties(v vps.VPS) dict {
	disks := []listedDisk{}
	for _, d := range v.Disks {
		disks = append(
			disks, listedDisk{text(d.Target), text(d.Format), bytes(d.SizeBytes), d.Included, text(d.Reason.String())},
		)
	}
	// D-Bus has no empty path; "/" stands for none, as in systemd's interfaces.
	operation := nowhere
	if v.Operation != nil {
		operation = operationPath(v.Operation.ID)
	}
	return dict{
		"ID":    dbus.MakeVariant(v.ID),
		"Name":  dbus.MakeVariant(text(v.Name)),
		"State": dbus.MakeVariant(string(v.State)),
		"Agent": dbus.MakeVariant(string(v.Agent)),
		"Disks": dbus.MakeVariant(disks),
		"Actions": dbus.MakeVariant(map[string]verdict{
			"take": verdictOf(v.Actions.Take), "restore": verdictOf(v.Actions.Restore),
			"undo_restore": verdictOf(v.Actions.UndoRestore), "delete": verdictOf(v.Actions.Delete),
		}),
		"Option":    dbus.MakeVariant(optionDict(v.Option)),
		"Snapshot":  dbus.MakeVariant(snapshotDict(v.Snapshot)),
		"Operation": dbus.MakeVariant(operation),
	}
}
