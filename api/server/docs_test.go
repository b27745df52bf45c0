package server_test

import (
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
)

// Every call has an example of what is sent and of what is answered, and each
// example is as its schema says.
func TestExamples(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			what := method + " " + path
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				if p.Value.Required && p.Value.Example == nil {
					t.Errorf("%s: the parameter %s has no example", what, p.Value.Name)
				}
				if p.Value.Example != nil {
					fits(t, what+", parameter "+p.Value.Name, p.Value.Schema.Value, p.Value.Example)
				}
			}
			if op.RequestBody != nil {
				examples(t, what+", request", op.RequestBody.Value.Content, openapi3.VisitAsRequest())
			}
			for status, answer := range op.Responses.Map() {
				if len(answer.Value.Content) > 0 {
					examples(t, what+", answer "+status, answer.Value.Content, openapi3.VisitAsResponse())
				}
			}
		}
	}
}

func examples(t *testing.T, what string, content openapi3.Content, as openapi3.SchemaValidationOption) {
	t.Helper()
	for kind, media := range content {
		values := slices.Collect(maps.Values(media.Examples))
		if len(values) == 0 && media.Example == nil {
			t.Errorf("%s: no example of %s", what, kind)
		}
		if media.Example != nil {
			fits(t, what, media.Schema.Value, media.Example, as)
		}
		for _, e := range values {
			fits(t, what, media.Schema.Value, e.Value.Value, as)
			unknownFields(t, what, media.Schema.Value, e.Value.Value)
		}
	}
}

func fits(t *testing.T, what string, schema *openapi3.Schema, value any, options ...openapi3.SchemaValidationOption) {
	t.Helper()
	if err := schema.VisitJSON(value, append(options, openapi3.EnableFormatValidation(), openapi3.MultiErrors())...); err != nil {
		t.Errorf("%s: the example is wrong: %v", what, err)
	}
}

// unknownFields finds what an open schema lets pass: a field that there is not.
func unknownFields(t *testing.T, what string, schema *openapi3.Schema, value any) {
	t.Helper()
	switch v := value.(type) {
	case map[string]any:
		for name, field := range v {
			p := schema.Properties[name]
			if p == nil {
				t.Errorf("%s: the example has the field %s, which there is not", what, name)
				continue
			}
			unknownFields(t, what, p.Value, field)
		}
	case []any:
		for _, one := range v {
			unknownFields(t, what, schema.Items.Value, one)
		}
	}
}

// The page names every call and type, needs nothing from elsewhere, and every
// link on it leads somewhere.
func TestDocs(t *testing.T) {
	s := newSite(t)
	got := s.call("", http.MethodGet, "/docs", "")
	if got.StatusCode != http.StatusOK || !strings.HasPrefix(got.Header.Get("Content-Type"), "text/html") ||
		!strings.Contains(got.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Fatalf("the page is %s, %v", got.Status, got.Header)
	}
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	for path, item := range spec.Paths.Map() {
		for _, op := range item.Operations() {
			if !strings.Contains(got.body, `id="`+op.OperationID+`"`) || !strings.Contains(got.body, path) {
				t.Errorf("the page lacks %s", path)
			}
		}
	}
	for name := range spec.Components.Schemas {
		if !strings.Contains(got.body, `id="type-`+name+`"`) {
			t.Errorf("the page lacks the type %s", name)
		}
	}
	for _, match := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(got.body, -1) {
		if !strings.Contains(got.body, `id="`+match[1]+`"`) {
			t.Errorf("the link to %s leads nowhere", match[1])
		}
	}
	for _, foreign := range []string{"<script", "src=", `href="http`, "url(", "@import"} {
		if strings.Contains(got.body, foreign) {
			t.Errorf("the page has %s", foreign)
		}
	}
}
