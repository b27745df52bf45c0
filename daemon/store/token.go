package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"vpssnapd/daemon/vps"
)

const tokenColumns = `id, name, coalesce(parent, ''), scopes, way, vps, created_at, expires_at, last_used_at` //nolint:gosec // names of columns

func scanToken(row scanner, more ...any) (vps.Token, error) {
	var t vps.Token
	var scopes string
	var bound *string
	err := row.Scan(append([]any{&t.ID, &t.Name, &t.Parent, &scopes, &t.Way, &bound,
		moment{&t.CreatedAt}, momentOrNil{&t.ExpiresAt}, momentOrNil{&t.LastUsedAt}}, more...)...)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(scopes), &t.Scopes); err != nil {
		return t, fmt.Errorf("the scopes of token %s cannot be read: %w", t.ID, err)
	}
	if bound == nil {
		return t, nil
	}
	// Never nil, which would mean all VPSes, whatever is stored.
	t.VPS = []string{}
	if err := json.Unmarshal([]byte(*bound), &t.VPS); err != nil || t.VPS == nil {
		return t, fmt.Errorf("the VPSes of token %s cannot be read: %q", t.ID, *bound)
	}
	return t, nil
}

// Token returns a token with the SHA-256 of its secret; sql.ErrNoRows when there is none.
func (s queries) Token(ctx context.Context, id string) (t vps.Token, hash []byte, err error) {
	t, err = scanToken(s.q.QueryRowContext(ctx, `SELECT `+tokenColumns+`, hash FROM token WHERE id = ?`, id), &hash)
	return t, hash, err
}

// Tokens returns every token, oldest first.
func (s queries) Tokens(ctx context.Context) ([]vps.Token, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+tokenColumns+` FROM token ORDER BY created_at, id`)
	return collect(rows, err, func(row scanner) (vps.Token, error) { return scanToken(row) })
}

// CountChildren counts the tokens that another one has made.
func (s queries) CountChildren(ctx context.Context, parent string) (n int, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT count(*) FROM token WHERE parent = ?`, parent).Scan(&n)
	return n, err
}

// AddToken records a token. IsUnique(err) reports whether its name is taken.
func (t *Tx) AddToken(ctx context.Context, k vps.Token, hash []byte) error {
	scopes, err := json.Marshal(k.Scopes)
	if err != nil {
		return err
	}
	var bound, parent any
	if k.VPS != nil {
		text, err := json.Marshal(k.VPS)
		if err != nil {
			return err
		}
		bound = string(text)
	}
	if k.Parent != "" {
		parent = k.Parent
	}
	return t.exec(
		ctx,
		`INSERT INTO token (id, name, parent, hash, scopes, way, vps, created_at, expires_at) VALUES (?,?,?,?,?,?,?,?,?)`,
		k.ID, k.Name, parent, hash, string(scopes), k.Way, bound, micros(k.CreatedAt), microsOrNull(k.ExpiresAt),
	)
}

// SetTokenHash gives a token another secret; sql.ErrNoRows (wrapped) when there is none.
func (t *Tx) SetTokenHash(ctx context.Context, id string, hash []byte) error {
	return t.execOne(ctx, `UPDATE token SET hash = ? WHERE id = ?`, hash, id)
}

// UsedToken notes when a token was used, if it was not noted since.
func (t *Tx) UsedToken(ctx context.Context, id string, at, since time.Time) error {
	return t.exec(ctx, `UPDATE token SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)`,
		micros(at), id, micros(since))
}

// RemoveToken revokes a token and those that it has made; sql.ErrNoRows (wrapped)
// when there is none.
func (t *Tx) RemoveToken(ctx context.Context, id string) error {
	res, err := t.tx.ExecContext(ctx, `DELETE FROM damaged WHERE kind = 'token' AND id = ?`, id)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err // it was revoked when it was found damaged
	}
	return t.execOne(ctx, `DELETE FROM token WHERE id = ?`, id)
}

// RevokeAll removes every token.
func (t *Tx) RevokeAll(ctx context.Context) error { return t.exec(ctx, `DELETE FROM token`) }

// RemoveExpired removes the tokens that expired before.
func (t *Tx) RemoveExpired(ctx context.Context, before time.Time) error {
	return t.exec(ctx, `DELETE FROM token WHERE expires_at < ?`, micros(before))
}
