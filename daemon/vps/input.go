package vps

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What callers may write. It holds whichever way they come; openapi.yaml promises
// the same, and a test of api/server compares the two.
var (
	// Neither controls, those of C1 included, nor what ends lines or turns their direction.
	oneLine      = regexp.MustCompile(`^[^\x00-\x1F\x7F-\x{9F}\x{2028}-\x{202E}\x{2066}-\x{2069}]*$`)
	currencyForm = regexp.MustCompile(`^[A-Z]{3}$`)
	// In ASCII: others need servers with SMTPUTF8 all the way to the customer.
	emailForm  = regexp.MustCompile("^[!#-'*+./0-9=?A-Z[\\]^-~-]+@[!#-'*+./0-9=?A-Z[\\]^-~-]+$")
	localeForm = regexp.MustCompile(`^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$`)
)

// mostAmount is the largest price, in the currency's minor unit.
const mostAmount = 1_000_000_000_000

// fits reports whether text has a form and at most so many characters.
func fits(text string, form *regexp.Regexp, most int) bool {
	return utf8.ValidString(text) && utf8.RuneCountInString(text) <= most && form.MatchString(text)
}

func inASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII })
}

// CheckDescription says what is wrong with the description of a snapshot. Codes: invalid.
func CheckDescription(text string) error {
	if !fits(text, oneLine, 500) {
		return Errorf(CodeInvalid, "a description is one line of at most 500 characters")
	}
	return nil
}

// Check says what is wrong with r. Codes: invalid.
func (r TakeRequest) Check() error {
	switch r.Quiesce {
	case "", QuiescePrefer, QuiesceRequire, QuiesceNever:
		return CheckDescription(r.Description)
	}
	return Errorf(CodeInvalid, "quiesce must be prefer, require or never, not %q", r.Quiesce)
}

// Check says what is wrong with r. Codes: invalid.
func (r RestoreRequest) Check() error {
	switch r.PowerAfter {
	case "", PowerPrevious, PowerRunning, PowerOff:
		return nil
	}
	return Errorf(CodeInvalid, "power_after must be previous, running or off, not %q", r.PowerAfter)
}

// Check says what is wrong with o, apart from its time. Codes: invalid.
func (o OptionOrder) Check() error {
	switch {
	case o.State != OptionOrdered && o.State != OptionActive:
		return Errorf(CodeInvalid, "an option can be put to ordered or active, not to %q", o.State).
			WithRemedy("cancel it with DELETE to end it")
	case !fits(o.OrderRef, oneLine, 128):
		return Errorf(CodeInvalid, "order_ref is one line of at most 128 characters")
	case !inASCII(o.ContactEmail):
		return Errorf(CodeInvalid, "contact_email has characters beyond ASCII, which need SMTPUTF8").
			WithRemedy("write the domain as xn--..., and take an address whose name is in ASCII")
	case o.ContactEmail != "" && !fits(o.ContactEmail, emailForm, 254):
		return Errorf(CodeInvalid, "contact_email is no e-mail address")
	case o.Locale != "" && !fits(o.Locale, localeForm, 35):
		return Errorf(CodeInvalid, "locale is no language tag, such as fr or de-CH")
	case o.Price != nil:
		return o.Price.check()
	}
	return nil
}

func (p Price) check() error {
	if p.Amount < 0 || p.Amount > mostAmount || !currencyForm.MatchString(p.Currency) {
		return Errorf(CodeInvalid, "a price needs an amount of 0 or more in minor units and an ISO 4217 currency")
	}
	switch p.Period {
	case PeriodMonth, PeriodYear, PeriodOnce:
		return nil
	}
	return Errorf(CodeInvalid, "a price is per month, year or once, not per %q", p.Period)
}
