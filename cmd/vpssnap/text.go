package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"

	"vpssnapd/api"
)

// clean makes text safe to print: names and descriptions are chosen by others, and could
// steer the terminal. Every text of the daemon goes through it before it is printed.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}

func size(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }

func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// momentOr prints a time that may be missing.
func momentOr(t *time.Time, otherwise string) string {
	if t == nil {
		return otherwise
	}
	return moment(*t)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// digits is the number of decimals of a currency where it is not two.
var digits = map[string]int{
	"BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0,
	"RWF": 0, "UGX": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
	"BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
}

// Minor units are what the API counts in.
func price(p api.Price) string {
	n, ok := digits[p.Currency]
	if !ok {
		n = 2
	}
	amount := fmt.Sprintf("%0*d", n+1, p.Amount)
	if n > 0 {
		amount = amount[:len(amount)-n] + "." + amount[len(amount)-n:]
	}
	every := " per " + string(p.Period)
	if p.Period == api.PeriodOnce {
		every = " once"
	}
	return amount + " " + p.Currency + every
}

func kindName(k api.OperationKind) string {
	switch k {
	case api.OperationKindTake:
		return "taking the snapshot"
	case api.OperationKindRestore:
		return "the restore"
	case api.OperationKindUndoRestore:
		return "undoing the restore"
	case api.OperationKindDelete:
		return "deleting the snapshot"
	}
	return string(k)
}

// consistency says what a snapshot promises.
func consistency(s api.Snapshot) string {
	switch s.Consistency {
	case api.ConsistencyFilesystem:
		return fmt.Sprintf("filesystem (the guest froze its file systems for %d ms)", s.FreezeMS)
	case api.ConsistencyCrash:
		return "crash (as after a power cut)"
	case api.ConsistencyOffline:
		return "offline (the VPS was off)"
	}
	return string(s.Consistency)
}
