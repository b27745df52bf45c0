package daemon_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/vps"
)

// postman is a Sender that notes what it was given, and does what answer says.
type postman struct {
	mu     sync.Mutex
	sent   []vps.Delivery
	answer func(ctx context.Context, d vps.Delivery) error
}

func (p *postman) Send(ctx context.Context, d vps.Delivery) error {
	p.mu.Lock()
	p.sent = append(p.sent, d)
	answer := p.answer
	p.mu.Unlock()
	if answer == nil {
		return nil
	}
	return answer(ctx, d)
}

func (p *postman) answers(f func(context.Context, vps.Delivery) error) {
	p.mu.Lock()
	p.answer = f
	p.mu.Unlock()
}

// to lists what was sent to a target.
func (p *postman) to(target string) []vps.Delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []vps.Delivery
	for _, d := range p.sent {
		if d.Target == target {
			all = append(all, d)
		}
	}
	return all
}

func newOutbox(t *testing.T) (*world, *postman) {
	p := &postman{}
	return newWorld(t, func(c *daemon.Config) { c.Senders = map[vps.DeliveryKind]notify.Sender{vps.DeliveryMail: p} }), p
}

func (w *world) add(target string) {
	w.t.Helper()
	w.must(w.daemon.AddDelivery(ctx, vps.Delivery{Kind: vps.DeliveryMail, Target: target, Payload: []byte("to " + target)}))
}

// waiting counts what waits in the outbox.
func (w *world) waiting() int {
	w.t.Helper()
	queues, err := w.daemon.Queues(ctx)
	w.must(err)
	n := 0
	for _, q := range queues {
		n += q.Waiting
	}
	return n
}

// nextDelivery is when the outbox has something to do next.
func (w *world) nextDelivery() time.Time {
	w.t.Helper()
	queues, err := w.daemon.Queues(ctx)
	w.must(err)
	var next time.Time
	for _, q := range queues {
		if next.IsZero() || q.NextAt.Before(next) {
			next = q.NextAt
		}
	}
	return next
}

// later sets the clock on and has the outbox looked at.
func (w *world) later(by time.Duration) {
	w.setClock(w.now().Add(by))
	w.daemon.LookAtOutbox(ctx)
}

func TestOutboxDelivers(t *testing.T) {
	w, p := newOutbox(t)
	w.add("a")
	w.eventually("it is delivered and recorded", func() bool { return w.waiting() == 0 })
	if got := p.to("a"); len(got) != 1 || string(got[0].Payload) != "to a" || got[0].Attempts != 0 {
		t.Errorf("sent: %+v", got)
	}
	if n, _ := w.measured("vpssnap_deliveries_total", "kind=mail", "outcome=delivered"); n != 1 {
		t.Errorf("%v are counted", n)
	}
}

// What fails is tried again with the same id, by the next process, too.
func TestOutboxTriesAgain(t *testing.T) {
	w, p := newOutbox(t)
	w.setClock(time.Now())
	p.answers(func(context.Context, vps.Delivery) error { return errors.New("no") })
	w.add("a")
	w.eventually("the failure is counted", func() bool {
		n, _ := w.measured("vpssnap_deliveries_total", "kind=mail", "outcome=failed")
		return n == 1
	})
	w.daemon.LookAtOutbox(ctx)
	w.close()
	w.open()
	if got := p.to("a"); len(got) != 1 || w.waiting() != 1 {
		t.Fatalf("tried %d times, %d wait", len(got), w.waiting())
	}
	p.answers(nil)
	w.eventually("it is delivered", func() bool { w.later(10 * time.Second); return w.waiting() == 0 })
	got := p.to("a")
	if len(got) != 2 || got[0].ID != got[1].ID || got[1].Attempts != 1 || got[1].LastError != "no" ||
		string(got[1].Payload) != "to a" {
		t.Errorf("sent: %+v", got)
	}
}

