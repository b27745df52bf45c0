package server_test

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api/server"
	"vpssnapd/api/server/servertest"
)

func TestTokenFilesThatAreRefused(t *testing.T) {
	const read = `scopes = ["read"]`
	cases := map[string]struct{ text, says string }{
		"syntax":         {"[[token]\n", "tokens.toml"},
		"unknown field":  {tokenTOML("a", read+"\nscope = 1"), "strict"},
		"no name":        {tokenTOML("", read), "name"},
		"no scopes":      {tokenTOML("a", ""), "scopes"},
		"unknown scope":  {tokenTOML("a", `scopes = ["root"]`), "root"},
		"scope none":     {tokenTOML("a", `scopes = ["none"]`), "none"},
		"no VPS at all":  {tokenTOML("a", read+"\nvps = []"), "vps"},
		"empty VPS":      {tokenTOML("a", read+"\nvps = [\"\"]"), "vps"},
		"bound admin":    {tokenTOML("a", `scopes = ["admin"]`+"\nvps = [\"web1\"]"), "admin"},
		"same name":      {tokenTOML("a", read) + strings.Replace(tokenTOML("b", read), `name = "b"`, `name = "a"`, 1), "twice"},
		"same secret":    {tokenTOML("a", read) + strings.Replace(tokenTOML("a", read), `name = "a"`, `name = "b"`, 1), "same secret"},
		"secret in full": {"[[token]]\nname = \"a\"\nsha256 = \"hunter2\"\nway = \"panel\"\n" + read, "sha256"},
		"operator's way": {strings.Replace(tokenTOML("a", read), `way = "panel"`, `way = "operator"`, 1), "way"},
	}
	for name, c := range cases {
		path := filepath.Join(t.TempDir(), "tokens.toml")
		check(t, os.WriteFile(path, []byte(c.text), 0o600))
		_, err := server.LoadTokens(path)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokenFileThatOthersCanWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.toml")
	check(t, os.WriteFile(path, []byte(allTokens), 0o600))
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: true, 0o660: false, 0o602: false} {
		check(t, os.Chmod(path, mode))
		if _, err := server.LoadTokens(path); (err == nil) != fine {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if _, err := server.LoadTokens(t.TempDir()); err == nil {
		t.Error("a directory was accepted")
	}
	if _, err := server.LoadTokens(path + ".none"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
}

// FuzzTokens: of no file do we make a token that opens more than it says.
func FuzzTokens(f *testing.F) {
	f.Add(allTokens)
	f.Add(tokenTOML("x", `scopes = []`))
	f.Add(tokenTOML("a", `scopes = ["read"]`) + tokenTOML("a", `scopes = ["read"]`))
	f.Add("[[token]]\nname = ' '\nsha256 = ''\nscopes = ['admin', 'root']\nway = 'operator'\nvps = ['']\n")
	path := filepath.Join(f.TempDir(), "tokens.toml")
	f.Fuzz(func(t *testing.T, text string) {
		check(t, os.WriteFile(path, []byte(text), 0o600))
		tokens, err := server.LoadTokens(path)
		if err != nil {
			return
		}
		s := server.New(server.Config{Service: servertest.New(), Tokens: tokens, Logger: slog.New(slog.DiscardHandler)})
		for _, secret := range []string{"", " ", "read", "a", text} {
			r := httptest.NewRequest(http.MethodGet, "/v1/host", nil)
			r.Header.Set("Authorization", "Bearer "+secret)
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, r)
			known := strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", sha256.Sum256([]byte(secret))))
			if w.Code != http.StatusUnauthorized && !known {
				t.Errorf("the secret %q was given to nobody and answers %d", secret, w.Code)
			}
		}
	})
}
