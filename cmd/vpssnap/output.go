package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"go.yaml.in/yaml/v3"
)

// print writes v as JSON or YAML, in the words of the API, or calls human. Programs get
// what the API says, field for field.
func (a *app) print(v any, human func()) error {
	switch a.output.value {
	case "json":
		return a.printJSON(v, "  ")
	case "yaml":
		return a.printYAML(v)
	}
	human()
	return a.written()
}

func (a *app) printJSON(v any, indent string) error {
	defer a.escaping(escapeJSON)()
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return a.written()
}

// printYAML goes through JSON, so that the field names are the same.
func (a *app) printYAML(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node
	b = (&paper{escape: escapeYAML}).safe(b) // YAML takes fewer characters as they are than JSON
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	plain(&doc)
	defer a.escaping(escapeYAML)()
	enc := yaml.NewEncoder(a.stdout)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// plain drops the flow style and the quotes that the JSON had, but for what must be escaped.
func plain(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && strings.ContainsFunc(n.Value, steers) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// table starts a table without lines.
func (a *app) table(header ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(a.stdout)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	if len(header) > 0 {
		t.AppendHeader(header)
	}
	return t
}

// sheet prints names and values, one pair per line.
func (a *app) sheet(pairs ...[2]string) {
	t := a.table()
	for _, p := range pairs {
		if p[1] != "" {
			t.AppendRow(table.Row{text.Bold.Sprint(p[0]), p[1]})
		}
	}
	t.Render()
}

func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.stdout, format+"\n", args...)
}

// colours of states, seen on terminals only.
var colours = map[string]text.Color{
	"running": text.FgGreen, "available": text.FgGreen, "active": text.FgGreen, "succeeded": text.FgGreen,
	"grace": text.FgYellow, "pending": text.FgYellow, "paused": text.FgYellow, "restoring": text.FgYellow, "deleting": text.FgYellow,
	"broken": text.FgRed, "critical": text.FgRed, "warning": text.FgYellow, "failed": text.FgRed, "crashed": text.FgRed, "needs_attention": text.FgRed,
}

// state colours a state that needs a look.
func state[S ~string](s S) string {
	if c, ok := colours[string(s)]; ok {
		return c.Sprint(clean(string(s)))
	}
	return clean(string(s))
}
