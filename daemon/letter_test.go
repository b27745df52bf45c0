package daemon_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/mail/mailtest"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

const day = 24 * time.Hour

// correspondent is a VPS without an option, on a clock that is stopped, whose
// daemon sends mail with sender.
func correspondent(t *testing.T, sender notify.Sender) (w *world, id string, now time.Time) {
	w = newWorld(t, func(c *daemon.Config) {
		c.Settings.Notify.Grace, c.Settings.Notify.RemindBefore = 7*day, 3*day
		if sender != nil {
			c.Senders = map[vps.DeliveryKind]notify.Sender{vps.DeliveryMail: sender}
		}
	})
	now = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	w.setClock(now)
	id, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib})
	w.must(err)
	w.must(w.host.SetAgent(id, fake.AgentAnswers))
	w.must(w.host.Start(ctx, id, false))
	w.eventually("it is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return err == nil })
	return w, id, now
}

// mailerTo sends to a real server.
func mailerTo(t *testing.T, s *mailtest.Server) *mail.Mailer {
	t.Helper()
	text, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	m, err := mail.New(t.Context(), mail.Config{Host: "127.0.0.1", Port: s.Port, TLS: mail.StartTLS, CA: pool,
		Username: s.Username, Password: s.Password, From: "Hosting <no-reply@example.org>"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func orderOf(end *time.Time) vps.OptionOrder {
	return vps.OptionOrder{
		State:        vps.OptionActive,
		OrderRef:     "A-1",
		EndsAt:       end,
		ContactEmail: "jeanne@example.net",
		Locale:       "fr",
	}
}

// restart opens the daemon again at a later time.
func (w *world) restart(at time.Time) {
	w.t.Helper()
	w.close()
	w.setClock(at)
	w.open()
}

// TestMailsOfAnOption: each kind of mail, sent in the life of one option.
func TestMailsOfAnOption(t *testing.T) {
	server := mailtest.Start(t, "starttls", "vpssnapd", "secret")
	w, id, now := correspondent(t, mailerTo(t, server))
	n := 0
	arrives := func(subject string, says ...string) {
		t.Helper()
		n++
		got := server.Wait(n)[n-1]
		w.eventually("that it was sent is recorded", func() bool { return w.waiting() == 0 }) // or it is sent again
		if got.Subject != subject || got.To[0] != "jeanne@example.net" {
			t.Errorf("mail %d to %v is %q, not %q", n, got.To, got.Subject, subject)
		}
		for _, want := range says {
			if !strings.Contains(got.Text, want) {
				t.Errorf("%q is missing in\n%s", want, got.Text)
			}
		}
	}
	end := after(now, 30*day)
	ordered := orderOf(end)
	ordered.State = vps.OptionOrdered
	w.put(id, ordered, vps.OptionOrdered)
	w.put(id, orderOf(end), vps.OptionActive)
	arrives("L'option snapshot de web1 est active", "2,99 EUR par mois", "22/12/2026 à 10:00 UTC", "A-1")
	w.put(id, orderOf(end), vps.OptionActive) // again, which is no news

	w.host.FailNext("CreateOverlay.before", hypervisor.ErrNoSpace)
	w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator))
	arrives("web1 : le snapshot n'a pas pu être créé", "L'espace disque de l'hôte ne suffit pas.")
	w.take(id, vps.TakeRequest{Description: "avant la mise à jour"})
	arrives("Un snapshot de web1 a été créé", "les systèmes de fichiers ont été figés", "avant la mise à jour")
	w.restore(id)
	arrives("web1 a été remis dans l'état de son snapshot", "jusqu'au 22/11/2026 à 11:00 UTC", "avant la mise à jour")
	w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
	arrives("La restauration de web1 a été annulée")
	w.delete(id)
	arrives("Le snapshot de web1 a été supprimé", "avant la mise à jour")
	w.take(id, vps.TakeRequest{})
	arrives("Un snapshot de web1 a été créé")

	w.restart(end.Add(-3 * day))
	arrives("L'option snapshot de web1 prend fin le 22/12/2026 à 10:00 UTC", "jusqu'au 29/12/2026 à 10:00 UTC")
	w.setClock(*end)
	w.becomes(id, vps.OptionGrace)
	w.restart(end.Add(4 * day))
	arrives("Le snapshot de web1 sera supprimé le 29/12/2026 à 10:00 UTC", "créé le 22/11/2026")
	w.restart(end.Add(7 * day))
	arrives("Le snapshot de web1 a été supprimé", "Son option a pris fin")
	w.eventually("it is over", func() bool { return w.option(id).State == vps.OptionReleased && w.waiting() == 0 })
	if all := server.Mails(); len(all) != n {
		t.Errorf("%d mails have arrived, not %d; the last is %q", len(all), n, all[len(all)-1].Subject)
	}
	if strings.Contains(w.log.String(), "secret") {
		t.Error("the password is in the log")
	}
}

// TestMailServerDown: what could not be sent is sent by the next daemon, once.
func TestMailServerDown(t *testing.T) {
	server := mailtest.Start(t, "starttls", "vpssnapd", "secret")
	server.Stop()
	w, id, _ := correspondent(t, mailerTo(t, server))
	w.put(id, orderOf(nil), vps.OptionActive)
	failures := func() float64 {
		n, _ := w.measured("vpssnap_deliveries_total", "kind=mail", "outcome=failed")
		return n
	}
	w.eventually("it is tried", func() bool { return failures() == 1 })
	w.eventually("it is tried again", func() bool { w.later(10 * time.Second); return failures() > 1 })
	if !strings.Contains(w.log.String(), "connection refused") {
		t.Error("the log does not say why")
	}
	w.close()
	server.Start()
	w.setClock(w.now().Add(time.Hour))
	w.open()
	got := server.Wait(1)[0]
	if date, err := got.Header.Date(); err != nil || !date.Equal(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("it is dated %v (%v), not when it was written", date, err)
	}
	w.eventually("that is recorded", func() bool { return w.waiting() == 0 })
	w.restart(w.now().Add(2 * time.Hour))
	w.daemon.LookAtOutbox(ctx)
	if n := len(server.Mails()); n != 1 {
		t.Errorf("it has arrived %d times", n)
	}
}

// letters lists what a postman was given.
func (p *postman) letters(t *testing.T) []mail.Letter {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []mail.Letter
	for _, d := range p.sent {
		var l mail.Letter
		if err := json.Unmarshal(d.Payload, &l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// TestReminders: one for each end, of the end as it then is.
func TestReminders(t *testing.T) {
	p := &postman{}
	w, id, now := correspondent(t, p)
	reminded := func(kind mail.Kind) (ends []time.Time) {
		t.Helper()
		w.eventually("all is sent", func() bool { return w.waiting() == 0 })
		for _, l := range p.letters(t) {
			if l.Kind == kind {
				end := l.EndsAt
				if kind == mail.SnapshotRemoval {
					end = l.KeptUntil
				}
				ends = append(ends, *end)
			}
		}
		return ends
	}
	is := func(what string, kind mail.Kind, want ...time.Time) {
		t.Helper()
		w.daemon.Options.Meet(ctx)
		got := reminded(kind)
		if len(got) != len(want) {
			t.Fatalf("%s: reminded of %v, not of %v", what, got, want)
		}
		for i := range got {
			if !got[i].Equal(want[i]) {
				t.Errorf("%s: reminded of %v, not of %v", what, got, want)
			}
		}
	}
	first, second := now.Add(30*day), now.Add(60*day)
	w.put(id, orderOf(&first), vps.OptionActive)
	w.take(id, vps.TakeRequest{})
	is("long before", mail.OptionEnding)
	w.setClock(first.Add(-3 * day))
	is("in time", mail.OptionEnding, first)
	w.restart(first.Add(-2 * day))
	is("by another daemon", mail.OptionEnding, first)
	w.put(id, orderOf(&second), vps.OptionActive)
	w.setClock(first)
	is("renewed", mail.OptionEnding, first)
	w.restart(second.Add(-time.Hour)) // it was down when it was time
	is("late", mail.OptionEnding, first, second)

	_, err := w.daemon.Options.CancelOption(ctx, id, false, orders)
	w.must(err)
	kept := second.Add(-time.Hour).Add(7 * day)
	w.setClock(kept.Add(-3*day - time.Second))
	is("cancelled", mail.SnapshotRemoval)
	w.setClock(kept.Add(-3 * day))
	is("before it is removed", mail.SnapshotRemoval, kept)
	is("once", mail.SnapshotRemoval, kept)
	is("and of no end", mail.OptionEnding, first, second)

	near := w.now().Add(2 * day) // which the confirmation says
	renewed := orderOf(&near)
	renewed.OrderRef = "A-2"
	w.put(id, renewed, vps.OptionActive)
	is("an end that was just read of", mail.OptionEnding, first, second)
	w.delete(id)
	_, err = w.daemon.Options.CancelOption(ctx, id, false, orders)
	w.must(err)
	w.setClock(w.now().Add(5 * day))
	is("nothing is removed where nothing is", mail.SnapshotRemoval, kept)
}

// TestNoMail: while there is no mail, no contact, or nobody who asked, nothing waits.
func TestNoMail(t *testing.T) {
	w, id, now := correspondent(t, nil)
	w.put(id, orderOf(after(now, day)), vps.OptionActive)
	w.take(id, vps.TakeRequest{})
	w.daemon.Options.Meet(ctx)
	if n := w.waiting(); n != 0 {
		t.Errorf("%d mails wait, and there is no mail", n)
	}
	p := &postman{}
	w, id, _ = correspondent(t, p)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1"}, vps.OptionActive)
	w.take(id, vps.TakeRequest{})
	if got := p.letters(t); len(got) != 0 || w.waiting() != 0 {
		t.Errorf("sent to nobody: %+v", got)
	}
	w.put(id, orderOf(nil), vps.OptionActive)
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "StartMerge.before" {
			return errors.New("no")
		}
		return nil
	})
	_, err := w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.must(err)
	w.eventually("the deletion has failed", func() bool {
		page, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{VPS: id})
		w.must(err)
		return slices.ContainsFunc(page.Operations, func(op vps.Operation) bool {
			return op.Kind == vps.KindDelete && (op.Status == vps.StatusFailed || op.Status == vps.StatusNeedsAttention)
		})
	})
	if got := p.letters(t); len(got) != 0 || w.waiting() != 0 {
		t.Errorf("told of what nobody asked for: %+v", got)
	}
}
