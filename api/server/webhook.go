package server

import (
	"context"
	"encoding/json"
	"strconv"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Webhooks keeps the receivers of events.
type Webhooks interface {
	Webhooks(ctx context.Context) ([]vps.Webhook, error)
	Webhook(ctx context.Context, id string) (vps.Webhook, error)
	CreateWebhook(ctx context.Context, url string, types []vps.EventType, a vps.Actor) (vps.Webhook, error)
	DeleteWebhook(ctx context.Context, id string, a vps.Actor) error
	TestWebhook(ctx context.Context, id string) (vps.WebhookTest, error)
}

func (h *handlers) ListWebhooks(ctx context.Context, _ ListWebhooksRequestObject) (ListWebhooksResponseObject, error) {
	all, err := h.services.Webhooks.Webhooks(ctx)
	if err != nil {
		return nil, err
	}
	return ListWebhooks200JSONResponse{Webhooks: each(all, wireWebhook)}, nil
}

func (h *handlers) CreateWebhook(ctx context.Context, r CreateWebhookRequestObject) (CreateWebhookResponseObject, error) {
	var types []vps.EventType
	for _, t := range r.Body.Types {
		types = append(types, vps.EventType(t))
	}
	w, err := h.services.Webhooks.CreateWebhook(ctx, r.Body.URL, types, callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return CreateWebhook201JSONResponse(wireNewWebhook(w)), nil
}

func (h *handlers) ShowWebhook(ctx context.Context, r ShowWebhookRequestObject) (ShowWebhookResponseObject, error) {
	w, err := h.services.Webhooks.Webhook(ctx, r.Webhook)
	if err != nil {
		return nil, err
	}
	return ShowWebhook200JSONResponse(wireWebhook(w)), nil
}

func (h *handlers) DeleteWebhook(ctx context.Context, r DeleteWebhookRequestObject) (DeleteWebhookResponseObject, error) {
	if err := h.services.Webhooks.DeleteWebhook(ctx, r.Webhook, callerOf(ctx).actor); err != nil {
		return nil, err
	}
	return DeleteWebhook204Response{}, nil
}

func (h *handlers) TestWebhook(ctx context.Context, r TestWebhookRequestObject) (TestWebhookResponseObject, error) {
	result, err := h.services.Webhooks.TestWebhook(ctx, r.Webhook)
	if err != nil {
		return nil, err
	}
	return TestWebhook200JSONResponse(wireWebhookTest(result)), nil
}

func wireWebhook(w vps.Webhook) api.Webhook {
	var types []api.WebhookEventType
	for _, t := range w.Types {
		types = append(types, api.WebhookEventType(t))
	}
	return api.Webhook{
		ID:          w.ID,
		URL:         w.URL,
		Types:       types,
		CreatedAt:   w.CreatedAt.UTC(),
		Disabled:    w.DisabledAt != nil,
		Waiting:     w.Waiting,
		DeliveredAt: utc(w.DeliveredAt),
		FailedAt:    utc(w.FailedAt),
		LastError:   w.LastError,
	}
}

// wireNewWebhook is for who makes it: the only answer with the secret.
func wireNewWebhook(w vps.Webhook) api.NewWebhook {
	return api.NewWebhook{Webhook: wireWebhook(w), Secret: w.Secret}
}

func wireWebhookTest(r vps.WebhookTest) api.WebhookTest {
	return api.WebhookTest{Delivered: r.Delivered, Error: r.Error}
}

// WebhookBody makes what is sent to webhooks of an event. A receiver is no operator
// of the host: it gets no paths.
func WebhookBody(e vps.Event, host string) ([]byte, error) {
	w := wireEvent(e, reader{in: vps.English})
	m := api.WebhookMessage{
		Type:      string(e.Type),
		Timestamp: w.At,
		Data: api.WebhookData{Host: host, VPS: w.VPS, VPSName: w.VPSName,
			Operation: w.Operation, Option: w.Option, Snapshot: w.Snapshot, Space: w.Space},
	}
	if e.ID > 0 {
		m.Data.EventID = strconv.FormatInt(e.ID, 10)
	}
	return json.Marshal(m)
}
