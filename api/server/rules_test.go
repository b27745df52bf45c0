package server_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// What openapi.yaml refuses the daemon refuses, too, and the other way round:
// callers that come by another way, as D-Bus, are held to the same rules.
func TestTheDaemonKeepsTheRulesOfTheAPI(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	words := []string{
		"a", "before the upgrade", "é日本\U0001F600", "a\nb", "a\x00b", "\x7f", "\x1b[2J", "\u202e", "EUR", "eur", "EURO", "fr", "de-CH", "f", "fr_FR",
		"fr-" + strings.Repeat(
			"abcdefgh-", 4,
		) + "ab", "zh-Hans-CN", "jo@example.com", "jo", "a@b@c", "a b@c", "jo@", "\"jo\"@x", "month", "year", "once", "week",
		"prefer", "require", "never", "maybe", "previous", "running", "off", "on", "ordered", "active", "grace", "../..",
		strings.Repeat(
			"é", 128,
		), strings.Repeat("é", 129), strings.Repeat("x", 254), strings.Repeat("x", 500), strings.Repeat("x", 501),
		strings.Repeat("x", 250) + "@b.c", strings.Repeat("x", 251) + "@b.c",
	}
	price := func(amount int64, currency string, period vps.Period) vps.OptionOrder {
		return vps.OptionOrder{State: "active", Price: &vps.Price{Amount: amount, Currency: currency, Period: period}}
	}
	agree := func(schema, body string, verdict error) {
		t.Helper()
		var v any
		check(t, json.Unmarshal([]byte(body), &v))
		refused := spec.Components.Schemas[schema].Value.VisitJSON(v)
		if (refused == nil) != (verdict == nil) || verdict != nil && vps.CodeOf(verdict) != vps.CodeInvalid {
			t.Errorf("%s %s: REST says %v, the daemon says %v", schema, body, refused, verdict)
		}
	}
	for _, w := range words {
		quoted, err := json.Marshal(w)
		check(t, err)
		q := string(quoted)
		agree("TakeRequest", `{"description":`+q+`}`, vps.TakeRequest{Description: w}.Check())
		agree("TakeRequest", `{"quiesce":`+q+`}`, vps.TakeRequest{Quiesce: vps.Quiesce(w)}.Check())
		agree("SnapshotPatch", `{"description":`+q+`}`, vps.CheckDescription(w))
		agree("RestoreRequest", `{"power_after":`+q+`}`, vps.RestoreRequest{PowerAfter: vps.PowerAfter(w)}.Check())
		agree("OptionOrder", `{"state":`+q+`}`, vps.OptionOrder{State: vps.OptionState(w)}.Check())
		agree("OptionOrder", `{"state":"active","order_ref":`+q+`}`, vps.OptionOrder{State: "active", OrderRef: w}.Check())
		agree(
			"OptionOrder", `{"state":"active","contact_email":`+q+`}`,
			vps.OptionOrder{State: "active", ContactEmail: w}.Check(),
		)
		agree("OptionOrder", `{"state":"active","locale":`+q+`}`, vps.OptionOrder{State: "active", Locale: w}.Check())
		agree(
			"OptionOrder", `{"state":"active","price":{"amount":1,"currency":`+q+`,"period":"month"}}`,
			price(1, w, "month").Check(),
		)
		agree(
			"OptionOrder", `{"state":"active","price":{"amount":1,"currency":"EUR","period":`+q+`}}`,
			price(1, "EUR", vps.Period(w)).Check(),
		)
	}
	for text, amount := range map[string]int64{"-1": -1, "0": 0, "1000000000000": 1e12, "1000000000001": 1e12 + 1} {
		agree(
			"OptionOrder", `{"state":"active","price":{"amount":`+text+`,"currency":"EUR","period":"once"}}`,
			price(amount, "EUR", "once").Check(),
		)
	}
}
