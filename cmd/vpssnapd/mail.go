package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/vps"
	"vpssnapd/hostfile"
)

// mailConfig is [mail]. Without a host there is no mail.
type mailConfig struct {
	Host         string   `toml:"host"`
	Port         int      `toml:"port"`
	TLS          mail.TLS `toml:"tls"`
	Username     string   `toml:"username"`
	PasswordFile string   `toml:"password_file"`
	CA           string   `toml:"ca"`
	From         string   `toml:"from"`
	ReplyTo      string   `toml:"reply_to"`
	Templates    string   `toml:"templates"`
	RemindBefore duration `toml:"remind_before"`
}

func (c mailConfig) check() error {
	if c.RemindBefore < 0 {
		return errors.New("mail.remind_before must not be negative")
	}
	if c.Host == "" {
		return nil
	}
	// One without the other is a line that was forgotten.
	if (c.Username == "") != (c.PasswordFile == "") {
		return errors.New("[mail] needs both username and password_file, or neither")
	}
	for key, path := range map[string]string{"ca": c.CA, "templates": c.Templates} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("mail.%s = %q is no absolute path", key, path)
		}
	}
	// A relative path would depend on the directory that the daemon was started in.
	if strings.Contains(c.PasswordFile, "/") && !filepath.IsAbs(c.PasswordFile) {
		return fmt.Errorf("mail.password_file = %q is neither an absolute path nor the name of a credential", c.PasswordFile)
	}
	if err := c.settings().Check(); err != nil {
		return fmt.Errorf("[mail]: %w", err)
	}
	return nil
}

// settings are what needs no file to be read.
func (c mailConfig) settings() mail.Config {
	return mail.Config{
		Host:      c.Host,
		Port:      c.Port,
		TLS:       c.TLS,
		Username:  c.Username,
		From:      c.From,
		ReplyTo:   c.ReplyTo,
		Templates: c.Templates,
	}
}

// load reads the password and the authorities.
func (c mailConfig) load(ctx context.Context) (mail.Config, error) {
	settings := c.settings()
	var err error
	if c.PasswordFile != "" {
		if settings.Password, err = c.readPassword(ctx); err != nil {
			return settings, fmt.Errorf("[mail]: %w", err)
		}
	}
	if c.CA != "" {
		text, err := hostfile.Read(ctx, c.CA, hostfile.Trusted)
		if err != nil {
			return settings, fmt.Errorf("cannot read the CA of the mail server: %w", err)
		}
		// Only these: an operator who names a CA does not want the system's beside it.
		settings.CA = x509.NewCertPool()
		if !settings.CA.AppendCertsFromPEM(text) {
			return settings, fmt.Errorf("there is no certificate of a CA in %s", c.CA)
		}
	}
	return settings, nil
}

// passwordPath is a file, or a credential that systemd has for us; "" without a password.
func (c mailConfig) passwordPath() (string, error) {
	if c.PasswordFile == "" || filepath.IsAbs(c.PasswordFile) {
		return c.PasswordFile, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", fmt.Errorf(
			"password_file = %q is no absolute path, and systemd has no credentials for us (LoadCredential=)",
			c.PasswordFile,
		)
	}
	return filepath.Join(dir, c.PasswordFile), nil
}

func (c mailConfig) readPassword(ctx context.Context) (string, error) {
	path, err := c.passwordPath()
	if err != nil {
		return "", err
	}
	text, err := hostfile.Read(ctx, path, hostfile.Secret)
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" || strings.ContainsAny(password, "\x00\r\n") {
		return "", fmt.Errorf("the password file %s must hold one line, the password", path)
	}
	return password, nil
}

// withCredential reports whether the password is a credential that systemd has not given
// to this process: config check runs outside the unit.
func (c mailConfig) withCredential() bool {
	return c.PasswordFile != "" && !filepath.IsAbs(c.PasswordFile) && os.Getenv("CREDENTIALS_DIRECTORY") == ""
}

// open makes what sends mail; nil without a host.
func (c mailConfig) open(ctx context.Context) (*mail.Mailer, error) {
	if c.Host == "" {
		return nil, nil
	}
	settings, err := c.load(ctx)
	if err != nil {
		return nil, err
	}
	return mail.New(ctx, settings)
}

// senders are what carries news outside.
func senders(mailer *mail.Mailer) map[vps.DeliveryKind]notify.Sender {
	all := map[vps.DeliveryKind]notify.Sender{}
	if mailer != nil {
		all[vps.DeliveryMail] = mailer
	}
	return all
}
