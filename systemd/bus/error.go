package bus

import (
	"errors"
	"strings"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// errorName is the D-Bus name of a code: the code in CamelCase. Clients match on it, so
// it is as stable as the code.
func errorName(code vps.Code) string {
	var b strings.Builder
	b.WriteString(name + ".Error.")
	for word := range strings.SplitSeq(string(code), "_") {
		if word == "vps" {
			word = "VPS"
		}
		b.WriteString(strings.ToUpper(word[:min(1, len(word))]) + word[min(1, len(word)):])
	}
	return b.String()
}

// busError is the only place that turns an error into an answer. What is internal is
// logged by the caller and never sent.
func busError(err error) *dbus.Error {
	if ready, ok := errors.AsType[*dbus.Error](err); ok {
		return ready
	}
	e := vps.Readable(err)
	said := e.Detail
	if e.Remedy != "" {
		said += "; " + e.Remedy
	}
	return dbus.NewError(errorName(e.Code), []any{text(said)})
}

func invalid(format string, args ...any) error {
	return vps.Errorf(vps.CodeInvalid, format, args...)
}
