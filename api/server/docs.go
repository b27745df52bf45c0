package server

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/daemon/vps"
)

//go:embed docs.html
var docsPage string

// docs is openapi.yaml for readers.
type docs struct {
	Title       string
	Description string
	Groups      []docsGroup
	Types       []docsType
}

type docsGroup struct {
	Name        string
	Description string
	Calls       []docsCall
}

type docsCall struct {
	ID, Method, Path, Summary, Description, Scope string

	Parameters []docsField
	Request    *docsBody
	Curl       string
	Answers    []docsBody
}

type docsBody struct {
	Status, Media, Description, Example string

	Required bool
	Type     docsRef
}

type docsField struct {
	Name, In, Description string

	Required bool
	Type     docsRef
}

// docsRef is a type: one of ours, or plain.
type docsRef struct {
	Link, Plain string
	List        bool
}

type docsType struct {
	Name, Description string

	Enum   []any
	Fields []docsField
}

// renderDocs makes the page, when it is first asked for: most daemons are never asked.
// A test makes sure that it can be made.
func renderDocs(spec *openapi3.T) []byte {
	page := template.Must(template.New("docs").Funcs(template.FuncMap{"prose": prose}).Parse(docsPage))
	var out bytes.Buffer
	if err := page.Execute(&out, docsOf(spec)); err != nil {
		panic("the documentation cannot be made: " + err.Error())
	}
	return out.Bytes()
}

// docsOf takes everything from openapi.yaml, so that the page cannot differ from it.
func docsOf(spec *openapi3.T) docs {
	d := docs{Title: spec.Info.Title, Description: spec.Info.Description}
	for _, tag := range spec.Tags {
		g := docsGroup{Name: tag.Name, Description: tag.Description}
		// By the route table, which goes from the common to the special.
		for _, r := range routes(&ServerInterfaceWrapper{}) {
			item := spec.Paths.Value(r.path)
			if op := item.GetOperation(r.method); slices.Contains(op.Tags, tag.Name) {
				g.Calls = append(g.Calls, callOf(r, item, op))
			}
		}
		d.Groups = append(d.Groups, g)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Components.Schemas)) {
		schema := spec.Components.Schemas[name].Value
		d.Types = append(
			d.Types, docsType{Name: name, Description: schema.Description, Enum: schema.Enum, Fields: fieldsOf(schema)},
		)
	}
	return d
}

func callOf(r route, item *openapi3.PathItem, op *openapi3.Operation) docsCall {
	c := docsCall{
		ID:          op.OperationID,
		Method:      r.method,
		Path:        r.path,
		Summary:     op.Summary,
		Description: op.Description,
		Scope:       string(r.need),
	}
	for _, p := range slices.Concat(item.Parameters, op.Parameters) {
		c.Parameters = append(c.Parameters, docsField{Name: p.Value.Name, In: p.Value.In, Description: p.Value.Description,
			Required: p.Value.Required, Type: refOf(p.Value.Schema)})
	}
	sent := ""
	if op.RequestBody != nil {
		body := op.RequestBody.Value
		for kind, media := range body.Content {
			sent = exampleOf(media)
			c.Request = &docsBody{Media: kind, Required: body.Required, Type: refOf(media.Schema), Example: sent}
		}
	}
	c.Curl = curl(r, slices.Concat(item.Parameters, op.Parameters), sent)
	responses := op.Responses.Map()
	for _, status := range slices.Sorted(maps.Keys(responses)) {
		answer := responses[status].Value
		for kind, media := range answer.Content {
			body := docsBody{
				Status:      status,
				Media:       kind,
				Description: strings.TrimSpace(*answer.Description),
				Type:        refOf(media.Schema),
				Example:     exampleOf(media),
			}
			// Errors have one form; the examples of each call would repeat it.
			if status == "default" {
				body.Status, body.Example = "of an error", ""
			}
			c.Answers = append(c.Answers, body)
		}
	}
	return c
}

// exampleOf is the one example of a body, as it goes over the wire but readable.
func exampleOf(media *openapi3.MediaType) string {
	value := media.Example
	for _, e := range media.Examples {
		value = e.Value.Value
	}
	if text, ok := value.(string); ok || value == nil {
		return text
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return ""
	}
	return string(text)
}

// curl shows a call as a line for a shell.
func curl(r route, parameters openapi3.Parameters, body string) string {
	path := r.path
	for _, p := range parameters {
		if p.Value.In == openapi3.ParameterInPath {
			path = strings.ReplaceAll(path, "{"+p.Value.Name+"}", fmt.Sprint(p.Value.Example))
		}
	}
	line := "curl"
	if r.method != http.MethodGet {
		line += " -X " + r.method
	}
	if r.need != vps.ScopeNone {
		line += ` -H "Authorization: Bearer $TOKEN"`
	}
	line += " https://HOST:PORT" + path
	if body != "" {
		line += " \\\n  -H 'Content-Type: application/json' -d '" + strings.ReplaceAll(body, "'", `'\''`) + "'"
	}
	return line
}

func fieldsOf(schema *openapi3.Schema) []docsField {
	var fields []docsField
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		p := schema.Properties[name]
		f := docsField{Name: name, Required: slices.Contains(schema.Required, name), Type: refOf(p)}
		if p.Ref == "" {
			f.Description = p.Value.Description
			if len(p.Value.Enum) > 0 {
				f.Description = strings.TrimSpace(f.Description + fmt.Sprintf(" One of %v.", p.Value.Enum))
			}
		}
		fields = append(fields, f)
	}
	return fields
}

// refOf is the type's own page entry where it has one.
func refOf(s *openapi3.SchemaRef) docsRef {
	if s.Value.Type.Is("array") {
		of := refOf(s.Value.Items)
		of.List = true
		return of
	}
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return docsRef{Link: name}
	}
	plain := strings.Join(s.Value.Type.Slice(), " or ")
	if s.Value.Format != "" {
		plain += ", " + s.Value.Format
	}
	return docsRef{Plain: plain}
}

var (
	inCode = regexp.MustCompile("`([^`]+)`")
	inBold = regexp.MustCompile(`\*\*([^*]+)\*\*`)
)

// prose makes paragraphs of a description, with its `code` and **bold**.
func prose(text string) template.HTML {
	var out strings.Builder
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if paragraph == "" {
			continue
		}
		safe := template.HTMLEscapeString(paragraph)
		safe = inBold.ReplaceAllString(inCode.ReplaceAllString(safe, "<code>$1</code>"), "<strong>$1</strong>")
		out.WriteString("<p>" + safe + "</p>\n")
	}
	return template.HTML(out.String()) //nolint:gosec // escaped above
}

// ShowDocs sends the page.
func (h *handlers) ShowDocs(context.Context, ShowDocsRequestObject) (ShowDocsResponseObject, error) {
	return docsHTML(h.docs()), nil
}

// docsHTML forbids the page everything that it does not need.
type docsHTML []byte

// The page has no scripts, and by its policy can have none.
func (d docsHTML) VisitShowDocsResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().
		Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(d)
	return err
}
