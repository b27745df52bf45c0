package option

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// deadlineCheck is how often the clock is compared with the deadlines even
// when none seems near: the clock may have been set.
const deadlineCheck = time.Minute

// noticedLate is how late the end of an option may be noticed without its grace
// becoming longer for that. After a long stop, or when the clock was set forward,
// the grace begins when the customer can read of it, and not in the past.
const noticedLate = time.Hour

// Watch does what time brings: options end, graces end, undos end, and
// customers are reminded of it. All deadlines are stored as points in time, so it
// does not matter when the daemon was down, and a clock that goes backwards only
// makes everything last longer.
func (opts *Options) Watch(ctx context.Context) {
	for {
		opts.Meet(ctx)
		wait := deadlineCheck
		// An error only means the regular check.
		if next, err := opts.store.NextDeadline(ctx); err == nil && next != nil {
			wait = min(wait, untilDeadline(next.Sub(opts.store.Now())))
		}
		select {
		case <-ctx.Done():
			return
		case <-opts.deadlines:
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

// Changed makes Watch look again.
func (opts *Options) Changed() { opts.deadlines.Wake() }

// Meet does everything that is due.
func (opts *Options) Meet(ctx context.Context) {
	ctx = failpoint.Within(ctx, "daemon", "expiry")
	now := opts.store.Now()
	options, err := opts.optionsToLookAt(ctx, now)
	if err != nil {
		opts.logger.Error("options not read", "error", err)
		return
	}
	over := map[string]bool{}
	for _, o := range options {
		if isDue(o, now) {
			over[o.VPS] = true
			if o, err = opts.endOption(ctx, o, now); err != nil {
				opts.logger.Error("option not ended", opts.inventory.LogAttr(o.VPS), "error", err)
			}
			// Beside the loop: a VPS that does not answer must not delay the end of the
			// others' options.
			opts.group.Once("end the grace of "+o.VPS, func(context.Context) { opts.endGrace(ctx, o.VPS) })
		}
		if err := opts.mails.Remind(ctx, o); err != nil {
			opts.logger.Error("customer not reminded", opts.inventory.LogAttr(o.VPS), "error", err)
		}
	}
	opts.tries.keepOnly(over)
	snapshots, err := opts.store.EndedUndos(ctx, now)
	if err != nil {
		opts.logger.Error("snapshots not read", "error", err)
		return
	}
	for _, s := range snapshots {
		opts.group.Once("end the undo of "+s.VPS, func(context.Context) {
			if err := opts.snapshots.ExpireUndo(ctx, s.VPS); err != nil {
				opts.logger.Error("undo not ended", opts.inventory.LogAttr(s.VPS), "error", err)
			}
		})
	}
}

// optionsToLookAt are the options whose time is over, or all that are open where
// customers are reminded before it is.
func (opts *Options) optionsToLookAt(ctx context.Context, now time.Time) ([]vps.Option, error) {
	if opts.mails.On() {
		return opts.store.OpenOptions(ctx)
	}
	return opts.store.DueOptions(ctx, now)
}

// isDue reports whether the time of an option, or its grace, is over.
func isDue(o vps.Option, now time.Time) bool {
	end := o.EndsAt
	if o.State == vps.OptionGrace {
		end = o.GraceUntil
	}
	return end != nil && !now.Before(*end)
}

// endOption moves an option whose time is over into its grace, and returns it as it is then.
func (opts *Options) endOption(ctx context.Context, o vps.Option, now time.Time) (vps.Option, error) {
	over := func(o vps.Option) bool { return o.State != vps.OptionGrace && isDue(o, now) }
	if !over(o) {
		return o, nil
	}
	ended, err := opts.toGrace(ctx, o.VPS, vps.ActorExpiry, "its time is over", func(o *vps.Option) bool {
		if !over(*o) {
			return false // renewed meanwhile
		}
		from := *o.EndsAt
		if now.Sub(from) > noticedLate {
			from = now
		}
		until := from.Add(opts.policy().Grace)
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
func (opts *Options) graceOver(ctx context.Context, tx *store.Tx, vpsID string) (vps.Option, bool, error) {
	o, err := tx.OpenOption(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) {
		return o, false, nil
	}
	return o, err == nil && o.State == vps.OptionGrace && isDue(o, opts.store.Now()), err
}

// stillOver refuses what the end of a grace begins once the option was renewed.
func (opts *Options) stillOver(vpsID string) func(context.Context, *store.Tx) error {
	return func(ctx context.Context, tx *store.Tx) error {
		_, over, err := opts.graceOver(ctx, tx, vpsID)
		if err == nil && !over {
			err = vps.Errorf(vps.CodeVPSChanged, "the option was renewed")
		}
		return err
	}
}

// endGrace deletes the snapshot of an option whose grace is over; when there
// is none (any more), the option is released. Until then it is tried again.
func (opts *Options) endGrace(ctx context.Context, vpsID string) {
	rec, err := opts.store.Record(ctx, vpsID)
	if err != nil || rec.Option == nil || rec.Option.State != vps.OptionGrace || !isDue(*rec.Option, opts.store.Now()) ||
		rec.Operation != nil {
		return
	}
	if rec.Snapshot == nil {
		if err := opts.releaseOption(ctx, vpsID, false); err != nil {
			opts.logger.Error("option not released", opts.inventory.LogAttr(vpsID), "error", err)
		}
		return
	}
	if !opts.tries.due(vpsID, opts.store.Now()) {
		return
	}
	// With the guard in the transaction that begins the deletion: an order that comes at
	// this moment wins.
	_, err = opts.snapshots.DeleteIf(ctx, vpsID, vps.ActorExpiry, opts.stillOver(vpsID))
	gone := vps.CodeOf(err) == vps.CodeNotFound
	switch again := opts.tries.missed(vpsID, gone, opts.store.Now()); {
	case gone && again:
		if err := opts.releaseOption(ctx, vpsID, true); err != nil {
			opts.logger.Error("option not released", opts.inventory.LogAttr(vpsID), "error", err)
		}
	case vps.CodeOf(err) == vps.CodeOperationInProgress:
		opts.tries.forget(vpsID) // the end of that operation is the next occasion
	case err != nil:
		opts.logger.Warn("snapshot of an ended option not deleted", opts.inventory.LogAttr(vpsID), "error", err)
	}
}

// releaseOption ends an option whose grace is over, when its snapshot is gone, or
// its VPS is.
func (opts *Options) releaseOption(ctx context.Context, vpsID string, gone bool) error {
	return opts.store.Write(ctx, func(tx *store.Tx) error { return opts.release(ctx, tx, vpsID, gone) })
}

// release ends an option whose grace is over, unless it was renewed or a snapshot was taken
// since the caller looked.
func (opts *Options) release(ctx context.Context, tx *store.Tx, vpsID string, gone bool) error {
	current, over, err := opts.graceOver(ctx, tx, vpsID)
	if err != nil || !over {
		return err // or renewed meanwhile
	}
	if _, err := tx.CurrentSnapshot(ctx, vpsID); !gone && !errors.Is(err, sql.ErrNoRows) {
		return err // taken meanwhile, before the option ended again
	}
	now := opts.store.Now()
	current.State, current.ReleasedAt, current.UpdatedAt = vps.OptionReleased, &now, now
	if err := tx.SaveOption(ctx, current, vps.ActorExpiry, "released"); err != nil {
		return err
	}
	m := vps.Message{
		VPS:     vpsID,
		VPSName: opts.inventory.Name(vpsID),
		Kind:    vps.MessageOptionChanged,
		Actor:   vps.ActorExpiry,
		Phrase:  vps.PhraseOptionReleased,
	}
	if gone {
		m.Detail = "the VPS is gone from the host, so its snapshot could not be deleted; vpssnap doctor says what can be done"
	}
	return tx.AddMessage(ctx, m)
}

// retryExpiry is how long a deletion that failed waits for its next try.
const retryExpiry = 10 * time.Minute

// lastTries remembers when something was last tried, per VPS.
type lastTries struct {
	mu   sync.Mutex
	at   map[string]time.Time
	gone map[string]time.Time // when the VPS was last missed, if it was at the last try
}

// goneLately is how long ago a VPS may have been missed for that to count: months
// later it is another moment of absence.
const goneLately = 6 * retryExpiry

// missed notes whether a VPS was gone at this try, and reports whether it was at the
// one before: a panel may define a VPS again, and for a moment it is not there.
func (l *lastTries) missed(id string, gone bool, now time.Time) (before bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, was := l.gone[id]
	delete(l.gone, id)
	if !gone {
		return false
	}
	if l.gone == nil {
		l.gone = map[string]time.Time{}
	}
	l.gone[id] = now
	return was && now.Sub(last) <= goneLately
}

// due reports whether it is time to try (again), and if so notes the try.
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

// keepOnly forgets the tries of VPSes whose time is not over any more.
func (l *lastTries) keepOnly(over map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.at, func(id string, _ time.Time) bool { return !over[id] })
	maps.DeleteFunc(l.gone, func(id string, _ time.Time) bool { return !over[id] })
}
