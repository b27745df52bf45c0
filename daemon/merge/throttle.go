package merge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// QEMU copies what a guest writes during a merge only after the guest has
// written it. When the guest writes faster than that, the merge never ends. It is
// then helped as a live migration helps itself: the copying gets all the speed
// there is, and then the guest is stopped for moments. In the last of them the
// merge becomes ready, and the guest stays suspended until it has pivoted.

const (
	// firstStop is how long the first stop lasts at most. When what is left then
	// can be copied within the longest, the next is as long as that. Else each may
	// last twice as long as the one before, unless that brought the end nearer.
	firstStop = 100 * time.Millisecond
	// stopPoll is how often a merge is looked at while its guest is suspended.
	stopPoll = 10 * time.Millisecond
)

// throttler watches the merge of one step, and helps it when it is outpaced.
type throttler struct {
	m    *Merger
	r    *operation.Run
	from mark // where the present time of watching began
	told bool
	stop time.Duration // how long the next stop may last; 0: none was needed yet
	left int64         // at the end of the last stop
	next time.Time     // of the next stop
}

// mark is how far a merge was at some moment.
type mark struct {
	at           time.Time
	copied, left int64
}

// look measures, and helps where that is needed. It returns true when the merge
// is ready; its guest is then suspended for the pivot.
func (c *throttler) look(ctx context.Context, dom hypervisor.Domain, set *Set, s state) (ready bool, err error) {
	policy := c.m.policy()
	switch {
	case policy.StalledAfter == 0 || !set.Active || dom.State != hypervisor.Running:
		return false, nil
	case c.stop > 0:
		return c.slow(ctx, set)
	}
	over, outpaced := c.measure(s)
	if over && !outpaced {
		c.r.Note("")
	}
	if !outpaced {
		return false, nil
	}
	if err := c.tell(ctx, s); err != nil || !policy.Help {
		return false, err
	}
	if set.Bandwidth > 0 {
		return false, c.lift(ctx, dom, set)
	}
	c.stop, c.left = min(firstStop, policy.LongestStop), s.left
	return false, nil
}

// measure reports whether the time of watching is over, and whether the guest has
// written nearly as much meanwhile as was copied.
func (c *throttler) measure(s state) (over, outpaced bool) {
	now, from := mark{time.Now(), s.copied, s.left}, c.from
	if from.at.IsZero() || s.started > 0 || now.copied < from.copied {
		c.from = now
		return false, false
	}
	if now.at.Sub(from.at) < c.m.policy().StalledAfter {
		return false, false
	}
	c.from = now
	copied, nearer := now.copied-from.copied, from.left-now.left
	return true, copied > 0 && nearer < copied/10
}

// tell reports a merge that is outpaced: to who looks at the operation, and once
// in the journal and in the log.
func (c *throttler) tell(ctx context.Context, s state) error {
	policy := c.m.policy()
	note := "the VPS writes as fast as its disk is merged"
	phrase := vps.PhraseMergeOutrun
	if policy.Help && policy.LongestStop > 0 {
		note += fmt.Sprintf("; it may be stopped for moments of at most %s until the merge has caught up",
			policy.LongestStop)
		phrase = vps.PhraseMergeStops
	}
	c.r.Note(note)
	if c.told {
		return nil
	}
	c.told = true
	op := c.r.Op
	c.m.logger.Warn("merge is outpaced by the guest's writes", op.LogAttr(), "left", s.left, "help", policy.Help)
	said := vps.Message{VPS: op.VPS, VPSName: op.VPSName, Kind: vps.MessageWarning,
		Actor: vps.ActorWatch, Operation: op.ID,
		Phrase: phrase, Params: map[string]string{"longest": policy.LongestStop.String()},
		Detail: fmt.Sprintf(
			"%d bytes are left, and do not become fewer; [merge] in the configuration says what is done about it",
			s.left,
		)}
	return c.r.Record(ctx, func(tx *store.Tx) error { return tx.AddMessage(ctx, said) })
}

// lift gives the copying all the speed there is.
func (c *throttler) lift(ctx context.Context, dom hypervisor.Domain, set *Set) error {
	for _, disk := range set.Snap.Disks {
		err := c.m.host.SetMergeSpeed(ctx, c.r.Op.VPS, image.LiveName(dom, disk), 0)
		if err != nil && !errors.Is(err, hypervisor.ErrOff) {
			return fmt.Errorf("limit of the merge of disk %s not lifted: %w", disk.Target, err)
		}
	}
	set.Bandwidth = 0
	return nil
}

// slow stops the guest when it is time to. In between it runs for a while.
func (c *throttler) slow(ctx context.Context, set *Set) (ready bool, err error) {
	if time.Now().Before(c.next) {
		return false, nil
	}
	s, err := c.m.stop(ctx, c.r, *set, c.stop)
	if errors.Is(err, hypervisor.ErrOff) {
		return false, nil // the next look sees it off
	}
	if err != nil || s.waiting == 0 {
		return err == nil, err
	}
	longest := c.m.policy().LongestStop
	switch {
	case s.rate > 0 && float64(s.left) < s.rate*longest.Seconds():
		c.stop = longest // and over as soon as the merge is ready
	case s.left >= c.left/10*9:
		c.stop = min(2*c.stop, longest)
	}
	c.left, c.next = s.left, time.Now().Add(min(mergePoll, c.m.policy().StalledAfter))
	return false, nil
}

// stop stops the guest until its merge is ready, but not for longer than
// limit. When it became ready, the guest is suspended when this returns, and is
// owed to run again.
func (m *Merger) stop(ctx context.Context, r *operation.Run, set Set, limit time.Duration) (s state, err error) {
	if err := m.guests.Suspend(ctx, r); err != nil {
		return s, errors.Join(err, m.guests.Resume(ctx, r.Op.VPS))
	}
	stop, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, err = m.watchStopped(stop, r, set)
	if err == nil && s.waiting == 0 {
		return s, nil
	}
	if e := m.guests.Resume(ctx, r.Op.VPS); e != nil {
		return s, e
	}
	if stop.Err() != nil && ctx.Err() == nil {
		err = nil // its time was over
	}
	return s, err
}

// watchStopped watches a merge while its guest is suspended: until it is ready,
// somebody lets the guest run, or ctx ends.
func (m *Merger) watchStopped(ctx context.Context, r *operation.Run, set Set) (last state, err error) {
	last.waiting = len(set.Snap.Disks) // nothing is known yet
	var first state
	for began := time.Now(); ; {
		dom, err := m.inventory.Read(ctx, r.Op.VPS)
		if err != nil {
			return last, err
		}
		s, err := m.push(ctx, dom, set)
		if err != nil {
			return last, err
		}
		if last.total == 0 {
			first = s
		}
		if took := time.Since(began).Seconds(); took > 0 && s.waiting == first.waiting {
			s.rate = float64(s.copied-first.copied) / took
		}
		if last = s; s.waiting == 0 || dom.State == hypervisor.Running {
			return last, nil
		}
		r.Progress(s.done, s.total)
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(stopPoll):
		}
	}
}
