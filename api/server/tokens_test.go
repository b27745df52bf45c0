package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api/server"
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
