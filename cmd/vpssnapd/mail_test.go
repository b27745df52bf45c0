package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"vpssnapd/daemon"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/mail/mailtest"
	"vpssnapd/daemon/vps"
)

func TestMailConfiguration(t *testing.T) {
	for text, says := range map[string]string{
		"[mail]\nremind_before = '1h'":                                                                                     "",
		"[mail]\nhost = 'mail.example.org'\nfrom = 'Example <a@example.org>'":                                              "",
		"[mail]\nhost = '::1'\ntls = 'none'\nport = 25\nfrom = 'a@example.org'\nreply_to = 'b@example.org'":                "",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nusername = 'u'\npassword_file = 'mail'\nca = '/ca'\ntemplates = '/t'": "",
		"[mail]\nhost = 'm'": "from",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\ntls = 'x'":                                        "tls",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\ntls = 'none'":                                     "loopback",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nport = 70000":                                     "port",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nusername = 'u'":                                   "both",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nusername = 'u'\npassword_file = 'x/y'":            "password_file",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\ntemplates = 'x'":                                  "templates",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nca = 'x'":                                         "ca",
		"[mail]\nremind_before = '-1h'":                                                                "remind_before",
		"[mail]\nhost = 'm'\nfrom = 'a@example.org'\nusername = 'u'\npassword = 'it must not be here'": "unknown",
	} {
		_, err := parseConfig(strings.NewReader(text))
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if c := defaults(); c.settings().Notify.RemindBefore != 72*time.Hour {
		t.Errorf("reminded %s before", c.settings().Notify.RemindBefore)
	}
}

func TestMailPassword(t *testing.T) {
	dir := t.TempDir()
	c := mailConfig{
		Host:         "mail.example.org",
		TLS:          "starttls",
		From:         "a@example.org",
		Username:     "u",
		PasswordFile: filepath.Join(dir, "file"),
	}
	write := func(text string, mode os.FileMode) {
		must(t, os.RemoveAll(c.PasswordFile))
		must(t, os.WriteFile(c.PasswordFile, []byte(text), mode))
	}
	write(" kühle Biere \n", 0o640)
	if settings, err := c.load(t.Context()); err != nil || settings.Password != " kühle Biere " {
		t.Errorf("the password is %q (%v)", settings.Password, err)
	}
	for text, mode := range map[string]os.FileMode{"": 0o600, "\n": 0o600, "one\nsecret": 0o600, "secret": 0o604} {
		write(text, mode)
		if _, err := c.open(t.Context()); err == nil || !strings.Contains(err.Error(), c.PasswordFile) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%q with mode %o: %v", text, mode, err)
		}
	}
	write("secret", 0o400)
	credential := c
	credential.PasswordFile = "file"
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := credential.open(t.Context()); err == nil || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("without credentials: %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if settings, err := credential.load(t.Context()); err != nil || settings.Password != "secret" {
		t.Errorf("the credential is %q (%v)", settings.Password, err)
	}
	c.CA = c.PasswordFile
	if _, err := c.open(t.Context()); err == nil || !strings.Contains(err.Error(), "CA") {
		t.Errorf("no CA: %v", err)
	}
	c.CA, c.Templates = "", filepath.Join(dir, "templates")
	must(t, os.Mkdir(c.Templates, 0o700))
	broken := filepath.Join(c.Templates, "option_ending.en.tmpl")
	must(t, os.WriteFile(broken, []byte("\n{{"), 0o600))
	if _, err := c.open(t.Context()); err == nil || !strings.Contains(err.Error(), broken+":2") {
		t.Errorf("a template that does not parse: %v", err)
	}
	if mailer, err := (mailConfig{}).open(t.Context()); mailer != nil || err != nil || len(senders(mailer)) != 0 {
		t.Errorf("without a host: %v, %v", mailer, err)
	}
}

// TestMailReload: a reload takes up the password and the templates, or nothing.
func TestMailReload(t *testing.T) {
	server, dir := mailtest.Start(t, "tls", "u", "new"), t.TempDir()
	c := defaults()
	c.Mail.Host, c.Mail.Port, c.Mail.TLS, c.Mail.CA = "127.0.0.1", server.Port, mail.TLSFromStart, server.CA
	c.Mail.From, c.Mail.Username, c.Mail.PasswordFile = "a@example.org", "u", filepath.Join(dir, "password")
	write := func(name, text string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("password", "old")
	log := &lockedLog{}
	r := &reloader{
		path:    filepath.Join(dir, "config.toml"),
		level:   new(slog.LevelVar),
		running: c,
		apply:   func(daemon.Settings) {},
	}
	r.log = slog.New(slog.NewTextHandler(log, nil))
	var err error
	r.mailer, err = c.Mail.open(t.Context())
	must(t, err)
	send := func() error {
		return r.mailer.Send(
			t.Context(),
			vps.Delivery{ID: "msg-1", Payload: []byte(`{"kind":"option_activated","to":"b@example.org","vps":"web1"}`)},
		)
	}
	if err := send(); err == nil || !strings.Contains(err.Error(), "535") {
		t.Errorf("with the old password: %v", err)
	}
	write("password", "new")
	c.Mail.Templates = filepath.Join(dir, "templates")
	must(t, os.Mkdir(c.Mail.Templates, 0o700))
	own := filepath.Join("templates", "option_activated.en.tmpl")
	write(own, "{{define")
	written, err := toml.Marshal(c)
	must(t, err)
	write("config.toml", string(written))
	if err := r.reload(t.Context()); err == nil || !strings.Contains(err.Error(), own+":1") || send() == nil {
		t.Errorf("a template that cannot be used: %v", err)
	}
	write(own, `{{define "subject"}}{{.VPS}} is yours{{end}}{{define "text"}}{{end}}{{define "html"}}{{end}}`)
	must(t, r.reload(t.Context()))
	must(t, send())
	if got := server.Wait(1)[0]; got.Subject != "web1 is yours" {
		t.Errorf("%q", got.Subject)
	}
	c.Mail.Host = ""
	written, err = toml.Marshal(c)
	must(t, err)
	write("config.toml", string(written))
	must(t, r.reload(t.Context()))
	if !log.says("keys=mail.host")() || send() != nil {
		t.Errorf("mail was switched off without a restart, or nothing was said of it: %s", log.String())
	}
}
