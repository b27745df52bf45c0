// Package mailtest runs a real mail server on loopback (aiosmtpd, with STARTTLS or
// TLS and a password) for tests, and reads what has arrived there.
package mailtest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

//go:embed server.py
var script string

// python is the one that Debian's modules are for.
const python = "/usr/bin/python3"

// Server is a mail server that can be stopped and started again. It refuses
// recipients whose address begins with never for good, and with later for now; after
// a mail to one that begins with drop it drops the connection.
type Server struct {
	// TLS is starttls, tls or none.
	TLS                string
	Username, Password string
	// Port is that of the first start.
	Port int
	// CA is the PEM file of the authority of its certificate.
	CA string

	t         testing.TB
	dir       string
	cert, key string
	stop      func()
}

// Mail is one that has arrived.
type Mail struct {
	From string   `json:"from"`
	To   []string `json:"to"`
	// TLS: the connection was protected. User: who had logged in.
	TLS  bool   `json:"tls"`
	User string `json:"user"`
	Data []byte `json:"data"`

	Header mail.Header `json:"-"`
	// Subject is decoded; Text and HTML are the two parts.
	Subject, Text, HTML string `json:"-"`
}

// Start starts a server for the time of a test.
func Start(t testing.TB, tls, username, password string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{TLS: tls, Username: username, Password: password, t: t, dir: filepath.Join(dir, "mail"),
		CA: filepath.Join(dir, "tls.crt"), cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	s.must(os.Mkdir(s.dir, 0o700))
	s.certify()
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start starts it again, on the same port.
func (s *Server) Start() {
	s.t.Helper()
	settings, err := json.Marshal(map[string]any{"dir": s.dir, "port": s.Port, "tls": s.TLS,
		"username": s.Username, "password": s.Password, "cert": s.cert, "key": s.key})
	s.must(err)
	cmd := exec.Command(python, "-c", script, string(settings)) //nolint:gosec // our own script
	var problems bytes.Buffer
	cmd.Stderr = &problems
	in, err := cmd.StdinPipe()
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	if _, err := fmt.Fscan(bufio.NewReader(out), &s.Port); err != nil {
		_ = in.Close()
		_ = cmd.Wait()
		s.t.Fatalf("the mail server does not start (python3-aiosmtpd is needed): %v\n%s", err, problems.String())
	}
	s.stop = func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("the mail server: %v\n%s", err, problems.String())
		}
	}
}

// Stop ends it; what has arrived is kept.
func (s *Server) Stop() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// certify makes a certificate of its own authority, for 127.0.0.1.
func (s *Server) certify() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	s.must(err)
	private, err := x509.MarshalECPrivateKey(key)
	s.must(err)
	s.must(os.WriteFile(s.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	s.must(os.WriteFile(s.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600))
}

// Mails are what has arrived so far, in order.
func (s *Server) Mails() []Mail {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "??????"))
	s.must(err)
	var all []Mail
	for _, name := range names {
		text, err := os.ReadFile(name)
		s.must(err)
		var m Mail
		s.must(json.Unmarshal(text, &m))
		s.must(m.parse())
		all = append(all, m)
	}
	return all
}

// Wait returns the mails when there are n of them.
func (s *Server) Wait(n int) []Mail {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if all := s.Mails(); len(all) >= n {
			return all
		}
	}
	s.t.Fatalf("%d mails have arrived, not %d", len(s.Mails()), n)
	return nil
}

// parse reads the parts: a text, and then the same as HTML.
func (m *Mail) parse() error {
	read, err := mail.ReadMessage(bytes.NewReader(m.Data))
	if err != nil {
		return err
	}
	m.Header = read.Header
	if m.Subject, err = new(mime.WordDecoder).DecodeHeader(m.Header.Get("Subject")); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		return fmt.Errorf("the mail is %s: %w", kind, err)
	}
	parts := multipart.NewReader(read.Body, params["boundary"])
	for _, part := range []struct {
		kind string
		to   *string
	}{{"text/plain", &m.Text}, {"text/html", &m.HTML}} {
		p, err := parts.NextRawPart()
		if err != nil {
			return err
		}
		if got := p.Header.Get("Content-Type"); !strings.HasPrefix(got, part.kind) ||
			p.Header.Get("Content-Transfer-Encoding") != "quoted-printable" {
			return fmt.Errorf("a part is %s", got)
		}
		text, err := io.ReadAll(quotedprintable.NewReader(p))
		if err != nil {
			return err
		}
		*part.to = strings.ReplaceAll(string(text), "\r\n", "\n")
	}
	if _, err := parts.NextPart(); err != io.EOF { //nolint:errorlint // the reader's very own
		return fmt.Errorf("there is a third part (%w)", err)
	}
	return nil
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}
