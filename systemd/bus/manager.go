package bus

import (
	"context"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// Overview shows the host and its VPSes.
type Overview interface {
	ListVPS(ctx context.Context) ([]vps.VPS, error)
	ShowVPS(ctx context.Context, ref string) (vps.VPS, error)
	// KnownVPS is ShowVPS without asking libvirt.
	KnownVPS(ctx context.Context, ref string) (vps.VPS, error)
	Host(ctx context.Context) (vps.Host, error)
}

// mostListed is how many operations are listed at once. It keeps an answer far below the
// bus's 128 MiB.
const mostListed = 500

type listedVPS struct {
	Path                              dbus.ObjectPath
	ID, Name, State, Option, Snapshot string
}

// listVPS answers ListVPS: every VPS of the host, with its option and its snapshot.
func (s *server) listVPS(c *call) ([]any, error) {
	all, err := s.Services.Overview.ListVPS(c.ctx)
	if err != nil {
		return nil, err
	}
	list := []listedVPS{}
	for _, v := range all {
		one := listedVPS{Path: vpsPath(v.ID), ID: v.ID, Name: text(v.Name), State: string(v.State)}
		if v.Option != nil {
			one.Option = string(v.Option.State)
		}
		if v.Snapshot != nil {
			one.Snapshot = string(v.Snapshot.State)
		}
		list = append(list, one)
	}
	return []any{list}, nil
}

func (s *server) getVPS(c *call) ([]any, error) {
	v, err := s.Services.Overview.KnownVPS(c.ctx, c.args[0].(string))
	return []any{vpsPath(v.ID)}, err
}

type listedOperation struct {
	Path                  dbus.ObjectPath
	ID                    string
	VPS                   dbus.ObjectPath
	VPSName, Kind, Status string
}

// listOperations answers ListOperations, the newest first, and at most mostListed: a bus
// message has an end.
func (s *server) listOperations(c *call) ([]any, error) {
	limit := c.args[2].(uint32)
	if limit < 1 || limit > mostListed {
		return nil, invalid("limit must be 1 to %d", mostListed)
	}
	page, err := s.Services.Operations.Operations(c.ctx, vps.OperationQuery{
		VPS: c.args[0].(string), Status: vps.Status(c.args[1].(string)), Limit: int(limit),
	})
	if err != nil {
		return nil, err
	}
	list := []listedOperation{}
	for _, op := range page.Operations {
		list = append(
			list,
			listedOperation{
				operationPath(op.ID),
				op.ID,
				vpsPath(op.VPS),
				text(op.VPSName),
				string(op.Kind),
				string(op.Status),
			},
		)
	}
	return []any{list}, nil
}

func (s *server) getOperation(c *call) ([]any, error) {
	op, err := s.Services.Operations.Operation(c.ctx, c.args[0].(string))
	return []any{operationPath(op.ID)}, err
}

type listedStorage struct {
	Path        string
	Total, Free uint64
	Level       string
	FullIn      uint64
}

// listStorage answers ListStorage: the directories with disks and how full they are.
func (s *server) listStorage(c *call) ([]any, error) {
	host, err := s.Services.Overview.Host(c.ctx)
	if err != nil {
		return nil, err
	}
	list := []listedStorage{}
	for _, dir := range host.Storage {
		list = append(
			list,
			listedStorage{
				text(dir.Path),
				bytes(dir.TotalBytes),
				bytes(dir.FreeBytes),
				string(dir.Level),
				bytes(dir.FullInSeconds),
			},
		)
	}
	return []any{list}, nil
}

// introspect names the children of an object only to those who may read. Nobody is asked
// for a password for it: busctl and desktop tools introspect on their own.
func (s *server) introspect(c *call) ([]any, error) {
	described, err := c.introspect(c.ctx, func() bool {
		// A copy, so that the rest of the call may still ask.
		silent := c.from
		silent.interactive = false
		return s.authorize(c.ctx, c.objects.conn.Load(), silent, actionRead) == nil
	})
	return []any{described}, err
}
