package main

import (
	"testing"
	"unicode"
	"unicode/utf8"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

func TestPrice(t *testing.T) {
	for want, p := range map[string]api.Price{
		"2.99 EUR per month":    {Amount: 299, Currency: "EUR", Period: "month"},
		"0.05 CHF per year":     {Amount: 5, Currency: "CHF", Period: "year"},
		"0.00 USD once":         {Amount: 0, Currency: "USD", Period: "once"},
		"500 JPY per month":     {Amount: 500, Currency: "JPY", Period: "month"},
		"1.250 KWD per month":   {Amount: 1250, Currency: "KWD", Period: "month"},
		"12345.67 SEK per year": {Amount: 1234567, Currency: "SEK", Period: "year"},
	} {
		if got := price(p); got != want {
			t.Errorf("%+v is printed as %q, want %q", p, got, want)
		}
	}
	// The daemon writes it in its mails, by a list of currencies of its own.
	for currency := range digits {
		p := api.Price{Amount: 1234567, Currency: currency, Period: "month"}
		if mailed := (vps.Price{Amount: 1234567, Currency: currency, Period: vps.PeriodMonth}).In(vps.English); price(
			p,
		) != mailed {
			t.Errorf("%s is printed and mailed as %s", price(p), mailed)
		}
	}
}

func TestCleanDisarmsTerminals(t *testing.T) {
	for in, want := range map[string]string{
		"web1": "web1", "é 日本": "é 日本", "a\x1b[31mb": "a?[31mb", "a\nb\tc": "a?b?c", "a\u202eb": "a?b", "a\u009bb": "a?b", "\xff": "?",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// Every code of the API must lead to an exit code, or programs cannot rely on them.
func TestEveryCodeHasAnExitCode(t *testing.T) {
	for code := range exits {
		if !code.Valid() {
			t.Errorf("%s is not a code of the API", code)
		}
	}
	if len(exits) != 16 {
		t.Errorf("%d codes have an exit code", len(exits))
	}
}

// FuzzClean: whatever a name holds, nothing that reaches the terminal steers it.
func FuzzClean(f *testing.F) {
	f.Add("web1")
	f.Add("a\x1b[31m\u202e\xff\u009b\r\n\U000e0041")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) != utf8.RuneCountInString(s) || clean(got) != got {
			t.Errorf("%q becomes %q", s, got)
		}
		for _, r := range got {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Cs, unicode.Zl, unicode.Zp) {
				t.Errorf("%q keeps %U", s, r)
			}
		}
	})
}
