package server

import (
	"net/http"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/daemon/vps"
)

// The route table and openapi.yaml must say the same, both ways.
func TestRoutesAreThoseOfTheSpec(t *testing.T) {
	spec := loadSpec()
	if err := spec.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	table := map[string]vps.Scope{}
	for _, r := range routes(&ServerInterfaceWrapper{}) {
		key := r.method + " " + r.path
		if _, twice := table[key]; twice {
			t.Errorf("%s is in the table twice", key)
		}
		table[key] = r.need
	}
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			key := method + " " + path
			need, ok := table[key]
			if !ok {
				t.Errorf("%s is in openapi.yaml, but not in the table", key)
				continue
			}
			delete(table, key)
			if op.Extensions["x-scope"] != string(need) {
				t.Errorf("%s needs %q by the table, and %q by openapi.yaml", key, need, op.Extensions["x-scope"])
			}
			if open := op.Security != nil && len(*op.Security) == 0; open != (need == vps.ScopeNone) {
				t.Errorf("%s needs %q, but openapi.yaml says open: %v", key, need, open)
			}
			checkBody(t, key, method, op)
		}
	}
	for key := range table {
		t.Errorf("%s is in the table, but not in openapi.yaml", key)
	}
}

// checkBody makes sure that no unknown field slips through.
func checkBody(t *testing.T, key, method string, op *openapi3.Operation) {
	if op.RequestBody == nil {
		return
	}
	if method == http.MethodGet {
		t.Errorf("%s has a body", key)
	}
	for kind, media := range op.RequestBody.Value.Content {
		schema := media.Schema.Value
		closed := schema.AdditionalProperties.Has != nil && !*schema.AdditionalProperties.Has
		if kind != "application/json" || !closed {
			t.Errorf("%s takes %s, closed: %v", key, kind, closed)
		}
		for name, p := range schema.Properties {
			if p.Value.Type.Is("string") && p.Value.MaxLength == nil && p.Value.Enum == nil && p.Value.Format != "date-time" {
				t.Errorf("%s: the length of %s is not bounded", key, name)
			}
		}
	}
}
