package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// paper is what is printed on, a terminal perhaps. Nothing that steers one reaches it but
// what the program itself sends, and the first error of writing is kept: the program ends
// with it.
type paper struct {
	to io.Writer
	// escape writes a character that is not to be printed; nil: as ?.
	escape func(r rune) string
	err    error
}

// steers reports whether a terminal could do something else with a character than print it.
// Those below space are the program's own colours and line ends; clean takes others' out.
func steers(r rune) bool {
	return r >= ' ' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

func (p *paper) Write(b []byte) (int, error) {
	if p.err == nil {
		_, p.err = p.to.Write(p.safe(b))
	}
	return len(b), p.err
}

// safe is what is written of b.
func (p *paper) safe(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			out = append(out, '?')
		case !steers(r):
			out = append(out, b[:n]...)
		case p.escape != nil:
			out = append(out, p.escape(r)...)
		default:
			out = append(out, '?')
		}
		b = b[n:]
	}
	return out
}

// escapeJSON writes a character as a string in JSON may have it.
func escapeJSON(r rune) string {
	var text strings.Builder
	for _, unit := range utf16.Encode([]rune{r}) {
		fmt.Fprintf(&text, `\u%04x`, unit)
	}
	return text.String()
}

// escapeYAML writes a character as a double-quoted scalar in YAML may have it.
func escapeYAML(r rune) string { return fmt.Sprintf(`\U%08x`, r) }

// written is the error of what was printed so far.
func (a *app) written() error {
	if p, ok := a.stdout.(*paper); ok && p.err != nil {
		return fmt.Errorf("cannot print: %w", p.err)
	}
	return nil
}

// escaping lets what others chose come through as it is, in a form that is safe to print.
func (a *app) escaping(escape func(r rune) string) (done func()) {
	p, ok := a.stdout.(*paper)
	if !ok {
		return func() {}
	}
	p.escape = escape
	return func() { p.escape = nil }
}
