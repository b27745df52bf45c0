package store

import (
	"context"
	"crypto/sha256"
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
	s, err := Open(ctx, filepath.Join(t.TempDir(), "x.db"), nil)
	must(t, err)
	defer s.Close()
	at := time.UnixMicro(1_000_000).UTC()
	end := at.Add(time.Hour)
	panel := vps.Token{
		ID:        "tok-1",
		Name:      "panel",
		Scopes:    []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot},
		Way:       vps.WayPanel,
		CreatedAt: at,
	}
	jo := vps.Token{
		ID:        "tok-2",
		Name:      "panel/jo",
		Parent:    "tok-1",
		Scopes:    []vps.Scope{vps.ScopeRead},
		Way:       vps.WayPanel,
		VPS:       []string{"id-1"},
		CreatedAt: at,
		ExpiresAt: &end,
	}
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
	s, err := Open(ctx, filepath.Join(t.TempDir(), "x.db"), nil)
	must(t, err)
	defer s.Close()
	for _, bound := range []string{"null", "", "{}", "[1]", "all"} {
		must(t, s.Write(ctx, func(tx *Tx) error {
			return errors.Join(
				tx.exec(ctx, `DELETE FROM token`),
				tx.exec(
					ctx,
					`INSERT INTO token (id, name, hash, scopes, way, vps, created_at) VALUES ('tok-1', 'a', x'00', '["read"]', 'panel', ?, 0)`,
					bound,
				),
			)
		}))
		if k, _, err := s.Token(ctx, "tok-1"); err == nil {
			t.Errorf("%q: %+v", bound, k)
		}
	}
}

func TestAnswersAreKeptForATime(t *testing.T) {
	now := time.UnixMicro(1_000_000).UTC()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "x.db"), func() time.Time { return now })
	must(t, err)
	defer s.Close()
	call := func(client, answer string) context.Context {
		return vps.WithCall(t.Context(), vps.Call{Client: client, Key: "k", Sum: [sha256.Size]byte{1, 2, 3},
			Record: func(any) ([]byte, error) { return []byte(answer), nil }})
	}
	must(t, s.KeepAnswer(call("a", "one"), nil))
	must(t, s.KeepAnswer(call("b", "two"), nil))
	now = now.Add(time.Minute)
	must(t, s.KeepAnswer(call("a", "three"), nil)) // what the same call came to in the end
	for client, want := range map[string]string{"a": "three", "b": "two"} {
		if got, sum, err := s.Answered(t.Context(), client, "k"); err != nil || string(got) != want ||
			sum != [sha256.Size]byte{1, 2, 3} {
			t.Errorf("%s: %s %v (%v)", client, got, sum, err)
		}
	}
	now = now.Add(2 * answersKept)
	if got, _, err := s.Answered(t.Context(), "a", "k"); got != nil || err != nil {
		t.Errorf("an answer of long ago is %q (%v)", got, err)
	}
	must(t, s.KeepAnswer(call("c", "four"), nil))
	var rows int
	must(t, s.q.QueryRowContext(t.Context(), `SELECT count(*) FROM answer`).Scan(&rows))
	if rows != 1 {
		t.Errorf("%d answers are kept", rows)
	}
	// What was not written with the change is not there.
	err = s.Write(t.Context(), func(tx *Tx) error {
		must(t, tx.KeepAnswer(call("d", "five"), nil))
		return errors.New("the change failed")
	})
	if got, _, missing := s.Answered(t.Context(), "d", "k"); err == nil || got != nil || missing != nil {
		t.Errorf("an answer without its change: %q (%v)", got, missing)
	}
}
