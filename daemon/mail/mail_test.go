package mail_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/mail/mailtest"
	"vpssnapd/daemon/vps"
)

var at = time.Date(2026, 11, 22, 10, 15, 30, 0, time.UTC)

const password = "Drei kühle Biere"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// configOf is how a server is to be spoken to.
func configOf(t *testing.T, s *mailtest.Server) mail.Config {
	t.Helper()
	text, err := os.ReadFile(s.CA)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return mail.Config{
		Host:     "127.0.0.1",
		Port:     s.Port,
		TLS:      mail.TLS(s.TLS),
		Username: s.Username,
		Password: s.Password,
		CA:       pool,
		From:     "Hébergeur <no-reply@example.org>",
		ReplyTo:  "support@example.org",
	}
}

func mailer(t *testing.T, c mail.Config) *mail.Mailer {
	t.Helper()
	m, err := mail.New(t.Context(), c)
	must(t, err)
	return m
}

// change makes a mailer work by another configuration, if that can be used.
func change(m *mail.Mailer, c mail.Config) error {
	next, err := mail.New(context.Background(), c)
	if err == nil {
		m.Become(next)
	}
	return err
}

func letter(kind mail.Kind) mail.Letter {
	ends, kept := at.Add(72*time.Hour), at.Add(240*time.Hour)
	return mail.Letter{Kind: kind, At: at, To: "jeanne@example.net", Locale: "fr", VPS: "web1", OrderRef: "A-7",
		Price:  &vps.Price{Amount: 123456, Currency: "EUR", Period: vps.PeriodMonth},
		EndsAt: &ends, KeptUntil: &kept, UndoUntil: &ends, TakenAt: &at, Description: "avant la mise à jour"}
}

func delivery(t *testing.T, id string, l mail.Letter) vps.Delivery {
	t.Helper()
	payload, err := json.Marshal(l)
	must(t, err)
	return vps.Delivery{ID: id, Kind: vps.DeliveryMail, Payload: payload}
}

func send(t *testing.T, m *mail.Mailer, id string, l mail.Letter) error {
	t.Helper()
	return m.Send(t.Context(), delivery(t, id, l))
}

// final reports whether no further try is to be made.
func final(err error) bool {
	var e *vps.DeliveryError
	return errors.As(err, &e) && e.Final
}

