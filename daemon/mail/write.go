package mail

import (
	"fmt"
	netmail "net/mail"
	"strings"
	"time"
	"unicode"

	"github.com/wneessen/go-mail"

	"vpssnapd/daemon/vps"
)

// Values are what a template can show: text in the mail's language, "" for what
// there is not.
type Values struct {
	VPS         string // its name
	At          string // when it happened
	OrderRef    string
	Price       string // 2.99 EUR per month
	EndsAt      string // when the option ends
	KeptUntil   string // when the snapshot is removed
	UndoUntil   string // until when the restore can be undone
	TakenAt     string // when the snapshot was taken
	Description string // of the snapshot
	Said        string // what the journal says of the operation
	Reason      string // why it has failed
	// As in the API: the operation's kind and status, and by which way it was asked for.
	Operation, Status, Way string
}

// values puts a letter into words.
func (l Letter) values(in vps.Language) Values {
	v := Values{
		VPS: clean(l.VPS), OrderRef: clean(l.OrderRef), Description: clean(l.Description),
		At: when(
			&l.At, in,
		), EndsAt: when(l.EndsAt, in), KeptUntil: when(l.KeptUntil, in), UndoUntil: when(l.UndoUntil, in), TakenAt: when(l.TakenAt, in),
		Operation: string(l.Operation), Status: string(l.Status), Way: string(l.Way),
	}
	if l.Price != nil {
		v.Price = l.Price.In(in)
	}
	if l.Operation != "" {
		v.Said = vps.Message{
			Phrase: vps.PhraseOf(l.Operation, l.Status),
			Params: map[string]string{"result": l.Result},
		}.In(
			in,
		)
	}
	if l.Code != "" {
		v.Reason = l.Code.In(in)
	}
	return v
}

func when(t *time.Time, in vps.Language) string {
	if t == nil {
		return ""
	}
	return in.Time(*t)
}

// clean keeps what comes from outside from making lines, or steering what shows it.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Cs, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}

// recipient refuses what is not one plain address, though the API does, too.
func recipient(to string) (*netmail.Address, error) {
	a, err := netmail.ParseAddress(to)
	if err != nil || a.Address != to || clean(to) != to {
		return nil, &vps.DeliveryError{Err: fmt.Errorf("the contact's address %q is none", to), Final: true}
	}
	return a, nil
}

// language is the one that a letter is written in.
func (l Letter) language() vps.Language {
	for _, known := range languages {
		if tag := strings.ToLower(l.Locale); tag == string(known) || strings.HasPrefix(tag, string(known)+"-") {
			return known
		}
	}
	return languages[0]
}

// write makes the mail.
func (s *settings) write(id string, l Letter) (*mail.Msg, error) {
	to, err := recipient(l.To)
	if err != nil {
		return nil, err
	}
	in := l.language()
	subject, text, html, err := s.templates[pageName(l.Kind, in)].fill(l.values(in))
	if err != nil {
		return nil, err
	}
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := msg.From(s.From); err != nil {
		return nil, err
	}
	if s.ReplyTo != "" {
		if err := msg.ReplyTo(s.ReplyTo); err != nil {
			return nil, err
		}
	}
	from := msg.GetFrom()[0].Address
	// The sender's domain, as nothing else is sure to be a name on the internet.
	domain := from[strings.LastIndex(from, "@")+1:]
	msg.ToMailAddress(to)
	msg.Subject(subject)
	msg.SetDateWithValue(l.At)
	// The delivery's id: a server that got it twice, after a connection that was lost,
	// can tell.
	msg.SetMessageIDWithValue(id + "@" + domain)
	// RFC 3834: no out-of-office answer comes back.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader("Content-Language", string(in))
	msg.SetBodyString(mail.TypeTextPlain, text)
	msg.AddAlternativeString(mail.TypeTextHTML, html)
	return msg, nil
}
