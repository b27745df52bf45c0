package daemon

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// expiry is who acts when a time is over.
var expiry = vps.Actor{Name: "vpssnapd", Way: vps.WayExpiry}

// deadlineCheck is how often the clock is compared with the deadlines even
// when none seems near: the clock may have been set.
const deadlineCheck = time.Minute

// noticedLate is how late the end of an option may be noticed without its grace
// becoming longer for that. After a long stop, or when the clock was set forward,
// the grace begins when the customer can read of it, and not in the past.
const noticedLate = time.Hour

// watchDeadlines does what time brings: options end, graces end, undos end, and
// customers are reminded of it. All deadlines are stored as points in time, so it
// does not matter when the daemon was down, and a clock that goes backwards only
// makes everything last longer.
func (d *Daemon) watchDeadlines(ctx context.Context) {
	for {
		d.meetDeadlines(ctx)
		wait := deadlineCheck
		if next, err := d.store.NextDeadline(ctx); err == nil && next != nil {
			wait = min(wait, untilDeadline(next.Sub(d.now())))
		}
		select {
		case <-ctx.Done():
			return
		case <-d.deadlines:
		case <-time.After(wait):
		}
	}
}

// untilDeadline is how long to wait. What is overdue could not be done just
// now: it has its next turn with the regular check.
func untilDeadline(left time.Duration) time.Duration {
	if left < -2*time.Second {
		return deadlineCheck
	}
	return max(left, 50*time.Millisecond)
}

// deadlinesChanged makes watchDeadlines look anew.
func (d *Daemon) deadlinesChanged() {
	select {
	case d.deadlines <- struct{}{}:
	default:
	}
}

// meetDeadlines does everything that is due.
func (d *Daemon) meetDeadlines(ctx context.Context) {
	ctx = failpoint.Within(ctx, "daemon", "expiry")
	now := d.now()
	options, err := d.optionsToLookAt(ctx, now)
	if err != nil {
		d.Logger.Error("options not read", "error", err)
		return
	}
	for _, o := range options {
		if isDue(o, now) {
			if o, err = d.endOption(ctx, o, now); err != nil {
				d.Logger.Error("option not ended", d.logAttr(o.VPS), "error", err)
			}
			d.workApart("end the grace of", o.VPS, func() { d.endGrace(ctx, o.VPS) })
		}
		if err := d.remind(ctx, o); err != nil {
			d.Logger.Error("customer not reminded", d.logAttr(o.VPS), "error", err)
		}
	}
	snapshots, err := d.store.EndedUndos(ctx, now)
	if err != nil {
		d.Logger.Error("snapshots not read", "error", err)
		return
	}
	for _, s := range snapshots {
		d.workApart("end the undo of", s.VPS, func() {
			if err := d.expireUndo(ctx, s); err != nil {
				d.Logger.Error("undo not ended", d.logAttr(s.VPS), "error", err)
			}
		})
	}
}

// optionsToLookAt are the options whose time is over, or all that are open where
// customers are reminded before it is.
func (d *Daemon) optionsToLookAt(ctx context.Context, now time.Time) ([]vps.Option, error) {
	if d.mailOn() {
		return d.store.OpenOptions(ctx)
	}
	return d.store.DueOptions(ctx, now)
}

// isDue says that the time of an option, or its grace, is over.
func isDue(o vps.Option, now time.Time) bool {
	end := o.EndsAt
	if o.State == vps.OptionGrace {
		end = o.GraceUntil
	}
	return end != nil && !now.Before(*end)
}

