package server

import (
	"context"
	"strconv"

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
	before, err := numbered(p.Cursor)
	if err != nil {
		return api.MessageList{}, err
	}
	q := vps.MessageQuery{
		VPS:    id,
		Kind:   vps.MessageKind(value(p.Kind)),
		Since:  value(p.Since),
		Until:  value(p.Until),
		Before: before,
		Limit:  limit(p.Limit),
	}
	mine := callerOf(ctx).sees
	reader := readerOf(ctx)
	list := api.MessageList{Messages: []api.Message{}}
	for range mostPages {
		page, err := h.services.Journal.Messages(ctx, q)
		if err != nil {
			return api.MessageList{}, err
		}
		for _, m := range page.Messages {
			if mine(m.VPS) {
				list.Messages = append(list.Messages, wireMessage(m, reader))
			}
		}
		list.Next, q.Before = numberOf(page.Next), page.Next
		if len(list.Messages) > 0 || page.Next == 0 {
			break
		}
	}
	return list, nil
}

// numbered reads a cursor that is a number; 0 for the first page.
func numbered(cursor *string) (int64, error) {
	if value(cursor) == "" {
		return 0, nil
	}
	before, err := strconv.ParseInt(*cursor, 10, 64)
	if err != nil || before < 1 {
		return 0, invalid("the parameter cursor is not one that was given out")
	}
	return before, nil
}

// numberOf is the cursor of the next page; "" when there is none.
func numberOf(next int64) string {
	if next == 0 {
		return ""
	}
	return strconv.FormatInt(next, 10)
}
