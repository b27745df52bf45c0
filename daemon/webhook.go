package daemon

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
)

// mostWebhooks bounds what every event costs.
const mostWebhooks = 32

func errNoWebhook() error { return vps.Errorf(vps.CodeNotFound, "no such webhook") }

// Webhooks returns every webhook, oldest first.
func (d *Daemon) Webhooks(ctx context.Context) ([]vps.Webhook, error) { return d.store.Webhooks(ctx) }

// Webhook returns one. Codes: not_found.
func (d *Daemon) Webhook(ctx context.Context, id string) (vps.Webhook, error) {
	w, err := d.store.Webhook(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return w, errNoWebhook()
	}
	return w, err
}

// CreateWebhook makes one that is told of these types of events; none: of all that
// webhooks are told of. Codes: invalid.
func (d *Daemon) CreateWebhook(ctx context.Context, url string, types []vps.EventType, actor vps.Actor) (vps.Webhook, error) {
	w := vps.Webhook{ID: "wh-" + randomHex(6), URL: url, Secret: webhook.NewSecret(), Types: unique(types), CreatedAt: d.now()}
	if err := d.poster.CheckURL(url); err != nil {
		return w, err
	}
	for _, t := range types {
		if !t.ForWebhooks() {
			return w, vps.Errorf(vps.CodeInvalid, "webhooks are not told of events of type %s", t)
		}
	}
	err := d.store.Write(ctx, func(tx *store.Tx) error {
		all, err := tx.Webhooks(ctx)
		if err != nil {
			return err
		}
		if len(all) >= mostWebhooks {
			return vps.Errorf(vps.CodeInvalid, "there are %d webhooks already", mostWebhooks).WithRemedy("delete one that is not needed any more")
		}
		return errors.Join(tx.AddWebhook(ctx, w), d.remember(ctx, tx, w))
	})
	if err == nil {
		d.Logger.Info("webhook made", "webhook", w.ID, "by", actor.Name)
	}
	return w, err
}

// DeleteWebhook ends a webhook; what waits for it is not sent. Codes: not_found.
func (d *Daemon) DeleteWebhook(ctx context.Context, id string, actor vps.Actor) error {
	err := d.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RemoveWebhook(ctx, id); err != nil {
			return err
		}
		return d.remember(ctx, tx, nil)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return errNoWebhook()
	}
	if err != nil {
		return fmt.Errorf("cannot delete webhook %s: %w", id, err)
	}
	d.Logger.Info("webhook deleted", "webhook", id, "by", actor.Name)
	return nil
}

// TestWebhook sends one message to a webhook now, and returns what came of it. A
// webhook that was disabled is told again when it takes this one. Codes: not_found.
func (d *Daemon) TestWebhook(ctx context.Context, id string) (vps.WebhookTest, error) {
	w, err := d.Webhook(ctx, id)
	if err != nil {
		return vps.WebhookTest{}, err
	}
	failed := d.postTo(ctx, w, vps.NewDeliveryID(), vps.Event{Type: vps.EventWebhookTest, At: d.now()})
	if failed != nil && ctx.Err() != nil {
		return vps.WebhookTest{}, ctx.Err()
	}
	result := vps.WebhookTest{Delivered: failed == nil}
	if failed != nil {
		result.Error = failed.Error()
	}
	err = d.store.Write(ctx, func(tx *store.Tx) error {
		return errors.Join(d.noteWebhook(ctx, tx, id, failed, d.now()), d.remember(ctx, tx, result))
	})
	return result, err
}

// tellWebhook is the sender of webhooks.
func (d *Daemon) tellWebhook(ctx context.Context, what vps.Delivery) error {
	w, err := d.store.Webhook(ctx, what.Target)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // it was deleted: nobody is to be told any more
	}
	if err != nil {
		return err
	}
	var e vps.Event
	if err := json.Unmarshal(what.Payload, &e); err != nil {
		return &vps.DeliveryError{Err: errors.New("what was recorded cannot be read"), Final: true}
	}
	return d.postTo(ctx, w, what.ID, e)
}

func (d *Daemon) postTo(ctx context.Context, w vps.Webhook, id string, e vps.Event) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	body, err := d.WebhookBody(e, host)
	if err != nil {
		return err
	}
	return d.poster.Post(ctx, w.URL, w.Secret, id, body)
}

// noteWebhook records at a webhook what came of a try.
func (d *Daemon) noteWebhook(ctx context.Context, tx *store.Tx, id string, failed error, now time.Time) error {
	if failed == nil {
		return tx.WebhookTook(ctx, id, now)
	}
	var e *vps.DeliveryError
	gone := errors.As(failed, &e) && e.Gone
	if gone {
		d.Logger.Warn("webhook disabled: its receiver says that it is gone", "webhook", id)
	}
	return tx.WebhookFailed(ctx, id, failed.Error(), gone, now)
}
