package servertest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vpssnapd/daemon/vps"
)

// Webhooks and the methods below it are those of the daemon; nothing is sent.
func (s *Service) Webhooks(context.Context) ([]vps.Webhook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.webhooks), s.Err
}

func (s *Service) Webhook(_ context.Context, id string) (vps.Webhook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Err != nil {
		return vps.Webhook{}, s.Err
	}
	for _, w := range s.webhooks {
		if w.ID == id {
			return w, nil
		}
	}
	return vps.Webhook{}, vps.Errorf(vps.CodeNotFound, "no such webhook")
}

// CreateWebhook makes a webhook whose secret is "secret of URL".
func (s *Service) CreateWebhook(_ context.Context, url string, types []vps.EventType, a vps.Actor) (vps.Webhook, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.Err != nil:
		return vps.Webhook{}, s.Err
	case !strings.HasPrefix(url, "https://"):
		return vps.Webhook{}, vps.Errorf(vps.CodeInvalid, "the URL of the webhook must begin with https://")
	}
	w := vps.Webhook{ID: fmt.Sprintf("wh-%012x", len(s.webhooks)), URL: url, Secret: "secret of " + url, Types: types, CreatedAt: Epoch}
	s.called("create-webhook", url, a)
	s.webhooks = append(s.webhooks, w)
	return w, nil
}

func (s *Service) DeleteWebhook(ctx context.Context, id string, a vps.Actor) error {
	if _, err := s.Webhook(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called("delete-webhook", id, a)
	s.webhooks = slices.DeleteFunc(s.webhooks, func(w vps.Webhook) bool { return w.ID == id })
	return nil
}

// TestWebhook fails where the URL says so.
func (s *Service) TestWebhook(ctx context.Context, id string) (vps.WebhookTest, error) {
	w, err := s.Webhook(ctx, id)
	if err != nil {
		return vps.WebhookTest{}, err
	}
	if strings.Contains(w.URL, "fails") {
		return vps.WebhookTest{Error: "the receiver answered 404"}, nil
	}
	return vps.WebhookTest{Delivered: true}, nil
}
