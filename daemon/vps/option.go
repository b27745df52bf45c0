package vps

import (
	"fmt"
	"strings"
	"time"
)

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

// Final reports whether the option never changes again. A new order makes a new option.
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

// decimals is the number of digits of a currency's minor unit where it is not two.
// (That of ISO 4217, in which prices are: the CLDR has another one for some.)
var decimals = map[string]int{
	"BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0,
	"RWF": 0, "UGX": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
	"BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
}

// periods is how a period follows an amount.
var periods = map[Period]map[Language]string{
	PeriodMonth: {English: " per month", French: " par mois"},
	PeriodYear:  {English: " per year", French: " par an"},
	PeriodOnce:  {English: " once", French: " en une fois"},
}

// In writes a price for a human, as in 2.99 EUR per month.
func (p Price) In(l Language) string {
	n, ok := decimals[p.Currency]
	if !ok {
		n = 2
	}
	amount := fmt.Sprintf("%0*d", n+1, p.Amount)
	if n > 0 {
		amount = amount[:len(amount)-n] + "." + amount[len(amount)-n:]
	}
	if l == French {
		amount = strings.Replace(amount, ".", ",", 1)
	}
	return amount + " " + p.Currency + periods[p.Period][l]
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

// LeftWithVPS reports whether an option was released because its VPS went to another
// host: it was neither cancelled nor over. When the VPS is back, the order that had
// made it makes it active again.
func (o Option) LeftWithVPS() bool {
	return o.State == OptionReleased && o.CancelledAt == nil && o.GraceUntil == nil
}

// Leave returns the option of a VPS that went to another host.
func (o Option) Leave(now time.Time) Option {
	o.State, o.ReleasedAt, o.UpdatedAt = OptionReleased, &now, now
	return o
}
