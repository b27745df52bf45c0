package vps

import (
	"crypto/rand"
	"time"
)

// DeliveryKind is by which way something is sent.
type DeliveryKind string

const (
	DeliveryWebhook DeliveryKind = "webhook"
	DeliveryMail    DeliveryKind = "mail"
)

// DeliveryOutcome is how a delivery ended; "" while it waits.
type DeliveryOutcome string

const (
	// DeliveryDelivered: its target took it.
	DeliveryDelivered DeliveryOutcome = "delivered"
	// DeliveryGivenUp: it was tried for as long as there is sense in it.
	DeliveryGivenUp DeliveryOutcome = "given_up"
)

// Delivery is something that is to be sent at least once. It is recorded in the
// transaction of what it reports.
type Delivery struct {
	// ID is of its own among those of all hosts, and the same over all tries.
	ID   string
	Kind DeliveryKind
	// Target is what deliveries share a fate with: one only is under way to each
	// target at a time, and a target that is slow or dead holds up no other. It is
	// shown to operators.
	Target string
	// VPS is the id of the one that it is about; "": the host.
	VPS string
	// Payload is what the sender of its kind makes the text of. It is forgotten
	// when the delivery has ended.
	Payload   []byte
	CreatedAt time.Time
	// Attempts counts the tries that have failed, or succeeded.
	Attempts int
	// NextAt is when it is tried next.
	NextAt time.Time
	// LastError is why the last try failed, for operators: no secrets, nothing that
	// the other side has chosen.
	LastError string
	Outcome   DeliveryOutcome
	EndedAt   *time.Time
}

// NewDeliveryID makes an id that no other host makes: receivers know by it what
// they have got already.
func NewDeliveryID() string { return "msg_" + rand.Text() }

// DeliveryQueue is what waits for one target.
type DeliveryQueue struct {
	Kind    DeliveryKind
	Target  string
	Waiting int
	// Oldest is when the first of them was recorded.
	Oldest time.Time
	// NextAt is when the first of them is to be tried.
	NextAt time.Time
}

// DeliveryError is why a try failed, with what that says of further tries. Any
// other error says nothing: the delivery is tried again.
type DeliveryError struct {
	Err error
	// Final: no further try can succeed.
	Final bool
	// Gone: nor can any other delivery to this target.
	Gone bool
	// After: the target does not want to be tried before, with whatever; 0: it did not say.
	After time.Duration
}

func (e *DeliveryError) Error() string { return e.Err.Error() }

func (e *DeliveryError) Unwrap() error { return e.Err }
