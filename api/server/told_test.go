package server_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// ofTheHost is what only an operator is told: commands, programs and files of the
// host, and how a snapshot is made of them.
var ofTheHost = regexp.MustCompile(
	`virsh|qemu-img|libvirt|QEMU|systemctl|journalctl|dmesg|AppArmor|SELinux|\bvpssnap [a-z]|doctor|overlay|backing|/(etc|var|srv|proc|run|dev)/`,
)

// said are the texts in the source of the daemon and of the API that tell of the host.
func said(t *testing.T) []string {
	t.Helper()
	var texts []string
	for _, dir := range []string{"../../daemon", "."} {
		check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.HasSuffix(path, ".gen.go") ||
				strings.Contains(path, "daemontest") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					text, err := strconv.Unquote(l.Value)
					check(t, err)
					if strings.Contains(text, " ") && ofTheHost.MatchString(text) {
						texts = append(texts, text)
					}
				}
				return true
			})
			return nil
		}))
	}
	if len(texts) < 100 {
		t.Fatalf("only %d texts tell of the host", len(texts))
	}
	return texts
}

// Whatever text of the daemon gets into the detail or the remedy of a refusal: who is
// no operator is told nothing of the host by it, in no language; an operator is told all.
func TestOnlyOperatorsAreToldOfTheHost(t *testing.T) {
	s, daemon := newFailingSite(t)
	for _, text := range said(t) {
		args := make([]any, strings.Count(text, "%"))
		for i := range args {
			args[i] = i
		}
		refused := vps.Errorf(vps.CodeVPSChanged, text, args...).WithRemedy(text, args...)
		daemon.fail(refused)
		for _, language := range []string{"en", "fr"} {
			p := s.with("panel", http.MethodGet, "/v1/vps/web1", "", "Accept-Language", language).problem(t)
			if told := p.Title + p.Detail + p.Remedy; ofTheHost.MatchString(told) || p.Detail == "" ||
				p.Code != api.CodeVPSChanged {
				t.Errorf("a panel is told in %s: %s; %s", language, p.Detail, p.Remedy)
			}
		}
		if p := s.operator(http.MethodGet, "/v1/vps/web1", "").problem(t); p.Detail != refused.Detail ||
			p.Remedy != refused.Remedy {
			t.Errorf("an operator is told: %s; %s", p.Detail, p.Remedy)
		}
	}
}

// The same of a real daemon: what a panel reads of a VPS that it can do nothing with.
func TestRefusalsOfAWholeDaemon(t *testing.T) {
	w := newWholeSite(t)
	w.ended(w.call(w.panel, http.MethodPost, "/v1/vps/web1/snapshot", ""))
	const snapshot = "/v1/vps/web1/snapshot"
	for name, c := range map[string]struct {
		edit   func(*hypervisor.Domain)
		method string
		vps    string
	}{
		"saved memory":                     {func(d *hypervisor.Domain) { d.ManagedSave = true }, http.MethodDelete, "web1"},
		"snapshots of libvirt":             {func(d *hypervisor.Domain) { d.ForeignSnapshots = 2 }, http.MethodDelete, "web1"},
		"not persistent":                   {func(d *hypervisor.Domain) { d.Persistent = false }, http.MethodDelete, "web1"},
		"snapshots of libvirt before take": {func(d *hypervisor.Domain) { d.ForeignSnapshots = 2 }, http.MethodPost, "web2"},
		"saved memory before take":         {func(d *hypervisor.Domain) { d.ManagedSave = true }, http.MethodPost, "web2"},
		"checkpoints":                      {func(d *hypervisor.Domain) { d.Checkpoints = 1 }, http.MethodPost, "web2"},
	} {
		t.Run(name, func(t *testing.T) {
			id := map[string]string{"web1": w.web1, "web2": w.web2}[c.vps]
			var before hypervisor.Domain
			check(t, w.host.Edit(id, func(d *hypervisor.Domain) { before = *d; c.edit(d) }))
			path := strings.Replace(snapshot, "web1", c.vps, 1)
			told := w.operator(c.method, path, "").problem(t)
			if !ofTheHost.MatchString(told.Detail + told.Remedy) {
				t.Errorf("an operator is told: %s; %s", told.Detail, told.Remedy)
			}
			texts := map[string]bool{}
			for _, language := range []string{"en", "fr"} {
				p := w.with(w.panel, c.method, path, "", "Accept-Language", language).problem(t)
				shown := w.with(w.panel, http.MethodGet, "/v1/vps/"+c.vps, "", "Accept-Language", language)
				if texts[p.Detail] = true; ofTheHost.MatchString(p.Title+p.Detail+p.Remedy) || p.Code != told.Code ||
					p.Detail == "" {
					t.Errorf("a panel is told in %s: %s; %s", language, p.Detail, p.Remedy)
				}
				v := decode[api.VPS](t, shown)
				for _, a := range []api.Verdict{v.Actions.Take, v.Actions.Delete, v.Actions.Restore} {
					if texts[a.Reason] = true; ofTheHost.MatchString(a.Reason) || !a.Allowed && a.Reason == "" {
						t.Errorf("the VPS is shown in %s with: %s", language, a.Reason)
					}
				}
			}
			if len(texts) < 4 {
				t.Errorf("told in one language only: %v", texts)
			}
			check(t, w.host.Edit(id, func(d *hypervisor.Domain) { *d = before }))
		})
	}
}

