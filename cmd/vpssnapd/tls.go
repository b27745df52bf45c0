package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// tlsFiles are the files of [tls], all PEM.
type tlsFiles struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	// ClientCA makes it mutual: nobody gets in without a certificate of this CA.
	ClientCA string `toml:"client_ca"`
}

func (f tlsFiles) on() bool { return f.Cert != "" }

func (f tlsFiles) check() error {
	if (f.Cert == "") != (f.Key == "") || f.ClientCA != "" && f.Cert == "" {
		return errors.New("[tls] needs both cert and key; client_ca comes on top of them")
	}
	for _, path := range []string{f.Cert, f.Key, f.ClientCA} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("[tls]: %q is no absolute path", path)
		}
	}
	return nil
}

// load reads the files; without them it returns nil.
func (f tlsFiles) load() (*certificates, error) {
	if !f.on() {
		return nil, nil
	}
	c := &certificates{files: f}
	return c, c.reload()
}

// certificates are the TLS configuration as the files were when last read.
type certificates struct {
	files   tlsFiles
	present atomic.Pointer[tls.Config]
}

// reload reads the files anew. When that fails, the certificates stay as they were.
func (c *certificates) reload() error {
	if err := private(c.files.Key); err != nil {
		return fmt.Errorf("refusing the TLS key %s: %w", c.files.Key, err)
	}
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return fmt.Errorf("cannot use the TLS certificate %s with the key %s: %w", c.files.Cert, c.files.Key, err)
	}
	fresh := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		// HTTP/1.1 only: the limits of time and connections are made for it.
		NextProtos: []string{"http/1.1"},
	}
	if c.files.ClientCA != "" {
		text, err := os.ReadFile(c.files.ClientCA)
		if err != nil {
			return fmt.Errorf("cannot read the CA of the clients: %w", err)
		}
		fresh.ClientCAs, fresh.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !fresh.ClientCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("there is no certificate of a CA in %s", c.files.ClientCA)
		}
	}
	c.present.Store(fresh)
	return nil
}

// private refuses a key that all users of the host may read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o027 != 0 {
		return fmt.Errorf("others may read or write it (mode %04o); chmod g-w,o= it", info.Mode().Perm())
	}
	return nil
}

// config is for the listener; nil without TLS. Each connection gets the present
// certificates.
func (c *certificates) config() *tls.Config {
	if c == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.present.Load(), nil },
	}
}

// reloadOnHangup reads the files anew at each SIGHUP, until stop is called.
// Without TLS there is nothing to read, but the signal must not end the daemon.
func (c *certificates) reloadOnHangup(logger *slog.Logger) (stop func()) {
	hangup, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for range hangup {
			if c == nil {
				logger.Info("SIGHUP: there are no TLS certificates to read anew")
				continue
			}
			c.reloadAndSay(logger)
		}
	}()
	return func() {
		signal.Stop(hangup)
		close(hangup)
		<-ended
	}
}

func (c *certificates) reloadAndSay(logger *slog.Logger) {
	if err := c.reload(); err != nil {
		logger.Error("the TLS certificates stay as they were", "error", err)
		return
	}
	logger.Info("TLS certificates read anew", "cert", c.files.Cert)
}
