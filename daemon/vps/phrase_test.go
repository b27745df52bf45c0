package vps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// Every phrase that there is can be said in every language, with the same parameters.
func TestEveryPhraseInEveryLanguage(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "phrase.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	named := map[Phrase]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 && strings.HasPrefix(v.Names[0].Name, "Phrase") {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			named[Phrase(text)] = true
		}
		return true
	})
	if len(named) != len(phrases) || len(named) < 30 {
		t.Errorf("%d phrases are named, %d can be said", len(named), len(phrases))
	}
	for p := range named {
		english, french := phrases[p][English], phrases[p][French]
		if english == "" || french == "" || strings.Contains(french, "{") != strings.Contains(english, "{") {
			t.Errorf("%s: %q, %q", p, english, french)
		}
	}
	for _, k := range []Kind{KindTake, KindRestore, KindUndoRestore, KindDelete} {
		for _, s := range []Status{StatusPending, StatusSucceeded, StatusFailed, StatusCancelled, StatusNeedsAttention} {
			if !named[PhraseOf(k, s)] {
				t.Errorf("no phrase for a %s that is %s", k, s)
			}
		}
	}
	for _, s := range []OptionState{OptionOrdered, OptionActive, OptionGrace, OptionReleased} {
		if !named[Phrase("option_"+string(s))] {
			t.Errorf("no phrase for an option that is %s", s)
		}
	}
}

func TestMessageIn(t *testing.T) {
	cases := []struct {
		phrase  Phrase
		params  map[string]string
		english string
		french  string
	}{
		{
			PhraseTakeDone,
			map[string]string{
				"result": "the guest's file systems were frozen for 205 ms; the last restore can no longer be undone",
			},
			"The snapshot was taken: the guest's file systems were frozen for 205 ms; the last restore can no longer be undone.",
			"Le snapshot a été créé : les systèmes de fichiers ont été figés pendant 205 ms ; la dernière restauration ne peut plus être annulée.",
		},
		{PhraseDeleteDone, map[string]string{"result": ""}, "The snapshot was deleted.", "Le snapshot a été supprimé."},
		{
			PhraseTakeDone,
			map[string]string{"result": "{until} [odd]"},
			"The snapshot was taken: {until} [odd].",
			"Le snapshot a été créé.",
		},
		{PhraseOptionGrace, map[string]string{"until": "2026-12-01T10:00:00Z"},
			"The snapshot option has ended. The snapshot is kept until 2026-12-01T10:00:00Z and can be restored until then.",
			"L'option snapshot a pris fin. Le snapshot est conservé jusqu'au 01/12/2026 à 10:00 UTC et peut être restauré jusque-là."},
		{
			PhraseSnapshotBroken,
			map[string]string{"reason": "its base is missing"},
			"The snapshot is broken and cannot be restored for the time being.",
			"Le snapshot est endommagé et ne peut pas être restauré pour le moment.",
		},
	}
	for _, c := range cases {
		m := Message{Phrase: c.phrase, Params: c.params, Text: "old"}
		if got := m.In(English); got != c.english {
			t.Errorf("%s: %s", c.phrase, got)
		}
		if got := m.In(French); got != c.french {
			t.Errorf("%s: %s", c.phrase, got)
		}
	}
}

// Every code has a reason for customers, in every language.
func TestEveryReason(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Code") {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if codes++; err != nil || Code(text).In(English) == "" || Code(text).In(French) == "" {
				t.Errorf("%s has no reason (%v)", text, err)
			}
		}
		return true
	})
	if codes != len(reasons) || codes < 16 {
		t.Errorf("%d codes, %d reasons", codes, len(reasons))
	}
}

func TestPriceIn(t *testing.T) {
	for want, p := range map[[2]string]Price{
		{"2.99 EUR per month", "2,99 EUR par mois"}:       {Amount: 299, Currency: "EUR", Period: PeriodMonth},
		{"500 JPY per year", "500 JPY par an"}:            {Amount: 500, Currency: "JPY", Period: PeriodYear},
		{"0.005 KWD once", "0,005 KWD en une fois"}:       {Amount: 5, Currency: "KWD", Period: PeriodOnce},
		{"12345.67 SEK once", "12345,67 SEK en une fois"}: {Amount: 1234567, Currency: "SEK", Period: PeriodOnce},
	} {
		if p.In(English) != want[0] || p.In(French) != want[1] {
			t.Errorf("%+v is %q, %q", p, p.In(English), p.In(French))
		}
	}
}

func TestOperationIn(t *testing.T) {
	o := Operation{Result: "the VPS was off", Error: &Error{Code: CodeGuestUnresponsive, Detail: "/srv/x", Remedy: "virsh"},
		Progress: Progress{
			Note: "the VPS writes as fast as its disk is merged; it may be stopped for moments of at most 2s until the merge has caught up",
		}}
	if got := o.In(English); got.Error.Detail != CodeGuestUnresponsive.In(English) || got.Progress != o.Progress ||
		got.Result != o.Result {
		t.Errorf("%+v", got)
	}
	got := o.In(French)
	if got.Result != "le VPS était éteint" || got.Error.Detail != "L'agent invité du VPS n'a pas répondu." ||
		!strings.Contains(got.Error.Remedy, "qemu-guest-agent") ||
		got.Progress.Note != "le VPS écrit aussi vite que son disque est fusionné ; il peut être suspendu par instants de 2s au plus, jusqu'à ce que la fusion l'ait rattrapé" {
		t.Errorf("%+v %+v", got, got.Error)
	}
	o.Status = StatusNeedsAttention
	for l, want := range map[Language]string{English: "You need not do anything: ", French: "Vous n'avez rien à faire : "} {
		e := OperationEvent{Code: o.Error.Code, Status: o.Status, Remedy: o.Error.Remedy}.In(l)
		if got := o.In(l).Error.Remedy; !strings.HasPrefix(got, want) || e.Remedy != got {
			t.Errorf("what an operator has to do is told to a customer: %s, %s", got, e.Remedy)
		}
	}
	if o.Error.Remedy != "virsh" {
		t.Error("and no more to the operator")
	}
	e := OperationEvent{Code: CodeInternal, Detail: "x", Result: "the VPS was off"}.In(French)
	if e.Detail != CodeInternal.In(French) || e.Remedy != support[French] || e.Result != "le VPS était éteint" {
		t.Errorf("%+v", e)
	}
}
