package webhook

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Body makes what is sent of an event.
type Body func(e vps.Event, host string) ([]byte, error)

// Webhooks are the receivers that a host tells of its events.
type Webhooks struct {
	store  *store.Store
	poster *Poster
	body   Body
	logger *slog.Logger
}

// NewWebhooks makes the webhooks of a host; body nil: nothing can be sent.
func NewWebhooks(db *store.Store, poster *Poster, body Body, logger *slog.Logger) *Webhooks {
	if body == nil {
		body = func(vps.Event, string) ([]byte, error) { return nil, errors.New("there is no form for webhooks") }
	}
	return &Webhooks{store: db, poster: poster, body: body, logger: logger}
}

// mostWebhooks bounds what every event costs.
const mostWebhooks = 32

func errNoWebhook() error { return vps.Errorf(vps.CodeNotFound, "no such webhook") }

// Webhooks returns every webhook, oldest first.
func (ws *Webhooks) Webhooks(ctx context.Context) ([]vps.Webhook, error) {
	return ws.store.Webhooks(ctx)
}

// Webhook returns one. Codes: not_found.
func (ws *Webhooks) Webhook(ctx context.Context, id string) (vps.Webhook, error) {
	w, err := ws.store.Webhook(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return w, errNoWebhook()
	}
	return w, err
}

// CreateWebhook makes one that is told of these types of events; none: of all that
// webhooks are told of. Codes: invalid.
func (ws *Webhooks) CreateWebhook(
	ctx context.Context, url string, types []vps.EventType, actor vps.Actor,
) (vps.Webhook, error) {
	w := vps.Webhook{
		ID:        vps.NewWebhookID(),
		URL:       url,
		Secret:    NewSecret(),
		Types:     vps.Unique(types),
		CreatedAt: ws.store.Now(),
	}
	if err := ws.poster.CheckURL(url); err != nil {
		return w, err
	}
	for _, t := range types {
		if !t.ForWebhooks() {
			return w, vps.Errorf(vps.CodeInvalid, "webhooks are not told of events of type %s", t)
		}
	}
	// Counted in the transaction that adds it, so that two at once cannot pass the
	// limit.
	err := ws.store.Write(ctx, func(tx *store.Tx) error {
		all, err := tx.Webhooks(ctx)
		if err != nil {
			return err
		}
		if len(all) >= mostWebhooks {
			return vps.Errorf(vps.CodeInvalid, "there are %d webhooks already", mostWebhooks).
				WithRemedy("delete one that is not needed any more")
		}
		return errors.Join(tx.AddWebhook(ctx, w), tx.KeepAnswer(ctx, w))
	})
	if err == nil {
		ws.logger.Info("webhook made", "webhook", w.ID, "by", actor.Name)
	}
	return w, err
}

// DeleteWebhook ends a webhook; what waits for it is not sent. Codes: not_found.
func (ws *Webhooks) DeleteWebhook(ctx context.Context, id string, actor vps.Actor) error {
	err := ws.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RemoveWebhook(ctx, id); err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, nil)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return errNoWebhook()
	}
	if err != nil {
		return fmt.Errorf("cannot delete webhook %s: %w", id, err)
	}
	ws.logger.Info("webhook deleted", "webhook", id, "by", actor.Name)
	return nil
}

// TestWebhook sends one message to a webhook now, and returns what came of it. A
// webhook that was disabled is told again when it takes this one. Codes: not_found.
func (ws *Webhooks) TestWebhook(ctx context.Context, id string) (vps.WebhookTest, error) {
	w, err := ws.Webhook(ctx, id)
	if err != nil {
		return vps.WebhookTest{}, err
	}
	// Outside of any transaction: a receiver may take ten seconds.
	failed := ws.postTo(ctx, w, vps.NewDeliveryID(), vps.Event{Type: vps.EventWebhookTest, At: ws.store.Now()})
	if failed != nil && ctx.Err() != nil {
		return vps.WebhookTest{}, ctx.Err()
	}
	result := vps.WebhookTest{Delivered: failed == nil}
	if failed != nil {
		result.Error = failed.Error()
	}
	err = ws.store.Write(ctx, func(tx *store.Tx) error {
		return errors.Join(ws.Note(ctx, tx, id, failed), tx.KeepAnswer(ctx, result))
	})
	return result, err
}

// Send tries a delivery once; it is the sender of webhooks (notify.Sender).
func (ws *Webhooks) Send(ctx context.Context, what vps.Delivery) error {
	w, err := ws.store.Webhook(ctx, what.Target)
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
	return ws.postTo(ctx, w, what.ID, e)
}

// postTo sends one event to one webhook, with the name of this host: a receiver may serve
// many.
func (ws *Webhooks) postTo(ctx context.Context, w vps.Webhook, id string, e vps.Event) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	body, err := ws.body(e, host)
	if err != nil {
		return err
	}
	return ws.poster.Post(ctx, w.URL, w.Secret, id, body)
}

// Note records at a webhook what came of a try (notify.Noter).
func (ws *Webhooks) Note(ctx context.Context, tx *store.Tx, id string, failed error) error {
	if failed == nil {
		return tx.WebhookTook(ctx, id, tx.Now())
	}
	var e *vps.DeliveryError
	gone := errors.As(failed, &e) && e.Gone
	if gone {
		ws.logger.Warn("webhook disabled: its receiver says that it is gone", "webhook", id)
	}
	return tx.WebhookFailed(ctx, id, failed.Error(), gone, tx.Now())
}
