package mail

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io/fs"
	"path/filepath"
	"strings"
	texttemplate "text/template"

	"vpssnapd/daemon/vps"
	"vpssnapd/hostfile"
)

//go:embed template/*.tmpl
var embedded embed.FS

const (
	suffix = ".tmpl"
	// common is the file with what the mails of a language share.
	common = "common"
)

// languages are those that mails are written in; the first is for who wants another.
var languages = []vps.Language{vps.English, vps.French}

// page is one mail in one language: the file at path, which defines a subject, a
// text and an html.
type page struct {
	path string
	text *texttemplate.Template
	html *htmltemplate.Template
}

// templates are all pages, by their files' names without suffix.
type templates map[string]page

func pageName(k Kind, l vps.Language) string { return string(k) + "." + string(l) }

// readTemplates reads ours, or in their place the files that dir has of the same
// name, and tries each of them out.
func readTemplates(ctx context.Context, dir string) (templates, error) {
	if err := unknownIn(ctx, dir); err != nil {
		return nil, err
	}
	all := templates{}
	for _, l := range languages {
		for _, k := range Kinds {
			// Every language of every kind, or a customer would find out.
			name := pageName(k, l)
			p, err := readPage(ctx, dir, common+"."+string(l), name)
			if err == nil {
				err = p.try(k, l)
			}
			if err != nil {
				return nil, fmt.Errorf("the mail template %s cannot be used: %w", p.path, err)
			}
			all[name] = p
		}
	}
	return all, nil
}

// unknownIn refuses a template that no mail is made from: a misspelt name would
// have no effect, and nobody would see that.
func unknownIn(ctx context.Context, dir string) error {
	if dir == "" {
		return nil
	}
	files, err := hostfile.Names(ctx, dir, hostfile.Trusted)
	if err != nil {
		return fmt.Errorf("cannot read the mail templates: %w", err)
	}
	for _, name := range files {
		if _, err := embedded.Open("template/" + name); strings.HasSuffix(name, suffix) && err != nil {
			return fmt.Errorf("%s is the template of no mail", filepath.Join(dir, name))
		}
	}
	return nil
}

// readPage parses the named files, one after the other, twice: as text, and as
// HTML, in which everything that comes from outside is escaped.
func readPage(ctx context.Context, dir string, names ...string) (page, error) {
	p := page{text: texttemplate.New(""), html: htmltemplate.New("")}
	for _, name := range names {
		path, content, err := readTemplate(ctx, dir, name+suffix)
		p.path = path
		if err != nil {
			return p, err
		}
		if _, err := p.text.New(path).Parse(content); err != nil {
			return p, err
		}
		if _, err := p.html.New(path).Parse(content); err != nil {
			return p, err
		}
	}
	for _, part := range []string{"subject", "text", "html"} {
		if p.text.Lookup(part) == nil {
			return p, fmt.Errorf("it does not define %q", part)
		}
	}
	return p, nil
}

// readTemplate returns the file in dir, or ours; the path is what errors name.
func readTemplate(ctx context.Context, dir, name string) (path, content string, err error) {
	if dir != "" {
		path = filepath.Join(dir, name)
		text, err := hostfile.Read(ctx, path, hostfile.Trusted)
		if !errors.Is(err, fs.ErrNotExist) {
			return path, string(text), err
		}
	}
	text, err := embedded.ReadFile("template/" + name)
	return name, string(text), err
}

// fill makes the three parts of a mail.
func (p page) fill(v Values) (subject, text, html string, err error) {
	var s, t, h bytes.Buffer
	err = errors.Join(
		p.text.ExecuteTemplate(&s, "subject", v), p.text.ExecuteTemplate(&t, "text", v),
		p.html.ExecuteTemplate(&h, "html", v),
	)
	subject = strings.Join(strings.Fields(s.String()), " ")
	if err == nil && subject == "" {
		err = errors.New("its subject is empty")
	}
	return subject, strings.TrimSpace(t.String()) + "\n", strings.TrimSpace(h.String()) + "\n", err
}

// try fills a page with all there can be, and with no more than there must be.
func (p page) try(k Kind, l vps.Language) error {
	for _, sample := range samples {
		sample.Kind = k
		if _, _, _, err := p.fill(sample.values(l)); err != nil {
			return err
		}
	}
	return nil
}