// TestWhatArrives: every kind in both languages, and from whom to whom.
func TestWhatArrives(t *testing.T) {
	s := mailtest.Start(t, "starttls", "vpssnapd", password)
	m := mailer(t, configOf(t, s))
	cases := []struct {
		kind      mail.Kind
		operation vps.Kind
		status    vps.Status
		locale    string
		subject   string
		says      []string
	}{
		{mail.OptionActivated, "", "", "fr", "L'option snapshot de web1 est active",
			[]string{
				"depuis le 22/11/2026 à 10:15 UTC",
				"1234,56 EUR par mois",
				"25/11/2026 à 10:15 UTC",
				"A-7",
				"pas une sauvegarde",
			}},
		{mail.OptionActivated, "", "", "en-GB", "The snapshot option of web1 is active",
			[]string{
				"since 22 November 2026, 10:15 UTC",
				"1234.56 EUR per month",
				"25 November 2026, 10:15 UTC",
				"A-7",
				"no backup",
			}},
		{mail.SnapshotTaken, vps.KindTake, vps.StatusSucceeded, "fr-CA", "Un snapshot de web1 a été créé",
			[]string{"Le snapshot a été créé : le VPS était éteint.", "avant la mise à jour"}},
		{mail.SnapshotTaken, vps.KindTake, vps.StatusSucceeded, "de", "A snapshot of web1 was taken",
			[]string{"The snapshot was taken: the VPS was off.", "avant la mise à jour"}},
		{mail.SnapshotRestored, vps.KindRestore, vps.StatusSucceeded, "fr", "web1 a été remis dans l'état de son snapshot",
			[]string{"annulé jusqu'au", "25/11/2026 à 10:15 UTC", "créé le 22/11/2026"}},
		{
			mail.SnapshotRestored,
			vps.KindUndoRestore,
			vps.StatusSucceeded,
			"en",
			"The restore of web1 was undone",
			[]string{"The last restore was undone"},
		},
		{
			mail.SnapshotRestored,
			vps.KindRestore,
			vps.StatusSucceeded,
			"en",
			"web1 was put back to its snapshot",
			[]string{"can be undone until"},
		},
		{
			mail.SnapshotDeleted,
			vps.KindDelete,
			vps.StatusSucceeded,
			"fr",
			"Le snapshot de web1 a été supprimé",
			[]string{"ne peut plus être"},
		},
		{
			mail.SnapshotDeleted,
			vps.KindDelete,
			vps.StatusSucceeded,
			"",
			"The snapshot of web1 was deleted",
			[]string{"can no longer be"},
		},
		{mail.OperationFailed, vps.KindTake, vps.StatusFailed, "fr", "web1 : le snapshot n'a pas pu être créé",
			[]string{"L'espace disque de l'hôte ne suffit pas.", "sont intacts"}},
		{mail.OperationFailed, vps.KindDelete, vps.StatusNeedsAttention, "en", "web1: the snapshot could not be deleted",
			[]string{"There is not enough space on the host.", "You need not do anything"}},
		{
			mail.OptionEnding,
			"",
			"",
			"fr",
			"L'option snapshot de web1 prend fin le 25/11/2026 à 10:15 UTC",
			[]string{"02/12/2026 à 10:15 UTC"},
		},
		{
			mail.OptionEnding,
			"",
			"",
			"en",
			"The snapshot option of web1 ends on 25 November 2026, 10:15 UTC",
			[]string{"2 December 2026, 10:15 UTC"},
		},
		{
			mail.SnapshotRemoval,
			"",
			"",
			"fr",
			"Le snapshot de web1 sera supprimé le 02/12/2026 à 10:15 UTC",
			[]string{"Renouvelez"},
		},
		{
			mail.SnapshotRemoval,
			"",
			"",
			"en",
			"The snapshot of web1 will be removed on 2 December 2026, 10:15 UTC",
			[]string{"Renew"},
		},
	}
	for i, c := range cases {
		l := letter(c.kind)
		l.Operation, l.Status, l.Locale = c.operation, c.status, c.locale
		if c.status == vps.StatusSucceeded {
			l.Result = "the VPS was off"
		} else if c.status != "" {
			l.Code = vps.CodeInsufficientSpace
		}
		must(t, send(t, m, "msg-"+strconv.Itoa(i), l))
	}
	arrived := s.Mails()
	if len(arrived) != len(cases) {
		t.Fatalf("%d mails have arrived", len(arrived))
	}
	for i, c := range cases {
		got := arrived[i]
		if got.Subject != c.subject {
			t.Errorf("%s, %s: subject %q", c.kind, c.locale, got.Subject)
		}
		for _, want := range c.says {
			if !strings.Contains(strings.Join(strings.Fields(got.Text), " "), want) ||
				!strings.Contains(got.HTML, strings.ReplaceAll(want, "'", "&#39;")) && !strings.Contains(got.HTML, want) &&
					!strings.Contains(strip(got.HTML), want) {
				t.Errorf("%s, %s: %q is missing in\n%s\n%s", c.kind, c.locale, want, got.Text, got.HTML)
			}
		}
		if strings.Contains(got.Text+got.HTML, "<no value>") ||
			strings.Contains(got.Text+got.HTML, "/") && strings.Contains(got.Text, "/var/") {
			t.Errorf("%s", got.Text)
		}
		envelope(t, got, "msg-"+strconv.Itoa(i))
	}
}

// strip removes the tags.
func strip(html string) string {
	return strings.NewReplacer("<b>", "", "</b>", "", "&#39;", "'").Replace(html)
}

// envelope checks what all mails have in common.
func envelope(t *testing.T, m mailtest.Mail, id string) {
	t.Helper()
	if m.From != "no-reply@example.org" || len(m.To) != 1 || m.To[0] != "jeanne@example.net" || !m.TLS ||
		m.User != "vpssnapd" {
		t.Errorf("from %s to %v, TLS %v, user %q", m.From, m.To, m.TLS, m.User)
	}
	from, err := m.Header.AddressList("From")
	must(t, err)
	date, err := m.Header.Date()
	must(t, err)
	if *from[0] != (netmail.Address{Name: "Hébergeur", Address: "no-reply@example.org"}) || !date.Equal(at) {
		t.Errorf("from %v at %v", from[0], date)
	}
	for header, want := range map[string]string{"To": "<jeanne@example.net>", "Reply-To": "<support@example.org>",
		"Message-Id": "<" + id + "@example.org>", "Auto-Submitted": "auto-generated", "Mime-Version": "1.0", "User-Agent": "", "Bcc": ""} {
		if got := m.Header.Get(header); got != want {
			t.Errorf("%s: %s", header, got)
		}
	}
}

