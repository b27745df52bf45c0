package server

import (
	"context"

	"golang.org/x/text/language"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// written are the languages that texts for customers exist in; the first is for
// who wants another.
var (
	written = []vps.Language{vps.English, vps.French}
	matcher = language.NewMatcher([]language.Tag{language.English, language.French})
)

// reader is for whom an answer is written. Operators are told in the very words, in
// English, what is wrong and what they have to do; all others what is for customers.
type reader struct {
	operator bool
	in       vps.Language
}

const headerLanguage = "Accept-Language"

type languageKey struct{}

// readerOf is who sent a request. Messages are for customers, and are in its language
// for an operator, too.
func readerOf(ctx context.Context) reader {
	header, _ := ctx.Value(languageKey{}).(string)
	_, index := language.MatchStrings(matcher, header)
	return reader{callerOf(ctx).operator(), written[index]}
}

// words are w as r reads it: what is not for customers is said to them by its code.
func (r reader) words(w vps.Words, c vps.Code) string {
	if r.operator || w.String() == "" {
		return w.String()
	}
	return w.InOr(r.in, c)
}

// failure is an error as r may read it.
func (r reader) failure(e *vps.Error) *vps.Error {
	if r.operator {
		return e
	}
	return e.In(r.in)
}

// operation is one as r may read it.
func (r reader) operation(op vps.Operation) api.Operation {
	if !r.operator {
		op = op.In(r.in)
	}
	return wireOperation(op)
}

// snapshot is one as r may read it.
func (r reader) snapshot(s vps.Snapshot) api.Snapshot {
	if !r.operator {
		s = s.In(r.in)
	}
	return wireSnapshot(s)
}
