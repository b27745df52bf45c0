package server

import (
	"bytes"
	"context"
	"net/http"

	"github.com/prometheus/common/expfmt"
)

// ShowMetrics sends what could be gathered: one metric that cannot be read must
// not hide the others.
func (h *handlers) ShowMetrics(_ context.Context, _ ShowMetricsRequestObject) (ShowMetricsResponseObject, error) {
	families, err := h.service.Metrics().Gather()
	if len(families) == 0 && err != nil {
		return nil, err
	}
	var text bytes.Buffer
	to := expfmt.NewEncoder(&text, metricsFormat)
	for _, family := range families {
		if err := to.Encode(family); err != nil {
			return nil, err
		}
	}
	return metricsText(text.Bytes()), nil
}

var metricsFormat = expfmt.NewFormat(expfmt.TypeTextPlain)

// metricsText names the version of the format, which Prometheus looks for.
type metricsText []byte

func (m metricsText) VisitShowMetricsResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", string(metricsFormat))
	w.WriteHeader(http.StatusOK)
	_, err := w.Write(m)
	return err
}