// endOption moves an option whose time is over into its grace, and returns it as it is then.
func (d *Daemon) endOption(ctx context.Context, o vps.Option, now time.Time) (vps.Option, error) {
	over := func(o vps.Option) bool { return o.State != vps.OptionGrace && isDue(o, now) }
	if !over(o) {
		return o, nil
	}
	ended, err := d.toGrace(ctx, o.VPS, expiry, "its time is over", func(o *vps.Option) bool {
		if !over(*o) {
			return false // renewed meanwhile
		}
		from := *o.EndsAt
		if now.Sub(from) > noticedLate {
			from = now
		}
		until := from.Add(d.present().Grace)
		o.GraceUntil = &until
		return true
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return o, nil // released meanwhile
	case err != nil:
		return o, err
	}
	return ended, nil
}

// graceOver says, within a transaction, that the grace of a VPS's option is over.
func (d *Daemon) graceOver(ctx context.Context, tx *store.Tx, vpsID string) (vps.Option, bool, error) {
	o, err := tx.OpenOption(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) {
		return o, false, nil
	}
	return o, err == nil && o.State == vps.OptionGrace && isDue(o, d.now()), err
}

// endGrace deletes the snapshot of an option whose grace is over; when there
// is none (any more), the option is released. Until then it is tried again.
func (d *Daemon) endGrace(ctx context.Context, vpsID string) {
	rec, err := readRecord(ctx, d.store, vpsID)
	if err != nil || rec.option == nil || rec.option.State != vps.OptionGrace || !isDue(*rec.option, d.now()) || rec.operation != nil {
		return
	}
	if rec.snapshot == nil {
		if err := d.releaseOption(ctx, vpsID, false); err != nil {
			d.Logger.Error("option not released", d.logAttr(vpsID), "error", err)
		}
		return
	}
	if !d.expiryTries.due(vpsID, d.Now()) {
		return
	}
	_, err = d.Delete(ctx, vpsID, expiry)
	gone := vps.CodeOf(err) == vps.CodeNotFound
	switch again := d.expiryTries.missed(vpsID, gone); {
	case gone && again:
		if err := d.releaseOption(ctx, vpsID, true); err != nil {
			d.Logger.Error("option not released", d.logAttr(vpsID), "error", err)
		}
	case vps.CodeOf(err) == vps.CodeOperationInProgress:
		d.expiryTries.forget(vpsID) // the end of that operation is the next occasion
	case err != nil:
		d.Logger.Warn("snapshot of an ended option not deleted", d.logAttr(vpsID), "error", err)
	}
}

// releaseOption ends an option whose grace is over, when its snapshot is gone, or
// its VPS is.
func (d *Daemon) releaseOption(ctx context.Context, vpsID string, gone bool) error {
	return d.store.Write(ctx, func(tx *store.Tx) error { return d.release(ctx, tx, vpsID, gone) })
}

func (d *Daemon) release(ctx context.Context, tx *store.Tx, vpsID string, gone bool) error {
	current, over, err := d.graceOver(ctx, tx, vpsID)
	if err != nil || !over {
		return err // or renewed meanwhile
	}
	if _, err := tx.CurrentSnapshot(ctx, vpsID); !gone && !errors.Is(err, sql.ErrNoRows) {
		return err // taken meanwhile, before the option ended again
	}
	now := d.now()
	current.State, current.ReleasedAt, current.UpdatedAt = vps.OptionReleased, &now, now
	if err := tx.SaveOption(ctx, current, expiry, "released"); err != nil {
		return err
	}
	m := vps.Message{VPS: vpsID, VPSName: d.names.name(vpsID), Kind: vps.MessageOptionChanged, Actor: expiry, Phrase: vps.PhraseOptionReleased}
	if gone {
		m.Detail = "the VPS is gone from the host, so its snapshot could not be deleted; vpssnap doctor says what can be done"
	}
	return d.say(ctx, tx, m)
}

// retryExpiry is how long a deletion that failed waits for its next try.
const retryExpiry = 10 * time.Minute

// lastTries remembers when something was last tried, per VPS.
type lastTries struct {
	mu   sync.Mutex
	at   map[string]time.Time
	gone map[string]bool // at the last try the VPS was not on the host
}

// missed notes whether a VPS was gone at this try, and says whether it was at the
// one before: a panel may define a VPS anew, and for a moment it is not there.
func (l *lastTries) missed(id string, gone bool) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before = l.gone[id]; l.gone == nil {
		l.gone = map[string]bool{}
	}
	l.gone[id] = gone
	return before
}

// due says whether it is time to try (again), and if so notes the try.
func (l *lastTries) due(id string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.at[id]; ok && now.Sub(last) < retryExpiry && !now.Before(last) {
		return false
	}
	if l.at == nil {
		l.at = map[string]time.Time{}
	}
	l.at[id] = now
	return true
}

// forget makes the next try due.
func (l *lastTries) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.at, id)
}
