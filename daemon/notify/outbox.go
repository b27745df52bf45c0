// Package notify carries to the outside what the daemon has to tell: an outbox that tries
// until a target has taken it, and the customers' e-mails.
package notify

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
)

// The outbox carries to the outside what the daemon has to tell: webhooks and
// e-mail. What is to be sent is recorded with Tx.AddDelivery, in the transaction of
// what it reports, and a Sender of its kind carries it here, at least once: a try
// is recorded after it was made, so one that a crash interrupts is made again, with
// the same id. Order is not kept.
//
// Each target has one delivery under way at a time, on a goroutine of its own.

const (
	// triedFor is how long a delivery is tried at most; then it is given up.
	triedFor = 24 * time.Hour
	// firstPause and longestPause are the bounds of the time between two tries; it
	// doubles with each, and varies by half, so that what failed together is not
	// tried together.
	firstPause   = 5 * time.Second
	longestPause = time.Hour
	// tryWithin is how long a try may take, whatever its sender allows it.
	tryWithin = time.Minute
	// outboxCheck is how often the outbox is looked at when nothing is said to be
	// due: the clock may have been set.
	outboxCheck = time.Minute
	// outboxPause is how soon it is looked at again while something is due whose
	// target is busy.
	outboxPause = time.Second
	// longestError is how much is kept of why a try failed, in bytes.
	longestError = 500
	// givenUpSaid is how often it is said of one target that deliveries to it are
	// given up: a receiver that is gone has many.
	givenUpSaid = time.Hour
)

// Sender carries the deliveries of one kind.
type Sender interface {
	// Send tries once. nil: the target has taken it, and it is not sent again. What
	// an error says of further tries: vps.DeliveryError. It returns when ctx ends,
	// and may be called for several targets at the same time.
	Send(ctx context.Context, d vps.Delivery) error
}

// Noter is a Sender that records what came of a try, in the transaction that records
// the try itself. failed is nil when the target took it.
type Noter interface {
	Note(ctx context.Context, tx *store.Tx, target string, failed error) error
}

// Outbox is what one host has to tell.
type Outbox struct {
	store   *store.Store
	group   *work.Group
	senders map[vps.DeliveryKind]Sender
	tried   func(vps.Delivery)
	logger  *slog.Logger
	held    sync.Map // by key, until when a target wants to be left alone
}

// NewOutbox makes an outbox. What was recorded for a sender that is missing waits for
// it, and is given up after a day. tried is told of every try.
func NewOutbox(
	db *store.Store, group *work.Group, senders map[vps.DeliveryKind]Sender, tried func(vps.Delivery),
	logger *slog.Logger,
) *Outbox {
	return &Outbox{store: db, group: group, senders: senders, tried: tried, logger: logger}
}

// send hands a delivery to the sender of its kind.
func (o *Outbox) send(ctx context.Context, what vps.Delivery) error {
	ctx, cancel := context.WithTimeout(ctx, tryWithin)
	defer cancel()
	sender := o.senders[what.Kind]
	if sender == nil {
		return errors.New("the configuration has nothing to send it with any more")
	}
	return sender.Send(ctx, what)
}

// Run sends what is due until ctx ends.
func (o *Outbox) Run(ctx context.Context) {
	for {
		wait := o.Look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-o.store.Queued():
		case <-time.After(wait):
		}
	}
}

// Look sees to it that every target that something is due for is worked
// at, and returns when to look again.
func (o *Outbox) Look(ctx context.Context) time.Duration {
	queues, err := o.store.DeliveryQueues(ctx)
	if err != nil {
		if ctx.Err() == nil {
			o.logger.Error("outbox not read", "error", err)
		}
		return outboxCheck
	}
	o.forgetHeld()
	wait, now := outboxCheck, o.store.Now()
	for _, q := range queues {
		wait = min(wait, max(q.NextAt.Sub(now), outboxPause))
		o.group.Once("deliver to "+outboxKey(q.Kind, q.Target), func(context.Context) { o.deliverTo(ctx, q.Kind, q.Target) })
	}
	return wait
}

func outboxKey(kind vps.DeliveryKind, target string) string { return string(kind) + " " + target }

// isHeld reports whether a target wants to be left alone. That is not recorded: a restart
// costs one try at most.
func (o *Outbox) isHeld(kind vps.DeliveryKind, target string) bool {
	until, ok := o.held.Load(outboxKey(kind, target))
	if !ok {
		return false
	}
	return o.holds(until)
}

// holds reports whether a time until which a target is held lies ahead, and no further
// than any pause: else the clock was set back.
func (o *Outbox) holds(until any) bool {
	left := until.(time.Time).Sub(o.store.Now()) //nolint:forcetypeassert // the only type that is stored
	return left > 0 && left <= longestPause
}