// Who may read a refusal reads it in the language that is asked for; an operator in the
// very words.
func TestRefusalsInFrench(t *testing.T) {
	w := newWholeSite(t)
	w.ended(w.call(w.panel, http.MethodPost, "/v1/vps/web1/snapshot", ""))
	for _, c := range []struct{ token, method, path, body, title, detail, remedy string }{
		{w.panel, http.MethodPost, "/v1/vps/web1/snapshot", "", "Le VPS a déjà son snapshot ; il ne peut en avoir qu'un.", "web1 a déjà un snapshot, du ", "supprimez d'abord le snapshot"},
		{w.panel, http.MethodPost, "/v1/vps/web1/snapshot/restore", "{}", "La demande n'a pas été confirmée.", "pourra être annulée pendant 1 heure", `envoyez {"confirm": "`},
		{w.panel, http.MethodPost, "/v1/vps/web1/snapshot/restore", `{"confirm":"000000000000"}`, "La demande n'a pas été confirmée.", "la confirmation désigne un autre snapshot : tout ce que web1 a écrit depuis le ", ""},
		{w.panel, http.MethodGet, "/v1/vps/web2/snapshot", "", "Ce dont il s'agit n'existe pas, ou plus.", "le VPS n'a pas de snapshot", ""},
		{w.panel, http.MethodGet, "/v1/vps/nobody", "", "Ce dont il s'agit n'existe pas, ou plus.", "ce VPS n'existe pas", ""},
		{w.panel, http.MethodPost, "/v1/vps/web1/snapshot", `{"quiesce":"x"}`, "La demande n'est pas valable.", "le champ quiesce n'est pas accepté : ", ""},
		{w.read, http.MethodDelete, "/v1/vps/web1/snapshot", "", "La demande n'est pas permise.", `le jeton "reader" n'a pas la portée "snapshot"`, ""},
		{"", http.MethodGet, "/v1/vps", "", "La demande ne portait pas de jeton valable.", "l'appel demande exactement un jeton", "envoyez-le ainsi : "},
		{"", http.MethodGet, "/v2", "", "Ce dont il s'agit n'existe pas, ou plus.", "ce chemin n'existe pas", ""},
	} {
		got := w.with(c.token, c.method, c.path, c.body, "Accept-Language", "fr-FR, en;q=0.5")
		p := got.problem(t)
		if p.Title != c.title || !strings.Contains(p.Detail, c.detail) || !strings.HasPrefix(p.Remedy, c.remedy) ||
			got.Header.Get("Content-Language") != "fr" {
			t.Errorf("%s %s is refused with %+v (%s)", c.method, c.path, p, got.Header.Get("Content-Language"))
		}
		english := w.with(c.token, c.method, c.path, c.body, "Accept-Language", "de")
		if e := english.problem(t); e.Code != p.Code || e.Title == p.Title || e.Detail == p.Detail ||
			english.Header.Get("Content-Language") != "en" {
			t.Errorf("%s %s is refused in English with %+v", c.method, c.path, e)
		}
	}
	got := w.with(w.admin, http.MethodPost, "/v1/vps/web1/snapshot", "", "Accept-Language", "fr")
	if p := got.problem(t); p.Title != "The VPS already has its one snapshot." || got.Header.Get("Content-Language") != "en" {
		t.Errorf("an operator is told: %+v", p)
	}
}

// The answer of a repeated call is the same, in whatever language it is repeated; what a
// VPS can do is told in the one that is asked for.
func TestAnswersInFrench(t *testing.T) {
	w := newWholeSite(t)
	shown := decode[api.VPS](t, w.with(w.panel, http.MethodGet, "/v1/vps/web1", "", "Accept-Language", "fr"))
	if shown.Actions.Delete.Reason != "web1 n'a pas de snapshot" {
		t.Errorf("shown with: %+v", shown.Actions)
	}
	first := w.with(w.panel, http.MethodPost, "/v1/vps/web1/snapshot", "", "Accept-Language", "fr", "Idempotency-Key", "k1")
	again := w.with(w.panel, http.MethodPost, "/v1/vps/web1/snapshot", "", "Accept-Language", "en", "Idempotency-Key", "k1")
	if w.ended(first); first.body != again.body {
		t.Errorf("repeated: %s", again.body)
	}
}
