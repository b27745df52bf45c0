package server

import (
	"golang.org/x/text/language"

	"vpssnapd/daemon/vps"
)

// written are the languages that texts for customers exist in; the first is for
// who wants another.
var (
	written = []vps.Language{vps.English, vps.French}
	matcher = language.NewMatcher([]language.Tag{language.English, language.French})
)

// preferred is the language that an Accept-Language header asks for.
func preferred(header *string) vps.Language {
	_, index := language.MatchStrings(matcher, value(header))
	return written[index]
}

// told is an operation as a caller reads it: operators get the very words, with what
// they have to do.
func (c *caller) told(op vps.Operation, header *string) vps.Operation {
	if c.operator() {
		return op
	}
	return op.In(preferred(header))
}
