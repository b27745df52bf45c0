package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"vpssnapd/daemon/vps"
)

const (
	webhookColumns = `id, url, secret, types, created_at, disabled_at, delivered_at, failed_at, last_error, `
	webhookWaiting = `(SELECT count(*) FROM delivery WHERE kind = 'webhook' AND target = webhook.id AND ended_at IS NULL)`
)

func scanWebhook(row scanner) (vps.Webhook, error) {
	var w vps.Webhook
	var types *string
	err := row.Scan(
		&w.ID, &w.URL, &w.Secret, &types, moment{&w.CreatedAt}, momentOrNil{&w.DisabledAt}, momentOrNil{&w.DeliveredAt},
		momentOrNil{&w.FailedAt}, &w.LastError, &w.Waiting,
	)
	if err == nil && types != nil {
		if err = json.Unmarshal([]byte(*types), &w.Types); err != nil {
			err = fmt.Errorf("the event types of webhook %s cannot be read: %w", w.ID, err)
		}
	}
	return w, err
}

// Webhook returns one; sql.ErrNoRows when there is none.
func (s queries) Webhook(ctx context.Context, id string) (vps.Webhook, error) {
	return scanWebhook(s.q.QueryRowContext(ctx, `SELECT `+webhookColumns+webhookWaiting+` FROM webhook WHERE id = ?`, id))
}

// Webhooks returns every one, oldest first.
func (s queries) Webhooks(ctx context.Context) ([]vps.Webhook, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+webhookColumns+webhookWaiting+` FROM webhook ORDER BY created_at, id`)
	return collect(rows, err, scanWebhook)
}

// enabledWebhooks returns those that are told of events, without counting what
// waits for them: every event asks for them.
func (s queries) enabledWebhooks(ctx context.Context) ([]vps.Webhook, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+webhookColumns+` 0 FROM webhook WHERE disabled_at IS NULL`)
	return collect(rows, err, scanWebhook)
}

// AddWebhook records one.
func (t *Tx) AddWebhook(ctx context.Context, w vps.Webhook) error {
	var types any
	if w.Types != nil {
		text, err := json.Marshal(w.Types)
		if err != nil {
			return err
		}
		types = string(text)
	}
	return t.exec(ctx, `INSERT INTO webhook (id, url, secret, types, created_at) VALUES (?,?,?,?,?)`,
		w.ID, w.URL, w.Secret, types, micros(w.CreatedAt))
}

// RemoveWebhook forgets one, with what waits for it; sql.ErrNoRows (wrapped) when
// there is none.
func (t *Tx) RemoveWebhook(ctx context.Context, id string) error {
	if err := t.execOne(ctx, `DELETE FROM webhook WHERE id = ?`, id); err != nil {
		return err
	}
	return t.exec(ctx, `DELETE FROM delivery WHERE kind = 'webhook' AND target = ? AND ended_at IS NULL`, id)
}

// WebhookTook notes that a webhook took something; if it was disabled it is not any more.
func (t *Tx) WebhookTook(ctx context.Context, id string, at time.Time) error {
	return t.exec(
		ctx, `UPDATE webhook SET delivered_at = ?, disabled_at = NULL, last_error = '' WHERE id = ?`, micros(at), id,
	)
}

// WebhookFailed notes that it did not, and whether it is disabled for that.
func (t *Tx) WebhookFailed(ctx context.Context, id, why string, gone bool, at time.Time) error {
	return t.exec(ctx, `UPDATE webhook SET failed_at = ?1, last_error = ?2,
		disabled_at = CASE WHEN ?3 THEN coalesce(disabled_at, ?1) ELSE disabled_at END WHERE id = ?4`, micros(at), why, gone, id)
}