// TestNothingComesInFromOutside: neither headers nor tags nor other addresses.
func TestNothingComesInFromOutside(t *testing.T) {
	s := mailtest.Start(t, "none", "", "")
	m := mailer(t, configOf(t, s))
	l := letter(mail.SnapshotRestored)
	l.Locale = "en"
	l.VPS, l.Description = "web1\r\nBcc: all@example.com\r\n\r\n<b>x", "<script>alert('&')</script>\u202e\nX"
	must(t, send(t, m, "msg-x", l))
	got := s.Wait(1)[0]
	if got.Header.Get("Bcc") != "" || got.Subject != "web1??Bcc: all@example.com????<b>x was put back to its snapshot" {
		t.Errorf("subject %q, headers %v", got.Subject, got.Header)
	}
	if strings.Contains(got.HTML, "<script>") || strings.Contains(got.HTML, "<b>x") ||
		!strings.Contains(got.HTML, "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;??X") {
		t.Errorf("%s", got.HTML)
	}
	if !strings.Contains(got.Text, "<script>alert('&')</script>??X") {
		t.Errorf("%s", got.Text)
	}
	for _, to := range []string{"", "jeanne", "a@b, c@d", "a@b\r\nRCPT TO:<c@d>", "Jeanne <a@b>", "<a@b>", "a b@c", "a@b\x00", "\"a\r\n\"@b", "a\u2028b@c"} {
		l.To = to
		if err := send(t, m, "msg-x", l); !final(err) {
			t.Errorf("%q: %v", to, err)
		}
	}
	if n := len(s.Mails()); n != 1 {
		t.Errorf("%d mails have arrived", n)
	}
}

// TestWhatIsTriedAgain: only what may be over at the next try.
func TestWhatIsTriedAgain(t *testing.T) {
	s := mailtest.Start(t, "tls", "vpssnapd", password)
	good := configOf(t, s)
	try := func(c mail.Config, to string) error {
		l := letter(mail.SnapshotTaken)
		l.To = to
		return send(t, mailer(t, c), "msg-x", l)
	}
	wrongPassword, nobody, untrusted, starttls, otherName := good, good, good, good, good
	wrongPassword.Password = "s3cret-and-wrong"
	nobody.Username = ""
	untrusted.CA = nil
	starttls.TLS = mail.StartTLS
	otherName.Host = "localhost"
	for name, c := range map[string]struct {
		config  mail.Config
		to      string
		forGood bool
		says    string
	}{
		"unknown recipient":   {good, "never@example.net", true, "550"},
		"recipient for later": {good, "later@example.net", false, "451"},
		"wrong password":      {wrongPassword, "a@example.net", false, "535"},
		"no user name":        {nobody, "a@example.net", false, "530"},
		"unknown authority":   {untrusted, "a@example.net", false, "x509"},
		"another's name":      {otherName, "a@example.net", false, "x509"},
	} {
		err := try(c.config, c.to)
		if err == nil || final(err) != c.forGood || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		for _, secret := range []string{"s3cret", password} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error holds the password: %v", name, err)
			}
		}
	}
	must(t, try(good, "a@example.net"))
	must(t, try(good, "drop@example.net")) // taken, before the connection is lost
	s.Stop()
	if err := try(good, "a@example.net"); err == nil || final(err) {
		t.Errorf("nobody listens: %v", err)
	}
	if all := s.Mails(); len(all) != 2 || !all[0].TLS || all[0].User != "vpssnapd" {
		t.Errorf("%+v", all)
	}
}

// TestSilentServer: whoever stops waiting is let go at once.
func TestSilentServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			gone <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // less than the library's own
		fmt.Fprint(conn, "220 mail.example.org\r\n")
		hello := bufio.NewReader(conn)
		if _, err = hello.ReadString('\n'); err == nil {
			cancel()
			_, err = hello.ReadByte() // until the other side closes it
		}
		gone <- err
	}()
	m := mailer(t, mail.Config{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, TLS: mail.NoTLS, From: "a@example.org"})
	if err := m.Send(ctx, delivery(t, "msg-x", letter(mail.SnapshotTaken))); err == nil || final(err) {
		t.Errorf("%v", err)
	}
	if err := <-gone; !errors.Is(err, io.EOF) {
		t.Errorf("the server saw %v", err)
	}
}

