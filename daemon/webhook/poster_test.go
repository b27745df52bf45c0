package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/net/dns/dnsmessage"

	"vpssnapd/daemon/vps"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// receiver serves HTTPS on loopback. A Poster made with its trust may send there.
func receiver(t *testing.T, handle http.HandlerFunc) (*httptest.Server, *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(handle)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

func answering(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// What arrives is signed as the library of Standard Webhooks verifies it.
func TestPostIsSigned(t *testing.T) {
	secret := NewSecret()
	verified := make(chan error, 1)
	s, trust := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && (string(body) != `{"a":1}` || r.Header.Get("webhook-id") != "msg_1" || r.Method != http.MethodPost ||
			r.Header.Get("Content-Type") != "application/json" || r.Header.Get("User-Agent") != "vpssnapd/1.0") {
			err = errors.New("it is not what was sent: " + string(body))
		}
		library, bad := standardwebhooks.NewWebhook(secret)
		verified <- errors.Join(err, bad, library.Verify(body, r.Header))
	})
	p := New(Config{Allow: loopback, TLS: trust, Version: "1.0"})
	if err := p.Post(t.Context(), s.URL, secret, "msg_1", []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := <-verified; err != nil {
		t.Error(err)
	}
	if another := NewSecret(); another == secret || len(another) != len(secret) {
		t.Errorf("secrets: %s, %s", secret, another)
	}
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		code  int
		after string
		want  vps.DeliveryError // but its Err
	}{
		{200, "", vps.DeliveryError{}},
		{202, "", vps.DeliveryError{}},
		{301, "", vps.DeliveryError{}},
		{400, "", vps.DeliveryError{}},
		{410, "", vps.DeliveryError{Gone: true}},
		{429, "120", vps.DeliveryError{After: 2 * time.Minute}},
		{503, "-5", vps.DeliveryError{}},
		{503, "soon", vps.DeliveryError{}},
		{503, "99999999999999999999", vps.DeliveryError{}},
		{503, "Mon, 02 Jan 2006 15:04:05 GMT", vps.DeliveryError{}},
		{500, "1", vps.DeliveryError{After: time.Second}},
	} {
		s, trust := receiver(t, answering(c.code, "Retry-After", c.after))
		err := New(Config{Allow: loopback, TLS: trust}).Post(t.Context(), s.URL, NewSecret(), "msg_1", nil)
		var e *vps.DeliveryError
		if c.code < 300 {
			if err != nil {
				t.Errorf("%d: %v", c.code, err)
			}
			continue
		}
		if !errors.As(err, &e) || e.Gone != c.want.Gone || e.After != c.want.After || e.Final ||
			!strings.Contains(err.Error(), strconv.Itoa(c.code)) {
			t.Errorf("%d with Retry-After %q: %+v", c.code, c.after, err)
		}
	}
}

// A proxy would connect to what is refused here: none is asked, whatever the
// environment says. (net/http reads it once, so that the outcome cannot be tried.)
func TestNoProxyIsAsked(t *testing.T) {
	if transport, ok := New(Config{}).client.Transport.(*http.Transport); !ok || transport.Proxy != nil {
		t.Error("a proxy may be asked")
	}
}

// Redirects are not followed, wherever they lead.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var followed atomic.Bool
	target, _ := receiver(t, func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	for _, code := range []int{301, 302, 303, 307, 308} {
		s, trust := receiver(t, answering(code, "Location", target.URL))
		trust.RootCAs.AddCert(target.Certificate())
		err := New(Config{Allow: loopback, TLS: trust}).Post(t.Context(), s.URL, NewSecret(), "msg_1", nil)
		if err == nil || !strings.Contains(err.Error(), "redirects are not followed") || followed.Load() {
			t.Errorf("%d: %v, followed: %v", code, err, followed.Load())
		}
	}
}