// A target that hangs holds up no other, and not the end of the daemon; to it, one
// delivery is under way at a time.
func TestOutboxTargetHangs(t *testing.T) {
	w, p := newOutbox(t)
	p.answers(func(ctx context.Context, d vps.Delivery) error {
		if d.Target != "hung" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	w.add("hung")
	w.add("hung")
	w.eventually("one hangs", func() bool { return len(p.to("hung")) == 1 })
	for range 20 {
		w.add("well")
	}
	w.eventually("the others are delivered", func() bool { return len(p.to("well")) == 20 && w.waiting() == 2 })
	if n := len(p.to("hung")); n != 1 {
		t.Errorf("%d are under way to the one that hangs", n)
	}
	w.close()
	p.answers(nil)
	w.open()
	w.eventually("what was cut off is sent", func() bool { return w.waiting() == 0 })
	if got := p.to("hung"); len(got) != 3 || got[1].Attempts != 0 {
		t.Errorf("being cut off counts as a try: %+v", got)
	}
}

// After a day it is given up, and the journal says so once for many.
func TestOutboxGivesUp(t *testing.T) {
	w, p := newOutbox(t)
	w.setClock(time.Now())
	p.answers(func(context.Context, vps.Delivery) error { return errors.New("no") })
	w.add("a")
	w.add("a")
	w.eventually("both were tried", func() bool { return len(p.to("a")) == 2 })
	for until := w.now().Add(24*time.Hour - time.Minute); w.now().Before(until); {
		next := w.nextDelivery()
		if next.After(until) {
			next = until
		}
		w.setClock(next)
		w.eventually("it is tried", func() bool { w.later(0); return w.nextDelivery().After(w.now()) })
	}
	if n := w.waiting(); n != 2 {
		t.Errorf("%d wait before a day is over", n)
	}
	w.later(2 * time.Hour) // more than any pause, so that both are due together
	w.eventually("both are given up", func() bool { w.later(0); return w.waiting() == 0 })
	if n := len(p.to("a")) / 2; n < 20 || n > 60 {
		t.Errorf("each was tried %d times", n)
	}
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{Kind: vps.MessageWarning})
	w.must(err)
	if len(page.Messages) != 1 || page.Messages[0].VPS != "" || page.Messages[0].Phrase != vps.PhraseMailGivenUp ||
		!strings.Contains(page.Messages[0].Detail, "no") {
		t.Errorf("the journal says %+v", page.Messages)
	}
}

// What the other side says of further tries counts.
func TestOutboxHeedsTheTarget(t *testing.T) {
	w, p := newOutbox(t)
	w.setClock(time.Now())
	p.answers(func(context.Context, vps.Delivery) error {
		return &vps.DeliveryError{Err: errors.New("never"), Final: true}
	})
	w.add("final")
	w.eventually("one without prospect is given up at once", func() bool { return w.waiting() == 0 })

	p.answers(func(context.Context, vps.Delivery) error {
		return &vps.DeliveryError{Err: errors.New("slow down"), After: 30 * time.Minute}
	})
	w.add("busy")
	w.add("busy")
	w.eventually("it was tried", func() bool {
		n, _ := w.measured("vpssnap_deliveries_total", "kind=mail", "outcome=failed")
		return n == 1
	})
	p.answers(nil)
	w.later(29 * time.Minute)
	w.add("well")
	w.eventually("another is delivered", func() bool { return len(p.to("well")) == 1 })
	if n := len(p.to("busy")); n != 1 {
		t.Errorf("tried %d times before it wanted to", n)
	}
	w.eventually("both are delivered then", func() bool { w.later(time.Minute); return w.waiting() == 0 })

	p.answers(func(context.Context, vps.Delivery) error {
		return &vps.DeliveryError{Err: errors.New("gone"), Gone: true}
	})
	w.add("gone")
	w.add("gone")
	w.eventually("nothing waits for one that is gone", func() bool { return w.waiting() == 0 })
}
