package server

import (
	"context"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Options keeps what customers order.
type Options interface {
	Offers() []vps.Offer
	Option(ctx context.Context, ref string) (vps.Option, error)
	PutOption(ctx context.Context, ref string, o vps.OptionOrder, a vps.Actor) (vps.Option, error)
	CancelOption(ctx context.Context, ref string, now bool, a vps.Actor) (vps.Option, error)
	OptionHistory(ctx context.Context, q vps.OptionQuery) (vps.OptionHistory, error)
}

func (h *handlers) ShowOption(ctx context.Context, r ShowOptionRequestObject) (ShowOptionResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	o, err := h.services.Options.Option(ctx, id)
	if err != nil {
		return nil, err
	}
	return ShowOption200JSONResponse{Body: wireOption(o), Headers: ShowOption200ResponseHeaders{ETag: etag(o.Version())}}, nil
}

func (h *handlers) PutOption(ctx context.Context, r PutOptionRequestObject) (PutOptionResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	o, err := h.services.Options.PutOption(ctx, id, orderOf(*r.Body), callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return PutOption200JSONResponse{Body: wireOption(o), Headers: PutOption200ResponseHeaders{ETag: etag(o.Version())}}, nil
}

// orderOf copies what was sent; the daemon checks it.
func orderOf(b api.OptionOrder) vps.OptionOrder {
	o := vps.OptionOrder{
		State:        vps.OptionState(b.State),
		OrderRef:     b.OrderRef,
		ContactEmail: b.ContactEmail,
		Locale:       b.Locale,
		EndsAt:       utc(b.EndsAt),
	}
	if b.Price != nil {
		o.Price = &vps.Price{Amount: b.Price.Amount, Currency: b.Price.Currency, Period: vps.Period(b.Price.Period)}
	}
	return o
}

// Without now the snapshot stays for its grace.
func (h *handlers) CancelOption(ctx context.Context, r CancelOptionRequestObject) (CancelOptionResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	now := r.Params.Now != nil && *r.Params.Now
	o, err := h.services.Options.CancelOption(ctx, id, now, callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return CancelOption200JSONResponse{
		Body:    wireOption(o),
		Headers: CancelOption200ResponseHeaders{ETag: etag(o.Version())},
	}, nil
}

func (h *handlers) ListOptionHistory(
	ctx context.Context, r ListOptionHistoryRequestObject,
) (ListOptionHistoryResponseObject, error) {
	id, err := h.find(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	before, err := numbered(cursorChange, r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	page, err := h.services.Options.OptionHistory(ctx, vps.OptionQuery{VPS: id, Before: before, Limit: limit(r.Params.Limit)})
	if err == nil && len(page.Changes) == 0 {
		// Nothing is known of it: is there such a VPS at all?
		_, err = h.services.Overview.ShowVPS(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return ListOptionHistory200JSONResponse{Changes: each(page.Changes, wireChange), Next: numberOf(cursorChange, page.Next)}, nil
}

func wireChange(c vps.OptionChange) api.OptionChange {
	return api.OptionChange{
		ID:     c.ID,
		At:     c.At.UTC(),
		Option: c.Option,
		State:  api.OptionState(c.State),
		Actor:  wireActor(c.Actor),
		Note:   c.Note,
	}
}