// The addresses that are refused, as they stand in a URL, and as what a name
// resolves to.
func TestAddressesThatAreRefused(t *testing.T) {
	for text, permitted := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "172.32.0.1": true, "100.128.0.1": true, "2606:4700:4700::1111": true, "2a00:1450::1": true,
		"::ffff:8.8.8.8": true, // the same host as 8.8.8.8, and reached over IPv4
		"127.0.0.1":      false, "127.8.8.8": false, "0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false,
		"192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "192.0.0.8": false, "198.18.0.1": false, "192.0.2.1": false,
		"198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "239.1.1.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "::127.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:169.254.169.254": false,
		"fe80::1": false, "fec0::1": false, "fc00::1": false, "fd12:3456::1": false, "ff02::1": false, "100::1": false,
		"64:ff9b::10.0.0.1": false, "64:ff9b::8.8.8.8": false, "64:ff9b:1::10.0.0.1": false, "2002:0a00:0001::1": false, "2002:7f00:1::": false,
		"2001::1": false, "2001:db8::1": false, "3fff::1": false, "5f00::1": false,
	} {
		addr := netip.MustParseAddr(text)
		p := New(Config{Resolver: resolving(t, func() netip.Addr { return addr })})
		if got := p.permitted(addr) == nil; got != permitted {
			t.Errorf("%s is permitted: %v", text, got)
		}
		if err := p.CheckURL("https://" + net.JoinHostPort(text, "9") + "/"); (err == nil) != permitted {
			t.Errorf("%s in a URL: %v", text, err)
		}
		if permitted {
			continue
		}
		for _, at := range []string{"https://" + net.JoinHostPort(text, "9") + "/", "https://panel.test:9/"} {
			err := p.Post(t.Context(), at, NewSecret(), "msg_1", nil)
			if err == nil || !strings.Contains(err.Error(), "not a public address") {
				t.Errorf("%s (%s) is sent to: %v", at, text, err)
			}
		}
	}
	if err := New(Config{}).permitted(netip.MustParseAddr("fe80::1%lo")); err == nil {
		t.Error("a link-local address with a zone is permitted")
	}
}

// What the configuration allows is permitted, in whichever form, and nothing else.
func TestAllowedAddresses(t *testing.T) {
	p := New(Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")}})
	for text, permitted := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "fd00::9": true, "10.2.0.1": false, "fd00:0:0:1::1": false, "127.0.0.1": false} {
		if got := p.permitted(netip.MustParseAddr(text)) == nil; got != permitted {
			t.Errorf("%s is permitted: %v", text, got)
		}
	}
}

