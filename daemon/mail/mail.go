// Package mail writes and sends the e-mails that the customer who ordered an
// option gets: text and HTML, in French and English, by SMTP. Which mail is due,
// and that it is not lost, is the daemon's business.
package mail

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	netmail "net/mail"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sync/semaphore"

	"vpssnapd/daemon/vps"
)

// Kind is what a mail is about. It names the mail's templates.
type Kind string

const (
	// OptionActivated: the confirmation of the order.
	OptionActivated Kind = "option_activated"
	// SnapshotTaken: a take, or a replacement, has succeeded.
	SnapshotTaken Kind = "snapshot_taken"
	// SnapshotRestored: a restore, or the undo of one, has succeeded.
	SnapshotRestored Kind = "snapshot_restored"
	// SnapshotDeleted: by request, or because the option is over.
	SnapshotDeleted Kind = "snapshot_deleted"
	// OperationFailed: an operation has failed, or waits for an operator.
	OperationFailed Kind = "operation_failed"
	// OptionEnding: the option is about to end.
	OptionEnding Kind = "option_ending"
	// SnapshotRemoval: the option has ended, and the snapshot is about to be removed.
	SnapshotRemoval Kind = "snapshot_removal"
)

// Kinds are all there are.
var Kinds = []Kind{
	OptionActivated,
	SnapshotTaken,
	SnapshotRestored,
	SnapshotDeleted,
	OperationFailed,
	OptionEnding,
	SnapshotRemoval,
}

// Letter is what a mail says, in no language; its JSON is stored until it is sent.
type Letter struct {
	Kind   Kind      `json:"kind"`
	At     time.Time `json:"at"`
	To     string    `json:"to"`
	Locale string    `json:"locale"`
	// VPS is its name.
	VPS string `json:"vps"`

	// What is not said by the kind is empty.
	OrderRef string     `json:"order_ref,omitempty"`
	Price    *vps.Price `json:"price,omitempty"`
	EndsAt   *time.Time `json:"ends_at,omitempty"`
	// KeptUntil is when the snapshot is removed.
	KeptUntil *time.Time `json:"kept_until,omitempty"`
	UndoUntil *time.Time `json:"undo_until,omitempty"`
	TakenAt   *time.Time `json:"taken_at,omitempty"`
	// Description is the snapshot's.
	Description string     `json:"description,omitempty"`
	Operation   vps.Kind   `json:"operation,omitempty"`
	Status      vps.Status `json:"status,omitempty"`
	Way         vps.Way    `json:"way,omitempty"`
	Result      string     `json:"result,omitempty"`
	Code        vps.Code   `json:"code,omitempty"`
}

// About adds what is told of a snapshot; of the zero Snapshot nothing is. Copies,
// because the snapshot may be gone when the letter is sent.
func (l Letter) About(s vps.Snapshot) Letter {
	if s.ID != "" {
		l.TakenAt, l.Description, l.UndoUntil = &s.CreatedAt, s.Description, s.UndoUntil
	}
	return l
}

// TLS is how the connection to the mail server is protected.
type TLS string

const (
	// StartTLS begins in the clear and sends nothing before TLS is on.
	StartTLS TLS = "starttls"
	// TLSFromStart is TLS from the first byte.
	TLSFromStart TLS = "tls"
	// NoTLS is for a server on this machine only.
	NoTLS TLS = "none"
)

// ports are those that are usual for each.
var ports = map[TLS]int{StartTLS: 587, TLSFromStart: 465, NoTLS: 25}

// Config says how mails are sent and what they look like.
type Config struct {
	Host string
	// Port is 0 for the usual one.
	Port int
	TLS  TLS
	// Username is "" for a server that wants none.
	Username string
	Password string
	// CA are the authorities to trust; nil: the system's.
	CA *x509.CertPool
	// From, with or without a name, and ReplyTo, "" for none, are addresses.
	From    string
	ReplyTo string
	// Templates is a directory with templates in place of ours; "" for none.
	Templates string
}

// Check says what cannot work, without reading a file.
func (c Config) Check() error {
	if _, ok := ports[c.TLS]; !ok {
		return fmt.Errorf(`tls must be %q, %q or %q, not %q`, StartTLS, TLSFromStart, NoTLS, c.TLS)
	}
	if ip := net.ParseIP(c.Host); c.TLS == NoTLS && c.Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("host %q is not a loopback address: mail to it needs TLS", c.Host)
	}
	if strings.ContainsFunc(c.Host, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '/' }) {
		return fmt.Errorf("host %q is no name or address of a mail server", c.Host)
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("port %d is none", c.Port)
	}
	if _, err := netmail.ParseAddress(c.From); err != nil {
		return fmt.Errorf("from = %q is no address: %w", c.From, err)
	}
	if _, err := netmail.ParseAddress(c.ReplyTo); c.ReplyTo != "" && err != nil {
		return fmt.Errorf("reply_to = %q is no address: %w", c.ReplyTo, err)
	}
	return nil
}

// address is where the server listens.
func (c Config) address() string {
	port := c.Port
	if port == 0 {
		port = ports[c.TLS]
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(port))
}

// connections is how many mails may be under way to the server at the same time.
const connections = 4

// Mailer sends letters: the deliveries of kind mail, whose payload is a Letter.
type Mailer struct {
	present atomic.Pointer[settings]
	slots   *semaphore.Weighted
}

// settings are a configuration and its templates, which fit together.
type settings struct {
	Config
	templates templates
}

// New makes a mailer. It refuses templates that cannot be used; it connects to nobody.
func New(ctx context.Context, c Config) (*Mailer, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	t, err := readTemplates(ctx, c.Templates)
	if err != nil {
		return nil, err
	}
	m := &Mailer{slots: semaphore.NewWeighted(connections)}
	m.present.Store(&settings{Config: c, templates: t})
	return m, nil
}

// Become makes it work as another one does, from the next letter on. Letters under way
// end with the settings that they began with.
func (m *Mailer) Become(other *Mailer) { m.present.Store(other.present.Load()) }

// Send writes a letter and gives it to the mail server, with the delivery's id as
// its Message-ID. It is final (vps.DeliveryError) when the letter will never be
// accepted. No error holds the password.
func (m *Mailer) Send(ctx context.Context, d vps.Delivery) error {
	var l Letter
	if err := json.Unmarshal(d.Payload, &l); err != nil {
		return &vps.DeliveryError{Err: fmt.Errorf("the mail's record cannot be read: %w", err), Final: true}
	}
	// Many servers refuse a client with more connections than a few.
	if err := m.slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("the mail server is busy with others: %w", err)
	}
	defer m.slots.Release(1)
	s := m.present.Load()
	msg, err := s.write(d.ID, l)
	if err == nil {
		err = s.deliver(ctx, msg)
	}
	if err != nil {
		return fmt.Errorf("cannot send the mail %s about %s: %w", l.Kind, clean(l.VPS), err)
	}
	return nil
}