// TestTemplatesOfOnesOwn: a file takes the place of ours, and one that cannot be
// used is refused with its name and the line.
func TestTemplatesOfOnesOwn(t *testing.T) {
	s := mailtest.Start(t, "none", "", "")
	c := configOf(t, s)
	c.Templates = t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(c.Templates, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	own := write(
		"snapshot_taken.fr.tmpl",
		"{{define \"subject\"}}Fini\n pour {{.VPS}}{{end}}\n{{define \"text\"}}Prêt.{{template \"text_end\"}}{{end}}\n{{define \"html\"}}<i>{{.VPS}}</i>{{end}}\n",
	)
	write(
		"common.fr.tmpl",
		`{{define "text_end"}} Hébergeur{{end}}{{define "html_begin"}}{{end}}{{define "html_end"}}{{end}}`,
	)
	write("README", "{{")
	m := mailer(t, c)
	must(t, send(t, m, "msg-x", letter(mail.SnapshotTaken)))
	english := letter(mail.SnapshotTaken)
	english.Locale = "en"
	must(t, send(t, m, "msg-x", english))
	got := s.Wait(2)
	if got[0].Subject != "Fini pour web1" || got[0].Text != "Prêt. Hébergeur\n" || got[0].HTML != "<i>web1</i>\n" ||
		got[1].Subject != "A snapshot of web1 was taken" {
		t.Errorf("%+v", got)
	}
	whole, err := os.ReadFile(own)
	must(t, err)
	for name, broken := range map[string]struct{ text, says string }{
		"does not parse":       {string(whole) + "\n{{if}}", own + ":6"},
		"no such value":        {strings.Replace(string(whole), "Prêt.", "{{.Host}}", 1), own + ":3"},
		"no such template":     {strings.Replace(string(whole), "text_end", "foot", 1), own + ":3"},
		"html that ends wrong": {strings.Replace(string(whole), "<i>", "<a href='", 1), own},
		"no html":              {strings.Replace(string(whole), `"html"`, `"html_x"`, 1), `"html"`},
		"empty subject":        {strings.Replace(string(whole), "Fini\n pour {{.VPS}}", " \n", 1), "subject is empty"},
	} {
		write(filepath.Base(own), broken.text)
		if err := change(m, c); err == nil || !strings.Contains(err.Error(), broken.says) ||
			!strings.Contains(err.Error(), "snapshot_taken.fr") {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, send(t, m, "msg-x", letter(mail.SnapshotTaken))) // as before
	if got := s.Wait(3)[2]; got.Subject != "Fini pour web1" {
		t.Errorf("after what was refused: %q", got.Subject)
	}
	must(t, os.WriteFile(own, whole, 0o600))
	misspelt := write("snapshot_token.fr.tmpl", string(whole))
	if err := change(m, c); err == nil || !strings.Contains(err.Error(), misspelt) {
		t.Errorf("a template of no mail: %v", err)
	}
	must(t, os.Remove(misspelt))
	must(t, change(m, c))
	c.Templates = filepath.Join(c.Templates, "none")
	if err := change(m, c); err == nil || !strings.Contains(err.Error(), c.Templates) {
		t.Errorf("no such directory: %v", err)
	}
}

func TestConfiguration(t *testing.T) {
	good := mail.Config{Host: "mail.example.org", TLS: mail.StartTLS, From: "a@example.org"}
	must(t, good.Check())
	for name, spoil := range map[string]func(*mail.Config){
		"tls":      func(c *mail.Config) { c.TLS = "ssl" },
		"loopback": func(c *mail.Config) { c.TLS = mail.NoTLS },
		"from":     func(c *mail.Config) { c.From = "a@example.org\r\nBcc: b@example.org" },
		"reply_to": func(c *mail.Config) { c.ReplyTo = "b" },
		"port":     func(c *mail.Config) { c.Port = 65536 },
		"host":     func(c *mail.Config) { c.Host = "unix:///run/x" },
	} {
		c := good
		if spoil(&c); c.Check() == nil || !strings.Contains(c.Check().Error(), name) {
			t.Errorf("%s: %v", name, c.Check())
		}
	}
}