// A name that leads to a permitted address first, and elsewhere when it is sent
// to, is refused then: what counts is the address that is connected to.
func TestRebinding(t *testing.T) {
	var reached atomic.Int32
	s, trust := receiver(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	var leads atomic.Value
	leads.Store(netip.MustParseAddr("127.0.0.1"))
	trust.ServerName = "example.com" // which the receiver's certificate names
	p := New(Config{
		Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, TLS: trust,
		Resolver: resolving(t, func() netip.Addr { return leads.Load().(netip.Addr) }),
	})
	to := "https://panel.test:" + at.Port() + "/"
	if err := p.Post(t.Context(), to, NewSecret(), "msg_1", nil); err != nil || reached.Load() != 1 {
		t.Fatalf("at first: %v, reached %d times", err, reached.Load())
	}
	leads.Store(netip.MustParseAddr("127.0.0.2"))
	if err := p.Post(t.Context(), to, NewSecret(), "msg_2", nil); err == nil ||
		!strings.Contains(err.Error(), "127.0.0.2 is not a public address") {
		t.Errorf("then: %v", err)
	}
	if reached.Load() != 1 {
		t.Error("it was sent to")
	}
}

// resolving is a resolver that finds one address for every name.
func resolving(t *testing.T, find func() netip.Addr) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buffer := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := resolve(buffer[:n], find()); answer != nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

func resolve(question []byte, addr netip.Addr) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
	switch {
	case q.Type == dnsmessage.TypeA && addr.Is4():
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case q.Type == dnsmessage.TypeAAAA && addr.Is6():
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

func TestURLs(t *testing.T) {
	for text, good := range map[string]bool{
		"https://panel.example.net/hooks?x=1": true, "https://panel.example.net": true, "https://8.8.8.8:8443/": true, "https://[2606:4700::1]/": true,
		"http://panel.example.net/": false, "ftp://panel.example.net/": false, "panel.example.net": false, "https:///x": false, "https:panel": false,
		"https://jo:pw@panel.example.net/": false, "https://jo@panel.example.net/": false, "https://panel.example.net/#x": false, "https://127.0.0.1/": false,
		"https://[::1]/": false, "https://[::ffff:10.0.0.1]/": false, "https://[::ffff:7f00:1]/": false, "https://[64:ff9b::7f00:1]/": false,
		"https://[fe80::1%25lo]/": false, "https://[::ffff:127.0.0.1%25lo]/": false, "https://[::]/": false, "https://0.0.0.0/": false,
		"https://panel.example.net:99999999/": false, "https://panel.example.net:0/": false, "https://panel.example.net:x/": false, "https://panel.example.net/" + strings.Repeat("a", 2048): false, "": false,
		"https://a b/": false, "https://panel.example.net/\x00": false, "file:///etc/passwd": false, "unix:///run/libvirt/libvirt-sock": false,
	} {
		if err := New(Config{}).CheckURL(text); (err == nil) != good || vps.CodeOf(err) != vps.CodeInvalid && !good {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := New(Config{AllowHTTP: true}).CheckURL("http://panel.example.net/"); err != nil {
		t.Error(err)
	}
	if err := New(Config{Allow: loopback}).Post(t.Context(), "http://127.0.0.1:9/", NewSecret(), "msg_1", nil); vps.CodeOf(
		err,
	) != vps.CodeInvalid {
		t.Errorf("without TLS it is sent: %v", err)
	}
}

// Errors are shown: nothing is in them of the URL but its host, of the secret, or
// of what the receiver says.
func TestErrorsTellNoSecrets(t *testing.T) {
	leak := answering(500, "X-Leak", "hunter2")
	s, trust := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		leak(w, r)
		_, _ = w.Write([]byte("hunter2"))
	})
	plain := httptest.NewServer(leak)
	defer plain.Close()
	closed := httptest.NewTLSServer(leak)
	closed.Close()
	cut, _ := receiver(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	trust.RootCAs.AddCert(cut.Certificate())
	stranger := New(Config{Allow: loopback})
	p := New(Config{Allow: loopback, TLS: trust, Resolver: resolving(t, func() netip.Addr { return netip.Addr{} })})
	for name, c := range map[string]struct {
		by   *Poster
		to   string
		want string
	}{
		"an error":         {p, s.URL, "the receiver answered 500"},
		"no TLS":           {p, strings.Replace(plain.URL, "http:", "https:", 1), "127.0.0.1 does not speak TLS there"},
		"a closed port":    {p, closed.URL, "127.0.0.1 cannot be connected to"},
		"a cut connection": {p, cut.URL, "the connection to 127.0.0.1 failed before there was an answer"},
		"no trust":         {stranger, s.URL, "the certificate of 127.0.0.1 is not one to be trusted"},
		"no such name":     {p, "https://panel.test/", "the name panel.test cannot be resolved"},
	} {
		secret := NewSecret()
		err := c.by.Post(t.Context(), c.to+"/hunter2?token=hunter2", secret, "msg_1", []byte("hunter2"))
		if err == nil || err.Error() != c.want || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// A receiver that never ends its answer, or its head, is not listened to for long.
func TestEndlessAnswers(t *testing.T) {
	s, trust := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	})
	if err := New(Config{Allow: loopback, TLS: trust}).Post(t.Context(), s.URL, NewSecret(), "msg_1", nil); err != nil {
		t.Errorf("an endless body: %v", err)
	}
	s, trust = receiver(t, answering(200, "X-Long", strings.Repeat("a", 2*headRead)))
	if err := New(Config{Allow: loopback, TLS: trust}).Post(t.Context(), s.URL, NewSecret(), "msg_1", nil); err == nil {
		t.Error("an endless head is read")
	}
	s, trust = receiver(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{Allow: loopback, TLS: trust}).Post(ctx, s.URL, NewSecret(), "msg_1", nil); err == nil {
		t.Error("what was told to end went on")
	}
}
