package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"time"

	"github.com/wneessen/go-mail"

	"vpssnapd/daemon/vps"
)

// answerWithin is how long the server may take to let us in, and to take a mail.
const answerWithin = 30 * time.Second

// deliver gives a mail to the server over a connection of its own.
func (s *settings) deliver(ctx context.Context, msg *mail.Msg) error {
	line := &line{settings: s, ctx: ctx}
	defer line.close()
	// A new connection for each mail: they are rare, and an idle one is closed by
	// servers anyway.
	client, err := mail.NewClient(s.Host, s.options(line)...)
	if err != nil {
		return err
	}
	smtp, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return s.notLetIn(err)
	}
	err = client.SendWithSMTPClient(smtp, msg)
	if msg.IsDelivered() { // whatever came after it: it must not be sent again
		_ = client.CloseWithSMTPClient(smtp)
		return nil
	}
	return judge(err)
}

// options tell the library what to do. It gets the connection from us, because it
// neither heeds a context once it is connected, nor closes what it gives up.
func (s *settings) options(l *line) []mail.Option {
	policy := mail.NoTLS
	if s.TLS == StartTLS {
		policy = mail.TLSMandatory
	}
	options := []mail.Option{
		mail.WithDialContextFunc(l.dial), mail.WithTimeout(answerWithin),
		mail.WithTLSPolicy(policy), mail.WithTLSConfig(s.tls()),
	}
	// "Opportunistic": a server that offers no login gets none, and then refuses by
	// itself if it wants one.
	if s.Username != "" {
		options = append(options, mail.WithOpportunisticSMTPAuth(mail.SMTPAuthPlain, mail.SMTPAuthLogin),
			mail.WithUsername(s.Username), mail.WithPassword(s.Password))
	}
	return options
}

func (s *settings) tls() *tls.Config {
	// ServerName is what was configured, whatever the name resolves to.
	return &tls.Config{ServerName: s.Host, RootCAs: s.CA, MinVersion: tls.VersionTLS12}
}

// line is the connection to the server. It ends with its context.
type line struct {
	*settings
	ctx  context.Context
	conn net.Conn
	stop func() bool
}

func (l *line) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.address())
	if err != nil {
		return nil, err
	}
	l.conn, l.stop = conn, context.AfterFunc(l.ctx, func() { _ = conn.Close() })
	if l.TLS != TLSFromStart {
		return conn, nil
	}
	secured := tls.Client(conn, l.tls())
	return secured, secured.HandshakeContext(ctx)
}

func (l *line) close() {
	if l.conn != nil {
		l.stop()
		_ = l.conn.Close()
	}
}

// notLetIn explains why there is no session. It is never the letter's fault, so
// it is not for good. The server's words are left out when it was told a password:
// nobody knows what they repeat.
func (s *settings) notLetIn(err error) error {
	var answer *textproto.Error
	switch {
	case !errors.As(err, &answer):
		return err
	case s.Username == "":
		return fmt.Errorf("the mail server does not let us in: %s", clean(answer.Error()))
	case answer.Code == wrongPassword:
		return fmt.Errorf(
			"the mail server refuses the user name or the password (code %d): correct them in the configuration ([mail])",
			answer.Code,
		)
	}
	return fmt.Errorf("the mail server does not let us in (code %d); its own log says why", answer.Code)
}

// What a server answers when the configuration is wrong, and not the mail (RFC 4954).
const (
	// 530 is about the session: every later mail would be lost with a final verdict.
	authenticationRequired = 530
	wrongPassword          = 535
)

// judge tells a refusal for good from what may be over at the next try. The
// library's own idea of "temporary" is of no use: a lost connection is not.
func judge(err error) error {
	var answer *mail.SendError
	if err == nil || !errors.As(err, &answer) {
		return err
	}
	final := answer.ErrorCode() >= 500 && answer.ErrorCode() != authenticationRequired
	return &vps.DeliveryError{Err: errors.New(clean(err.Error())), Final: final}
}
