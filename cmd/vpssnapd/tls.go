package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
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
	c := &certificates{}
	return c, c.use(f)
}

// certificates are the TLS configuration as the files were when last read.
type certificates struct {
	present atomic.Pointer[tls.Config]
}

// use reads files. When that fails, the certificates stay as they were. Connections that
// are open keep the certificate that they began with.
func (c *certificates) use(f tlsFiles) error {
	if err := private(f.Key); err != nil {
		return fmt.Errorf("refusing the TLS key %s: %w", f.Key, err)
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return fmt.Errorf("cannot use the TLS certificate %s with the key %s: %w", f.Cert, f.Key, err)
	}
	fresh := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		// HTTP/1.1 only: the limits of time and connections are made for it.
		NextProtos: []string{"http/1.1"},
	}
	if f.ClientCA != "" {
		text, err := os.ReadFile(f.ClientCA)
		if err != nil {
			return fmt.Errorf("cannot read the CA of the clients: %w", err)
		}
		fresh.ClientCAs, fresh.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !fresh.ClientCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("there is no certificate of a CA in %s", f.ClientCA)
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
		MinVersion: tls.VersionTLS12,
		// Asked at each handshake, so a renewed certificate counts without a restart.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.present.Load(), nil },
	}
}
