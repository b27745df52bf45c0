package store

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon/vps"
)

func TestTokensAreKeptAndEnd(t *testing.T) {
	ctx := t.Context()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "x.db"))
	must(t, err)
	defer s.Close()
	at := time.UnixMicro(1_000_000).UTC()
	end := at.Add(time.Hour)
	panel := vps.Token{ID: "tok-1", Name: "panel", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot}, Way: vps.WayPanel, CreatedAt: at}
	jo := vps.Token{ID: "tok-2", Name: "panel/jo", Parent: "tok-1", Scopes: []vps.Scope{vps.ScopeRead}, Way: vps.WayPanel, VPS: []string{"id-1"}, CreatedAt: at, ExpiresAt: &end}
	add := func(k vps.Token) error {
		return s.Write(ctx, func(tx *Tx) error { return tx.AddToken(ctx, k, []byte("hash of "+k.ID)) })
	}
	must(t, errors.Join(add(panel), add(jo)))
	all, err := s.Tokens(ctx)
	must(t, err)
	if diff := cmp.Diff([]vps.Token{panel, jo}, all); diff != "" {
		t.Error(diff)
	}
	if _, hash, err := s.Token(ctx, "tok-2"); err != nil || string(hash) != "hash of tok-2" {
		t.Errorf("the hash is %q (%v)", hash, err)
	}
	twin := panel
	twin.ID = "tok-3"
	if err := add(twin); !IsUnique(err) {
		t.Errorf("a second one of that name: %v", err)
	}
	use := func(at, since time.Time) {
		must(t, s.Write(ctx, func(tx *Tx) error { return tx.UsedToken(ctx, "tok-1", at, since) }))
	}
	use(at.Add(time.Minute), at)
	use(at.Add(2*time.Minute), at) // noted a minute ago, and not to be noted again since
	if k, _, err := s.Token(ctx, "tok-1"); err != nil || !k.LastUsedAt.Equal(at.Add(time.Minute)) {
		t.Errorf("used at %v (%v)", k.LastUsedAt, err)
	}
	must(t, s.Write(ctx, func(tx *Tx) error { return tx.RemoveExpired(ctx, end) }))
	if _, _, err := s.Token(ctx, "tok-2"); err != nil {
		t.Errorf("removed before its end: %v", err)
	}
	must(t, s.Write(ctx, func(tx *Tx) error { return tx.RemoveToken(ctx, "tok-1") }))
	if _, _, err := s.Token(ctx, "tok-2"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("it outlives the one that made it: %v", err)
	}
}

// A token whose binding cannot be read opens nothing, least of all every VPS.
func TestDamagedBinding(t *testing.T) {
	ctx := t.Context()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "x.db"))
	must(t, err)
	defer s.Close()
	for _, bound := range []string{"null", "", "{}", "[1]", "all"} {
		must(t, s.Write(ctx, func(tx *Tx) error {
			return errors.Join(
				tx.exec(ctx, `DELETE FROM token`),
				tx.exec(ctx, `INSERT INTO token (id, name, hash, scopes, way, vps, created_at) VALUES ('tok-1', 'a', x'00', '["read"]', 'panel', ?, 0)`, bound))
		}))
		if k, _, err := s.Token(ctx, "tok-1"); err == nil {
			t.Errorf("%q: %+v", bound, k)
		}
	}
}

func TestAnswersAreKeptForATime(t *testing.T) {
	ctx := t.Context()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "x.db"))
	must(t, err)
	defer s.Close()
	at := time.UnixMicro(1_000_000).UTC()
	keep := func(client, key, answer string, at time.Time) {
		t.Helper()
		must(t, s.Write(ctx, func(tx *Tx) error {
			return tx.KeepAnswer(ctx, Answer{Client: client, Key: key, Sum: []byte("sum"), At: at, Answer: []byte(answer)}, at.Add(-time.Hour))
		}))
	}
	keep("a", "k", "one", at)
	keep("b", "k", "two", at)
	keep("a", "k", "three", at.Add(time.Minute)) // what the same call came to in the end
	for client, want := range map[string]string{"a": "three", "b": "two"} {
		if got, err := s.Answered(ctx, client, "k"); err != nil || string(got.Answer) != want || string(got.Sum) != "sum" {
			t.Errorf("%s: %+v (%v)", client, got, err)
		}
	}
	keep("c", "k", "four", at.Add(2*time.Hour))
	var rows int
	must(t, s.q.QueryRowContext(ctx, `SELECT count(*) FROM answer`).Scan(&rows))
	if rows != 1 {
		t.Errorf("%d answers are kept", rows)
	}
	// What was not written with the change is not there.
	err = s.Write(ctx, func(tx *Tx) error {
		must(t, tx.KeepAnswer(ctx, Answer{Client: "d", Key: "k", Sum: []byte("sum"), At: at.Add(2 * time.Hour), Answer: []byte("five")}, at))
		return errors.New("the change failed")
	})
	if _, missing := s.Answered(ctx, "d", "k"); err == nil || !errors.Is(missing, sql.ErrNoRows) {
		t.Errorf("an answer without its change: %v", missing)
	}
}
