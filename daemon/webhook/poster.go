// Package webhook posts signed messages to URLs that others have chosen: as
// Standard Webhooks has it, and never to where only this host can reach.
package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/sys/unix"

	"vpssnapd/daemon/vps"
)

const (
	// answerWithin is how long a receiver may take, all together.
	answerWithin = 10 * time.Second
	// answerRead is how much of an answer is read, so that it ends in good order.
	// Nothing of it is kept.
	answerRead = 4 << 10
	// headRead is how much of its head is read.
	headRead = 16 << 10
	// urlLength is how long a URL may be.
	urlLength = 2048
	// secretBytes is the length of a secret; Standard Webhooks has 24 to 64.
	secretBytes = 32
)

// Config says where messages may go.
type Config struct {
	// Allow lists the addresses that may be sent to although they are not public.
	Allow []netip.Prefix
	// AllowHTTP permits URLs without TLS.
	AllowHTTP bool
	// Version is sent as that of the sender.
	Version string
	// Resolver and TLS are the system's when nil.
	Resolver *net.Resolver
	TLS      *tls.Config
}

// Poster posts messages.
type Poster struct {
	allow     []netip.Prefix
	allowHTTP bool
	agent     string
	client    *http.Client
}

// New makes a Poster.
func New(c Config) *Poster {
	p := &Poster{allow: c.Allow, allowHTTP: c.AllowHTTP, agent: "vpssnapd/" + c.Version}
	// Control runs after the name was resolved and for each address that is tried, so a
	// name that changes its address between check and connection (DNS rebinding) gains
	// nothing.
	dialer := &net.Dialer{Timeout: answerWithin, Resolver: c.Resolver, Control: p.control}
	p.client = &http.Client{
		Transport: &http.Transport{
			DialContext:     dialer.DialContext,
			TLSClientConfig: c.TLS,
			// Each delivery is one connection: an idle one would outlive a change of the
			// allowed addresses.
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: headRead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p
}

// NewSecret makes a secret for the messages to one receiver.
func NewSecret() string {
	key := make([]byte, secretBytes)
	rand.Read(key)
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// CheckURL says what is wrong with a URL, as far as that can be said without connecting
// to it. Codes: invalid. It is asked again before each delivery, as the configuration
// may have changed.
func (p *Poster) CheckURL(text string) error {
	u, err := url.Parse(text)
	bad := func(why string) error { return vps.Errorf(vps.CodeInvalid, "the URL of the webhook %s", why) }
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return bad("is not one")
	case len(text) > urlLength:
		return bad(fmt.Sprintf("is longer than %d characters", urlLength))
	case u.Port() != "" && !isPort(u.Port()):
		return bad("has a port that there cannot be")
	case u.Scheme != "https" && (u.Scheme != "http" || !p.allowHTTP):
		return bad("must begin with https://")
	case u.User != nil:
		return bad("holds a user or a password: the signature takes their place")
	case u.Fragment != "":
		return bad("has a fragment (#), which is never sent")
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := p.permitted(addr); err != nil {
			return bad("leads nowhere that may be sent to: " + err.Error())
		}
	}
	return nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// Post sends a message once. Its error is for operators to read: it holds nothing
// of the URL but the host, and nothing that the receiver has said. What it means
// for further tries: vps.DeliveryError.
func (p *Poster) Post(ctx context.Context, to, secret, id string, body []byte) error {
	if err := p.CheckURL(to); err != nil {
		return err // the configuration permitted it once, and may again
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	req, err := p.request(ctx, to, secret, id, body)
	if err != nil {
		return &vps.DeliveryError{Err: err, Final: true}
	}
	res, err := p.client.Do(req)
	if err != nil {
		return errors.New(plain(ctx, err, req.URL.Hostname()))
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, answerRead)) // whatever it is
	return judge(res)
}

// request makes the signed request. The signature holds for this try only: a
// receiver refuses one that is minutes old.
func (p *Poster) request(ctx context.Context, to, secret, id string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the URL of the webhook cannot be used")
	}
	signer, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return nil, errors.New("the secret of the webhook cannot be used")
	}
	now := time.Now()
	signature, err := signer.Sign(id, now, body)
	if err != nil {
		return nil, errors.New("the message cannot be signed")
	}
	req.Header.Set("Content-Type", "application/json")
	// Standard Webhooks: id, time and signature, and the id is the same at each try, for
	// the receiver to know a repetition.
	req.Header.Set("User-Agent", p.agent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	return req, nil
}

// judge says what an answer means.
func judge(res *http.Response) error {
	code := res.StatusCode
	e := &vps.DeliveryError{Err: fmt.Errorf("the receiver answered %d", code)}
	switch {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		e.Err = fmt.Errorf("the receiver answered %d: redirects are not followed", code)
	// By the standard this means that the receiver is gone for good.
	case code == http.StatusGone:
		e.Gone = true
	case code == http.StatusTooManyRequests || code >= 500:
		e.After = retryAfter(res.Header.Get("Retry-After"))
	}
	return e
}

// retryAfter reads the header: seconds or a date; 0: it says nothing.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32); err == nil {
		return max(time.Duration(seconds)*time.Second, 0)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// plain says why there was no answer, in words of our own. The library's texts would
// name the whole URL, which may hold a secret of the receiver.
func plain(ctx context.Context, err error, host string) string {
	var no refused
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var dial *net.OpError
	switch {
	case errors.As(err, &no):
		return no.Error()
	case keptOff():
		return "the unit keeps vpssnapd off the network; allow it: systemctl edit vpssnapd, [Service], RestrictAddressFamilies=AF_INET AF_INET6"
	case ctx.Err() != nil:
		return fmt.Sprintf("%s did not answer within %s", host, answerWithin)
	case errors.As(err, &name):
		return "the name " + host + " cannot be resolved"
	case errors.As(err, &certificate):
		return "the certificate of " + host + " is not one to be trusted"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return host + " does not speak TLS there"
	case errors.As(err, &dial) && dial.Op == "dial":
		return host + " cannot be connected to"
	}
	return "the connection to " + host + " failed before there was an answer"
}

// keptOff reports whether this process may open no connection (RestrictAddressFamilies=
// of the unit). A resolver would call that a name that cannot be resolved.
func keptOff() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return errors.Is(err, unix.EAFNOSUPPORT)
}
