package vps

import (
	"slices"
	"time"
)

// Webhook is who is told of events over HTTP.
type Webhook struct {
	ID  string
	URL string
	// Secret signs what is sent to it. Who made the webhook was shown it, once.
	Secret string
	// Types are the events that it is told of; nil: all that webhooks are told of.
	Types     []EventType
	CreatedAt time.Time
	// DisabledAt is when its receiver said that it is gone (410); nil: it is told.
	DisabledAt *time.Time
	// DeliveredAt is when it took something last, FailedAt when it last did not;
	// nil: never.
	DeliveredAt *time.Time
	FailedAt    *time.Time
	// LastError is why it did not; "" when it has taken something since.
	LastError string
	// Waiting counts what is still to be delivered to it.
	Waiting int
}

// Wants reports whether the webhook is to be told of events of a type.
func (w Webhook) Wants(t EventType) bool {
	return w.DisabledAt == nil && (w.Types == nil || slices.Contains(w.Types, t))
}

// WebhookTest is what came of a test; Error is "" when it was delivered.
type WebhookTest struct {
	Delivered bool
	Error     string
}
