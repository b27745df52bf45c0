package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"

	"vpssnapd/daemon/vps"
)

// Tokens are the access tokens of the TCP listener. Only their SHA-256 is known.
type Tokens struct {
	all []token
}

type token struct {
	caller
	sum [sha256.Size]byte
}

// tokensFile is the form of the file:
//
//	[[token]]
//	name = "panel"
//	sha256 = "..."             # printf %s TOKEN | sha256sum
//	scopes = ["read", "snapshot"]
//	way = "panel"              # or "order"
//	vps = ["web1"]             # ids or names; leave it out for all
type tokensFile struct {
	Token []tokenEntry `toml:"token"`
}

type tokenEntry struct {
	Name   string   `toml:"name"`
	SHA256 string   `toml:"sha256"`
	Scopes []Scope  `toml:"scopes"`
	Way    vps.Way  `toml:"way"`
	VPS    []string `toml:"vps"`
}

// LoadTokens reads the token file. It refuses a file that others could have written.
func LoadTokens(path string) (*Tokens, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the tokens: %w", err)
	}
	defer f.Close()
	if err := checkOwner(f); err != nil {
		return nil, fmt.Errorf("refusing the tokens in %s: %w", path, err)
	}
	var content tokensFile
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(&content); err != nil {
		return nil, fmt.Errorf("cannot read the tokens in %s: %w", path, err)
	}
	t := &Tokens{}
	for i, e := range content.Token {
		if err := t.add(e); err != nil {
			return nil, fmt.Errorf("refusing token %d (%q) in %s: %w", i+1, e.Name, path, err)
		}
	}
	return t, nil
}

// checkOwner looks at the open file, not at its name, which may lead elsewhere by now.
func checkOwner(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is not a regular file")
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("its mode %04o lets others write it; run: chmod go-w FILE", info.Mode().Perm())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to uid %d, neither root nor the daemon's user", st.Uid)
	}
	return nil
}

func (t *Tokens) add(e tokenEntry) error {
	made, err := e.token()
	if err != nil {
		return err
	}
	for _, other := range t.all {
		if other.actor.Name == made.actor.Name {
			return fmt.Errorf("the name is used twice")
		}
		if other.sum == made.sum {
			return fmt.Errorf("it is the same secret as token %q", other.actor.Name)
		}
	}
	t.all = append(t.all, made)
	return nil
}

func (e tokenEntry) token() (token, error) {
	made := token{caller: caller{actor: vps.Actor{Name: e.Name, Way: e.Way}, scopes: e.Scopes, vps: e.VPS}}
	if strings.TrimSpace(e.Name) == "" {
		return made, fmt.Errorf("it has no name")
	}
	sum, err := hex.DecodeString(e.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return made, fmt.Errorf("sha256 must be 64 hexadecimal digits")
	}
	made.sum = [sha256.Size]byte(sum)
	if e.Way != vps.WayPanel && e.Way != vps.WayOrder {
		return made, fmt.Errorf("way %q is neither panel nor order", e.Way)
	}
	if len(e.Scopes) == 0 {
		return made, fmt.Errorf("it has no scopes")
	}
	for _, s := range e.Scopes {
		if !slices.Contains([]Scope{ScopeRead, ScopeSnapshot, ScopeOption, ScopeAdmin}, s) {
			return made, fmt.Errorf("unknown scope %q", s)
		}
	}
	if e.VPS != nil && len(e.VPS) == 0 {
		return made, fmt.Errorf("vps is empty: leave it out for all VPS, or name some")
	}
	if slices.Contains(e.VPS, "") {
		return made, fmt.Errorf("vps has an empty entry")
	}
	if e.VPS != nil && made.operator() {
		return made, fmt.Errorf("a token with scope admin cannot be bound to some VPS")
	}
	return made, nil
}

// find compares with every token, so that the time taken tells nothing.
func (t *Tokens) find(secret string) *caller {
	if t == nil {
		return nil
	}
	sum := sha256.Sum256([]byte(secret))
	var found *caller
	for i := range t.all {
		if subtle.ConstantTimeCompare(sum[:], t.all[i].sum[:]) == 1 {
			found = &t.all[i].caller
		}
	}
	return found
}
