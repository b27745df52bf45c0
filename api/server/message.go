package server

import (
	"cmp"
	"context"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Journal knows what happened.
type Journal interface {
	Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error)
	Events(ctx context.Context, after int64) (vps.EventPage, error)
}

// A VPS that is gone still has its journal.
func (h *handlers) ListVPSMessages(
	ctx context.Context, r ListVPSMessagesRequestObject,
) (ListVPSMessagesResponseObject, error) {
	id, err := h.find(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	list, err := h.messages(ctx, id, api.ListMessagesParams(r.Params))
	if err == nil && len(list.Messages) == 0 {
		// Nothing is known of it: is there such a VPS at all?
		_, err = h.services.Overview.ShowVPS(ctx, id)
	}
	return ListVPSMessages200JSONResponse(list), err
}

func (h *handlers) ListMessages(ctx context.Context, r ListMessagesRequestObject) (ListMessagesResponseObject, error) {
	list, err := h.messages(ctx, "", r.Params)
	return ListMessages200JSONResponse(list), err
}

// messages reads one page, of all VPS when id is "". It reads on until it has something
// for the caller, for a bounded number of pages; Next goes on from there.
func (h *handlers) messages(ctx context.Context, id string, p api.ListMessagesParams) (api.MessageList, error) {
	before, err := numbered(cursorMessage, p.Cursor)
	if err != nil {
		return api.MessageList{}, err
	}
	q := vps.MessageQuery{
		Kind:   vps.MessageKind(value(p.Kind)),
		Since:  value(p.Since),
		Until:  value(p.Until),
		Before: before,
		Limit:  limit(p.Limit),
	}
	newer := func(a, b vps.Message) int { return cmp.Compare(b.ID, a.ID) }
	all, more, err := merged(callerOf(ctx), id, q.Limit, newer, func(id string) ([]vps.Message, bool, error) {
		q.VPS = id
		page, err := h.services.Journal.Messages(ctx, q)
		return page.Messages, page.Next != 0, err
	})
	if err != nil {
		return api.MessageList{}, err
	}
	reader := readerOf(ctx)
	list := api.MessageList{Messages: each(all, func(m vps.Message) api.Message { return wireMessage(m, reader) })}
	if more && len(all) > 0 {
		list.Next = numberOf(cursorMessage, all[len(all)-1].ID)
	}
	return list, nil
}
