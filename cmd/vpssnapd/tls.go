package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"vpssnapd/hostfile"
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
func (f tlsFiles) load(ctx context.Context) (*certificates, error) {
	if !f.on() {
		return nil, nil
	}
	c := &certificates{}
	return c, c.use(ctx, f)
}

// suites are what TLS 1.2 may be spoken with: none with CBC, nor without forward secrecy.
// TLS 1.3 has no others.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// certificates are the TLS configuration as the files were when last read.
type certificates struct {
	present atomic.Pointer[tls.Config]
}

// use reads files. When that fails, the certificates stay as they were.
func (c *certificates) use(ctx context.Context, f tlsFiles) error {
	cert, err := hostfile.Read(ctx, f.Cert, hostfile.Trusted)
	if err != nil {
		return fmt.Errorf("cannot read the TLS certificate: %w", err)
	}
	key, err := hostfile.Read(ctx, f.Key, hostfile.Secret)
	if err != nil {
		return fmt.Errorf("cannot read the TLS key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("cannot use the TLS certificate %s with the key %s: %w", f.Cert, f.Key, err)
	}
	fresh := &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, CipherSuites: suites,
		// HTTP/1.1 only: the limits of time and connections are made for it.
		NextProtos: []string{"http/1.1"},
	}
	if f.ClientCA != "" {
		text, err := hostfile.Read(ctx, f.ClientCA, hostfile.Trusted)
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
