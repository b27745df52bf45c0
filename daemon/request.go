package daemon

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// record is what is stored about one VPS.
type record struct {
	option    *vps.Option
	snapshot  *vps.Snapshot
	operation *vps.Operation
}

// reader is the store or a transaction.
type reader interface {
	OpenOption(ctx context.Context, vpsID string) (vps.Option, error)
	CurrentSnapshot(ctx context.Context, vpsID string) (vps.Snapshot, error)
	ActiveOperation(ctx context.Context, vpsID string) (vps.Operation, error)
}

// readRecord reads the operation first: when there is none, and none can begin
// because the reader holds the VPS's lock, what is read after it is the present
// state, and not that of before an operation which ended in between.
func readRecord(ctx context.Context, r reader, vpsID string) (record, error) {
	op, err1 := r.ActiveOperation(ctx, vpsID)
	o, err2 := r.OpenOption(ctx, vpsID)
	s, err3 := r.CurrentSnapshot(ctx, vpsID)
	var rec record
	for _, e := range []struct {
		err error
		set func()
	}{{err1, func() { rec.operation = &op }}, {err2, func() { rec.option = &o }}, {err3, func() { rec.snapshot = &s }}} {
		switch {
		case e.err == nil:
			e.set()
		case !errors.Is(e.err, sql.ErrNoRows):
			return rec, e.err
		}
	}
	return rec, nil
}

const (
	// answerWithin is how long a request waits for a VPS to be read from the host.
	answerWithin = 10 * time.Second
	// showWithin is how long one waits that can do with what was known last.
	showWithin = 3 * time.Second
)

// resolve finds a VPS by id or name and reads it anew from the host.
func (d *Daemon) resolve(ctx context.Context, ref string) (hypervisor.Domain, error) {
	known, ok := d.inventory.find(ref)
	if !ok {
		if !d.inventory.ready() {
			return known, errDisconnected()
		}
		return known, errNoVPS()
	}
	if err := d.nameIsClear(ctx, ref, known); err != nil {
		return known, err
	}
	dom, err := d.inventory.sized(ctx, known.ID)
	switch {
	case errors.Is(err, hypervisor.ErrNotFound):
		return dom, errNoVPS()
	case errors.Is(err, hypervisor.ErrUnavailable) && d.inventory.ready():
		return known, errSilent(known).Because(err)
	case err != nil:
		return dom, explainAs("cannot read the VPS", err)
	}
	return dom, nil
}

// errSilent: libvirt answers, but not about this VPS.
func errSilent(dom hypervisor.Domain) *vps.Error {
	return vps.Errorf(vps.CodeHypervisorUnavailable, "%s does not answer its host", dom.Name).
		WithRemedy("its QEMU process or its storage hangs (virsh domcontrol %s tells); try again when it is cured", dom.Name)
}

// errNoVPS is the same for a VPS that does not exist and for another customer's.
func errNoVPS() error { return vps.Errorf(vps.CodeNotFound, "no such VPS") }

func errDisconnected() error {
	return vps.Errorf(vps.CodeHypervisorUnavailable, "libvirt does not answer").WithRemedy("wait until libvirt is back, then try again")
}

// request is how every operation begins: under the VPS's lock the wish is
// checked against the host and the record, and made durable. check may prepare
// what goes into the record; insert writes it in the operation's own transaction.
type request struct {
	kind   vps.Kind
	actor  vps.Actor
	body   any
	check  func(dom hypervisor.Domain, rec record, op *vps.Operation) error
	insert func(tx *store.Tx) error
}

// accept makes an operation durable and starts it.
func (d *Daemon) accept(ctx context.Context, ref string, r request) (vps.Operation, error) {
	if !d.inventory.ready() {
		return vps.Operation{}, errDisconnected()
	}
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Operation{}, err
	}
	release, dom, err := d.lockAndRead(ctx, id)
	if err != nil {
		return vps.Operation{}, err
	}
	defer release()
	if dom.MigratedAway {
		return vps.Operation{}, errMigrated(dom)
	}
	rec, err := readRecord(ctx, d.store, dom.ID)
	if err != nil {
		return vps.Operation{}, err
	}
	now := d.now()
	op := vps.Operation{
		ID: newOperationID(now), VPS: dom.ID, VPSName: dom.Name, Kind: r.kind, Status: vps.StatusPending,
		Actor: r.actor, CreatedAt: now,
	}
	if op.Request, err = json.Marshal(r.body); err != nil {
		return op, fmt.Errorf("cannot record the request: %w", err)
	}
	if err := r.check(dom, rec, &op); err != nil {
		return op, err
	}
	err = d.store.Write(failpoint.Within(ctx, string(op.Kind), "request"), func(tx *store.Tx) error {
		if err := tx.InsertOperation(ctx, op); err != nil {
			return err
		}
		if r.insert != nil {
			if err := r.insert(tx); err != nil {
				return err
			}
		}
		if err := d.journalOperation(ctx, tx, op); err != nil {
			return err
		}
		return d.remember(ctx, tx, op)
	})
	if store.IsUnique(err) {
		return op, errInProgress(dom.Name)
	}
	if err != nil {
		return op, err
	}
	d.runner.Start(op)
	return op, nil
}

// lockAndRead takes the lock of a VPS and reads it, within bounds.
func (d *Daemon) lockAndRead(ctx context.Context, id string) (release func(), dom hypervisor.Domain, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	release, err = d.locks.acquire(ctx, id)
	if err != nil {
		return nil, dom, vps.Errorf(vps.CodeHypervisorUnavailable, "another request for %s waits for its host", d.names.name(id)).
			WithRemedy("try again in a while").Because(err)
	}
	if dom, err = d.resolve(ctx, id); err != nil {
		release()
	}
	return release, dom, err
}

func errInProgress(name string) error {
	return vps.Errorf(vps.CodeOperationInProgress, "another operation of %s is not finished", name).
		WithRemedy("wait for it to end (GET /v1/operations), then ask again")
}

// refused turns a verdict into the error of a call.
func refused(v vps.Verdict, remedy vps.Words) error {
	if v.Allowed {
		return nil
	}
	return vps.Refuse(v.Code, v.Reason, remedy)
}

// setPlan keeps in a new operation what its steps will need.
func setPlan(op *vps.Operation, notes any) error {
	plan, err := json.Marshal(notes)
	if err != nil {
		return fmt.Errorf("cannot record the plan: %w", err)
	}
	op.Plan = plan
	return nil
}

// readPlan reads what setPlan, or a step, kept.
func readPlan(op vps.Operation, notes any) error {
	if err := json.Unmarshal(op.Plan, notes); err != nil {
		return fmt.Errorf("the plan of operation %s cannot be read: %w", op.ID, err)
	}
	return nil
}
