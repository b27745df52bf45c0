package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
)

// authority is a CA made for one test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	key, text := a.issue("a CA", nil)
	cert, err := x509.ParseCertificate(decodePEM(text))
	must(t, err)
	a.cert, a.key, a.pem = cert, key, text
	return a
}

func decodePEM(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

// issue makes a key and a certificate for 127.0.0.1 and for clients, or with a nil
// issuer one that signs itself.
func (a *authority) issue(name string, issuer *authority) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(a.t, err)
	form := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := form, key
	if issuer == nil {
		form.IsCA, form.BasicConstraintsValid, form.KeyUsage, form.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	} else {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, form, parent, &key.PublicKey, signer)
	must(a.t, err)
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// write puts a new certificate and its key into files.
func (a *authority) write(name, certFile, keyFile string) {
	a.t.Helper()
	key, cert := a.issue(name, a)
	der, err := x509.MarshalECPrivateKey(key)
	must(a.t, err)
	must(a.t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
	must(a.t, os.WriteFile(certFile, cert, 0o600))
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// served is a daemon that is served: where, with a token for it, and what is logged.
type served struct {
	address, token string
	log            *lockedLog
}

// running serves a daemon as the configuration says, until the test ends.
func running(t *testing.T, c config) served {
	t.Helper()
	// A port that was free a moment ago.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c.Listen = l.Addr().String()
	must(t, l.Close())
	c.Socket = filepath.Join(t.TempDir(), "api.sock")
	must(t, c.checkListen())
	log := &lockedLog{}
	r := &reloader{
		path:    filepath.Join(t.TempDir(), "config.toml"),
		level:   new(slog.LevelVar),
		running: c,
		apply:   func(daemon.Settings) {},
	}
	r.log = slog.New(slog.NewTextHandler(log, nil))
	r.certificates, err = c.TLS.load(t.Context())
	must(t, err)
	written, err := toml.Marshal(c)
	must(t, err)
	must(t, os.WriteFile(r.path, written, 0o600))
	listening, err := listen(c)
	must(t, err)
	host := daemontest.New(t)
	s := server.New(server.Config{Services: daemontest.Services(host.Daemon), Logger: r.log, PerSecond: c.CallsPerSecond})
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	stop := inBackground(t.Context(), func(ctx context.Context) { r.follow(ctx, hangup) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, s, listening, r) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
		stop()
		signal.Stop(hangup)
	})
	eventually(t, "the port is open", func() bool {
		conn, err := net.Dial("tcp", c.Listen)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return served{c.Listen, host.Secret("read"), log}
}

// lockedLog is what the daemon has logged.
type lockedLog struct{ daemontest.Buffer }

func (l *lockedLog) says(what string) func() bool {
	return func() bool { return strings.Contains(l.String(), what) }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

// ask makes a call over a connection of its own, and returns the name of the server.
func (s served) ask(c *tls.Config) (status int, name string, err error) {
	transport := &http.Transport{TLSClientConfig: c}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodGet, "https://"+s.address+"/v1/offers", nil)
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.TLS.PeerCertificates[0].Subject.CommonName, nil
}

func TestTLSAndItsRenewal(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	c := defaults()
	c.TLS = tlsFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	ca.write("first", c.TLS.Cert, c.TLS.Key)
	s := running(t, c)
	trusting := &tls.Config{RootCAs: ca.pool()}
	if status, name, err := s.ask(trusting); status != 200 || name != "first" {
		t.Fatalf("%d from %q: %v", status, name, err)
	}
	if _, _, err := s.ask(&tls.Config{RootCAs: ca.pool(), MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("it speaks TLS 1.1")
	}
	if resp, err := http.Get("http://" + s.address + "/healthz"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("it answers without TLS")
		}
	}
	hangup := func() { must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP)) }
	ca.write("second", c.TLS.Cert, c.TLS.Key)
	if _, name, _ := s.ask(trusting); name != "first" {
		t.Errorf("read anew without being asked: %q", name)
	}
	hangup()
	eventually(t, "the second certificate", func() bool { _, name, _ := s.ask(trusting); return name == "second" })
	// Half of a renewal: the certificate does not belong to the key.
	ca.write("third", c.TLS.Cert, filepath.Join(dir, "elsewhere"))
	hangup()
	eventually(t, "it says so", s.log.says("stays as it was"))
	if status, name, err := s.ask(trusting); status != 200 || name != "second" {
		t.Errorf("after half a renewal: %d from %q: %v", status, name, err)
	}
	must(t, os.Rename(filepath.Join(dir, "elsewhere"), c.TLS.Key))
	hangup()
	eventually(t, "the third certificate", func() bool { _, name, _ := s.ask(trusting); return name == "third" })
}

func TestMutualTLS(t *testing.T) {
	ca, others, dir := newAuthority(t), newAuthority(t), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	c := defaults()
	c.TLS = tlsFiles{Cert: file("tls.crt"), Key: file("tls.key"), ClientCA: file("clients.crt")}
	ca.write("server", c.TLS.Cert, c.TLS.Key)
	must(t, os.WriteFile(c.TLS.ClientCA, ca.pem, 0o600))
	s := running(t, c)
	with := func(issuer *authority) *tls.Config {
		issuer.write("client", file("client.crt"), file("client.key"))
		pair, err := tls.LoadX509KeyPair(file("client.crt"), file("client.key"))
		must(t, err)
		return &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{pair}}
	}
	ours, theirs := with(ca), with(others)
	ours.ClientSessionCache = tls.NewLRUClientSessionCache(8) // it would come back with a ticket, if it got one
	// Whatever the server asks for, this one is shown.
	theirs.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &theirs.Certificates[0], nil }
	if status, _, err := s.ask(ours); status != 200 {
		t.Errorf("with a certificate: %d %v", status, err)
	}
	for name, client := range map[string]*tls.Config{"none": {RootCAs: ca.pool()}, "that of another CA": theirs} {
		if status, _, err := s.ask(client); err == nil {
			t.Errorf("with certificate %s: %d", name, status)
		}
	}
	// The clients get another CA: who has come before, must show the new one.
	must(t, os.WriteFile(c.TLS.ClientCA, others.pem, 0o600))
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "clients of the new CA get in", func() bool { status, _, _ := s.ask(theirs); return status == 200 })
	if _, _, err := s.ask(ours); err == nil {
		t.Error("clients of the old CA get in")
	}
}

