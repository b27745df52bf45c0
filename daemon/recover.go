package daemon

import (
	"context"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// connectWait is how long Open waits for libvirt before it goes on without.
const connectWait = 10 * time.Second

// recover takes up what an earlier process left behind. There is no separate
// "did we crash" path: every opening does this.
func (d *Daemon) recover(ctx context.Context) error {
	d.awaitHost(ctx)
	ops, err := d.store.ActiveOperations(ctx)
	if err != nil {
		return err
	}
	// Guests first: none may be frozen or suspended longer than it takes to get here.
	if err := d.guests.KeepAll(failpoint.Within(ctx, "daemon", "recover"), ops); err != nil {
		return err
	}
	if d.store.Outdated() {
		return d.parkOutdated(ctx, ops)
	}
	d.Operations.TakeUp(ops)
	return nil
}

// awaitHost waits a while for the first picture of the host.
func (d *Daemon) awaitHost(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	if d.inventory.Await(ctx, "", 0, func() (bool, error) { return d.inventory.Ready(), nil }) != nil {
		d.logger.Warn("libvirt does not answer; recovery goes on when it does")
	}
}

// parkOutdated leaves every operation of an old copy of the database to an
// operator: it has ended long since, and going on with it would repoint or exchange
// the disks of a VPS that has another snapshot by now. No token of it is believed.
// All else is compared with the host, whose word counts.
func (d *Daemon) parkOutdated(ctx context.Context, ops []vps.Operation) error {
	d.logger.Error(
		"the database is older than what was recorded last: an old copy was put back, or it was lost. The host's "+
			"word counts; see vpssnap doctor. All tokens were revoked; see vpssnap token create",
		vps.LogEvent(vps.LogDatabaseOld), "operations", len(ops),
	)
	why := func(op vps.Operation) *vps.Error {
		return vps.Errorf(vps.CodeVPSChanged,
			"the record of %s is an old copy: this operation has probably ended since, and going on with it could "+
				"cost data", op.VPSName).
			WithRemedy("stop vpssnapd, move its database away (vpssnapd.db*), and make a new one from the host " +
				"(vpssnapd rebuild); only if the database is the right one after all, resume the operation")
	}
	err := d.store.Write(failpoint.Within(ctx, "daemon", "recover"), func(tx *store.Tx) error {
		if err := d.Operations.Park(ctx, tx, ops, why); err != nil {
			return err
		}
		// It would bring back those that were revoked since.
		if err := tx.RevokeAll(ctx); err != nil {
			return err
		}
		return tx.AddMessage(ctx, vps.Message{Kind: vps.MessageWarning, Actor: vps.ActorWatch,
			Phrase: vps.PhraseOldDatabase,
			Detail: "an old copy was put back, or it was lost; what the host says counts; all tokens were revoked: " +
				"make new ones"})
	})
	if err != nil {
		return err
	}
	return d.store.Accept(ctx)
}