// forgetHeld forgets what no longer holds, also of targets that nothing more is sent to.
func (o *Outbox) forgetHeld() {
	o.held.Range(func(key, until any) bool {
		if !o.holds(until) {
			o.held.Delete(key)
		}
		return true
	})
}

// deliverTo sends one after the other what is due for a target.
func (o *Outbox) deliverTo(ctx context.Context, kind vps.DeliveryKind, target string) {
	ctx = failpoint.Within(ctx, "daemon", "outbox")
	for ctx.Err() == nil && !o.isHeld(kind, target) {
		what, err := o.store.DueDelivery(ctx, kind, target, o.store.Now())
		if errors.Is(err, sql.ErrNoRows) {
			return
		}
		if err == nil {
			err = o.deliver(ctx, what)
		}
		if err != nil && ctx.Err() == nil {
			// Not at once: what was sent, but could not be recorded, is sent again.
			o.logger.Error("outbox not worked off", "kind", kind, "target", target, "error", err)
			o.pause(ctx, outboxCheck)
		}
	}
}

func (o *Outbox) pause(ctx context.Context, long time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(long):
	}
}

// deliver tries one delivery and records what came of it.
func (o *Outbox) deliver(ctx context.Context, what vps.Delivery) error {
	failed := o.send(ctx, what)
	if failed != nil && ctx.Err() != nil {
		return ctx.Err() // cut off by the shutdown: that is no try
	}
	now := o.store.Now()
	what.Attempts++
	if hold := judgeTry(&what, failed, now); hold > 0 {
		o.held.Store(outboxKey(what.Kind, what.Target), now.Add(hold))
	}
	o.tried(what)
	if failed != nil && what.Kind == vps.DeliveryMail { // of webhooks their list tells
		o.logger.Warn(
			"mail not delivered", "delivery", what.ID, "vps", what.VPS, "attempts", what.Attempts, "error",
			what.LastError,
		)
	}
	ctx = context.WithoutCancel(ctx) // what was sent is recorded, also when the daemon is told to stop meanwhile
	return o.store.Write(ctx, func(tx *store.Tx) error {
		if what.Outcome == vps.DeliveryGivenUp {
			if err := o.addGivenUp(ctx, tx, what); err != nil {
				return err
			}
		}
		if noter, notes := o.senders[what.Kind].(Noter); notes {
			if err := noter.Note(ctx, tx, what.Target, failed); err != nil {
				return err
			}
		}
		if err := tx.SaveDelivery(ctx, what); err != nil {
			return err
		}
		var e *vps.DeliveryError
		if errors.As(failed, &e) && e.Gone {
			return tx.GiveUpDeliveries(ctx, what.Kind, what.Target, what.LastError, now)
		}
		return nil
	})
}

// judgeTry enters into a delivery what came of a try, and returns for how long its
// target wants to be left alone.
func judgeTry(what *vps.Delivery, failed error, now time.Time) (hold time.Duration) {
	if failed == nil {
		what.Outcome, what.EndedAt, what.LastError = vps.DeliveryDelivered, &now, ""
		return 0
	}
	what.LastError = firstOf(failed.Error(), longestError)
	var e *vps.DeliveryError
	final := errors.As(failed, &e) && (e.Final || e.Gone)
	if final || now.Sub(what.CreatedAt) >= triedFor {
		what.Outcome, what.EndedAt = vps.DeliveryGivenUp, &now
		return 0
	}
	if e != nil {
		hold = min(e.After, longestPause)
	}
	what.NextAt = now.Add(max(pauseAfter(what.Attempts), hold))
	return hold
}

// pauseAfter is how long to wait after so many tries that failed.
func pauseAfter(attempts int) time.Duration {
	pause := longestPause
	if attempts < 16 {
		pause = min(firstPause<<(attempts-1), longestPause)
	}
	return pause/2 + rand.N(pause) //nolint:gosec // it only keeps tries apart
}

// addGivenUp tells the journal of the host, for each target once an hour.
func (o *Outbox) addGivenUp(ctx context.Context, tx *store.Tx, what vps.Delivery) error {
	said, err := tx.GaveUpSince(ctx, what.Kind, what.Target, o.store.Now().Add(-givenUpSaid))
	if err != nil || said {
		return err
	}
	return tx.AddMessage(
		ctx,
		vps.Message{Kind: vps.MessageWarning, Actor: vps.ActorWatch, Phrase: vps.Phrase(string(what.Kind) + "_given_up"),
			Detail: fmt.Sprintf(
				"%s to %s about %s, tried %d times: %s", what.ID, what.Target, cmp.Or(what.VPS, "the host"),
				what.Attempts, what.LastError,
			)},
	)
}

// firstOf cuts a text off.
func firstOf(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}
