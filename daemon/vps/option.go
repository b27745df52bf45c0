package vps

import "time"

// OptionState is where the paid option of a VPS stands.
type OptionState string

const (
	// OptionOrdered: ordered, not yet activated by the order system.
	OptionOrdered OptionState = "ordered"
	// OptionActive: a snapshot may be taken.
	OptionActive OptionState = "active"
	// OptionGrace: cancelled or expired; restore and delete still work, take does not.
	OptionGrace OptionState = "grace"
	// OptionReleased: over; the snapshot is gone.
	OptionReleased OptionState = "released"
)

// Final says that the option never changes again. A new order makes a new option.
func (s OptionState) Final() bool { return s == OptionReleased }

// Period is how often a price is charged.
type Period string

const (
	PeriodMonth Period = "month"
	PeriodYear  Period = "year"
	PeriodOnce  Period = "once"
)

// Price is an amount in the currency's minor unit (cents), its ISO 4217 code and its period.
type Price struct {
	Amount   int64
	Currency string
	Period   Period
}

// Offer is an option on sale, from the configuration.
type Offer struct {
	ID          string // always "snapshot" today
	Name        string
	Description string
	Price       Price
	Conditions  []string
}

// Option is the snapshot option of one VPS, as sold. All times are UTC.
type Option struct {
	ID           string
	VPS          string
	State        OptionState
	OrderRef     string
	Price        Price
	ContactEmail string
	Locale       string
	OrderedAt    time.Time
	ActivatedAt  *time.Time
	// EndsAt is when the paid time ends; nil: until cancelled.
	EndsAt      *time.Time
	CancelledAt *time.Time
	// GraceUntil is when the snapshot is deleted; set in grace only.
	GraceUntil *time.Time
	ReleasedAt *time.Time
	UpdatedAt  time.Time
}

// OptionChange is one line of the history of a VPS's options.
type OptionChange struct {
	ID     int64
	At     time.Time
	Option string // its id
	State  OptionState
	Actor  Actor
	Note   string
}

// OptionQuery selects changes of the options of one VPS, newest first.
type OptionQuery struct {
	VPS    string
	Before int64 // cursor: ids below this; 0 for the newest
	Limit  int
}

// OptionHistory is one page; Next is 0 on the last.
type OptionHistory struct {
	Changes []OptionChange
	Next    int64
}

// OptionOrder is what an order system asks for. It is idempotent by OrderRef.
type OptionOrder struct {
	State        OptionState // OptionOrdered or OptionActive
	OrderRef     string
	Price        *Price // nil: the offer's price of today
	ContactEmail string
	Locale       string
	EndsAt       *time.Time
}
