package server

import (
	"bytes"
	"context"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Overview shows the host and its VPSes.
type Overview interface {
	ListVPS(ctx context.Context) ([]vps.VPS, error)
	ShowVPS(ctx context.Context, ref string) (vps.VPS, error)
	Host(ctx context.Context) (vps.Host, error)
	Ready(ctx context.Context) error
}

// handlers implements the generated StrictServerInterface. A handler runs only
// after guard, checkQuery, readBody and validation let the request through.
type handlers struct {
	services Services
	// closing ends when the server shuts down.
	closing context.Context
	// heartbeat is how long a stream of events is silent at most.
	heartbeat time.Duration
	// slowReader is how long a listener may take nothing of what is sent to it.
	slowReader time.Duration
	// slowDownload is how long who downloads may take for slowBytes.
	slowDownload time.Duration
	lasting      lasting
	// docs is openapi.yaml as a page.
	docs func() []byte
}

var _ StrictServerInterface = (*handlers)(nil)

// The list is filtered here: the daemon knows no callers.
func (h *handlers) ListVPS(ctx context.Context, _ ListVPSRequestObject) (ListVPSResponseObject, error) {
	all, err := h.services.Overview.ListVPS(ctx)
	if err != nil {
		return nil, err
	}
	who, r := callerOf(ctx), readerOf(ctx)
	list := ListVPS200JSONResponse{VPS: []api.VPS{}}
	for _, v := range all {
		if who.sees(v.ID) {
			list.VPS = append(list.VPS, wireVPS(v, r))
		}
	}
	return list, nil
}

func (h *handlers) ShowVPS(ctx context.Context, r ShowVPSRequestObject) (ShowVPSResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	v, err := h.services.Overview.ShowVPS(ctx, id)
	if err != nil {
		return nil, err
	}
	return ShowVPS200JSONResponse(wireVPS(v, readerOf(ctx))), nil
}

func (h *handlers) ListOffers(context.Context, ListOffersRequestObject) (ListOffersResponseObject, error) {
	return ListOffers200JSONResponse{Offers: each(h.services.Options.Offers(), wireOffer)}, nil
}

func (h *handlers) ShowHost(ctx context.Context, _ ShowHostRequestObject) (ShowHostResponseObject, error) {
	host, err := h.services.Overview.Host(ctx)
	if err != nil {
		return nil, err
	}
	return ShowHost200JSONResponse(wireHost(host)), nil
}

// ShowHealth answers as long as the process does; ShowReadiness asks further.
func (h *handlers) ShowHealth(context.Context, ShowHealthRequestObject) (ShowHealthResponseObject, error) {
	return ShowHealth200JSONResponse{Status: "ok"}, nil
}

// ShowReadiness is open to everybody, and so gives no reason.
func (h *handlers) ShowReadiness(ctx context.Context, _ ShowReadinessRequestObject) (ShowReadinessResponseObject, error) {
	if err := h.services.Overview.Ready(ctx); err != nil {
		return nil, vps.Errorf(vps.CodeHypervisorUnavailable, "vpssnapd is not ready").Because(err)
	}
	return ShowReadiness200JSONResponse{Status: "ready"}, nil
}

// ShowSpec sends the contract itself.
func (h *handlers) ShowSpec(context.Context, ShowSpecRequestObject) (ShowSpecResponseObject, error) {
	return ShowSpec200ApplicationYamlResponse{Body: bytes.NewReader(api.Spec), ContentLength: int64(len(api.Spec))}, nil
}
