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

// reads is the language of what is said to a caller of operations: operators read
// the very words, with what they have to do.
func (c *caller) reads(header *string) vps.Language {
	if c.operator() {
		return vps.English
	}
	return preferred(header)
}