// A client that begins no TLS, or does not go on with it, is let go within 10 s.
func TestSlowTLS(t *testing.T) {
	t.Parallel()
	ca, dir := newAuthority(t), t.TempDir()
	c := defaults()
	c.TLS = tlsFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	ca.write("server", c.TLS.Cert, c.TLS.Key)
	s := running(t, c)
	conn, err := net.Dial("tcp", s.address)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silent for 10 s: %v", err)
	}
}

func TestSighupWithoutTLS(t *testing.T) {
	s := running(t, defaults())
	must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	eventually(t, "it says so", s.log.says("configuration read anew"))
	resp, err := http.Get("http://" + s.address + "/healthz")
	must(t, err)
	resp.Body.Close()
}

func TestWhereItListens(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key, empty := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "empty")
	ca.write("server", cert, key)
	must(t, os.WriteFile(empty, nil, 0o600))
	tlsOn := "\n[tls]\ncert = '" + cert + "'\nkey = '" + key + "'\n"
	for text, says := range map[string]string{
		"listen = '127.0.0.1:1'":             "",
		"listen = '[::1]:1'":                 "",
		"listen = 'localhost:1'":             "",
		"listen = '0.0.0.0:1'":               "loopback",
		"listen = ':1'":                      "loopback",
		"listen = '[::]:1'":                  "loopback",
		"listen = '192.0.2.1:1'":             "loopback",
		"listen = 'panel.example:1'":         "loopback",
		"listen = '0.0.0.0:1'" + tlsOn:       "",
		"[tls]\ncert = '" + cert + "'":       "both",
		"[tls]\nclient_ca = '" + cert + "'":  "both",
		"[tls]\ncert = 'a'\nkey = 'b'":       "absolute",
		"tokens_file = '/a'":                 "tokens_file",
		"calls_per_second = 0":               "calls_per_second",
		"trusted_proxies = ['proxy']":        "ParsePrefix",
		"trusted_proxies = ['192.0.2.0/24']": "",
	} {
		_, err := parseConfig(strings.NewReader(text))
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, c := range map[string]struct {
		files tlsFiles
		says  string
	}{
		"no file":     {tlsFiles{Cert: cert, Key: key + ".none"}, "no such file"},
		"no key":      {tlsFiles{Cert: cert, Key: empty}, "tls.crt"},
		"no CA":       {tlsFiles{Cert: cert, Key: key, ClientCA: empty}, "CA"},
		"a wrong key": {tlsFiles{Cert: cert, Key: func() string { k := filepath.Join(dir, "k"); ca.write("x", filepath.Join(dir, "c"), k); return k }()}, "match"},
	} {
		if _, err := c.files.load(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.Chmod(key, 0o644))
	if _, err := (tlsFiles{Cert: cert, Key: key}).load(t.Context()); err == nil || !strings.Contains(err.Error(), "others") {
		t.Errorf("a key that everybody can read: %v", err)
	}
}
