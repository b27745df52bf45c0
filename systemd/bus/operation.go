package bus

import (
	"context"
	"errors"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// Operations knows the long work.
type Operations interface {
	Operation(ctx context.Context, id string) (vps.Operation, error)
	Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error)
	WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error)
	CancelOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)
	ResumeOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)
}

// mostWait is the longest that a call may wait for an operation, as in REST.
const mostWait = 5 * time.Minute

// wait answers early when the daemon stops: the caller asks again, and finds the
// next daemon.
func (s *server) wait(c *call) ([]any, error) {
	limit := min(time.Duration(c.args[0].(uint32))*time.Second, mostWait)
	// closing and not the call's time: the answer comes before the daemon goes.
	op, err := s.Services.Operations.WaitOperation(s.closing, c.id, limit)
	// It answers with the state as it is; the library has no way to say "ask again".
	if errors.Is(err, context.Canceled) {
		op, err = s.Services.Operations.Operation(c.ctx, c.id)
	}
	return []any{string(op.Status)}, err
}

// cancel answers Cancel. The operation may have passed its last step; the error says so.
func (s *server) cancel(c *call) ([]any, error) {
	op, err := s.Services.Operations.CancelOperation(c.ctx, c.id, c.actor)
	_, err = c.begun(op, err)
	return nil, err
}

// resume answers Resume: the operator has cured what stopped the operation.
func (s *server) resume(c *call) ([]any, error) {
	op, err := s.Services.Operations.ResumeOperation(c.ctx, c.id, c.actor)
	_, err = c.begun(op, err)
	return nil, err
}

type failure struct{ Name, Detail, Remedy string }

type actor struct{ Name, Way string }

// operationProperties are those of the interface, as D-Bus types: -1 stands for an
// unknown time, as D-Bus has no null. All are sent each time; the contract says which
// are told when they change.
func operationProperties(op vps.Operation) dict {
	eta := int64(-1)
	if op.Progress.ETASeconds != nil {
		eta = *op.Progress.ETASeconds
	}
	var why failure
	if op.Error != nil {
		why = failure{errorName(op.Error.Code), text(op.Error.Detail), text(op.Error.Remedy)}
	}
	return dict{
		"ID":              dbus.MakeVariant(op.ID),
		"VPS":             dbus.MakeVariant(vpsPath(op.VPS)),
		"VPSName":         dbus.MakeVariant(text(op.VPSName)),
		"Kind":            dbus.MakeVariant(string(op.Kind)),
		"Actor":           dbus.MakeVariant(actor{text(op.Actor.Name), string(op.Actor.Way)}),
		"CreatedAt":       dbus.MakeVariant(moment(&op.CreatedAt)),
		"Status":          dbus.MakeVariant(string(op.Status)),
		"Step":            dbus.MakeVariant(text(op.Step)),
		"Cancellable":     dbus.MakeVariant(!op.Irrevocable && !op.Status.Final()),
		"CancelRequested": dbus.MakeVariant(op.CancelRequested),
		"Percent":         dbus.MakeVariant(uint32(max(op.Progress.Percent, 0))), //nolint:gosec // 0 to 100
		"DoneBytes":       dbus.MakeVariant(bytes(op.Progress.DoneBytes)),
		"TotalBytes":      dbus.MakeVariant(bytes(op.Progress.TotalBytes)),
		"ETASeconds":      dbus.MakeVariant(eta),
		"Note":            dbus.MakeVariant(text(op.Progress.Note)),
		"SnapshotID":      dbus.MakeVariant(op.SnapshotID),
		"StartedAt":       dbus.MakeVariant(moment(op.StartedAt)),
		"EndedAt":         dbus.MakeVariant(moment(op.EndedAt)),
		"Result":          dbus.MakeVariant(text(op.Result)),
		"Error":           dbus.MakeVariant(why),
	}
}
