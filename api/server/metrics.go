package server

import (
	"bytes"
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"vpssnapd/daemon/vps"
)

// ShowMetrics answers with what Host says and with what the daemon counts, in the
// text format of Prometheus. What could be gathered is sent: one figure that
// cannot be read must not hide the others.
func (h *handlers) ShowMetrics(ctx context.Context, _ ShowMetricsRequestObject) (ShowMetricsResponseObject, error) {
	host, err := h.services.Overview.Host(ctx)
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	hostFigures(registry, host)
	storageFigures(registry, host.Storage)
	families, err := prometheus.Gatherers{registry, h.services.Metrics}.Gather()
	if err != nil && len(families) == 0 {
		return nil, fmt.Errorf("cannot gather the metrics: %w", err)
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			return nil, fmt.Errorf("cannot write the metrics: %w", err)
		}
	}
	return ShowMetrics200TextResponse(text.String()), nil
}

// hostFigures are made at each scrape, in a registry of their own: nothing is left of a
// directory that has gone.
func hostFigures(registry *prometheus.Registry, host vps.Host) {
	up := 0.0
	if host.Connected {
		up = 1
	}
	for name, figure := range map[string]struct {
		help  string
		value float64
	}{
		"vpssnap_libvirt_up": {"1: libvirt answers.", up},
		"vpssnap_vps":        {"VPSes on the host.", float64(host.VPSCount)},
		"vpssnap_snapshots":  {"Snapshots on record.", float64(host.SnapshotCount)},
	} {
		gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: figure.help})
		gauge.Set(figure.value)
		registry.MustRegister(gauge)
	}
	operations := gauges(registry, "vpssnap_operations", "Operations that are not finished.", "status")
	operations.WithLabelValues("active").Set(float64(host.ActiveOperations - host.ParkedOperations))
	operations.WithLabelValues("needs_attention").Set(float64(host.ParkedOperations))
}

// alarms is each level as a number that an alert rule can compare.
var alarms = map[vps.SpaceLevel]float64{vps.SpaceOK: 0, vps.SpaceWarning: 1, vps.SpaceCritical: 2}

func storageFigures(registry *prometheus.Registry, storage []vps.Storage) {
	size := gauges(
		registry, "vpssnap_storage_size_bytes", "Size of the file system that holds this directory of disks.", "path",
	)
	free := gauges(registry, "vpssnap_storage_free_bytes", "Free bytes of that file system.", "path")
	headroom := gauges(registry, "vpssnap_storage_headroom_bytes", "Takes are refused when less is free.", "path")
	overlays := gauges(registry, "vpssnap_storage_overlay_bytes", "Bytes allocated by snapshots.", "path")
	alarm := gauges(registry, "vpssnap_storage_alarm", "0 ok, 1 warning, 2 critical.", "path")
	full := gauges(registry, "vpssnap_storage_full_seconds", "Until it is full at the present rate.", "path")
	for _, s := range storage {
		size.WithLabelValues(s.Path).Set(float64(s.TotalBytes))
		free.WithLabelValues(s.Path).Set(float64(s.FreeBytes))
		headroom.WithLabelValues(s.Path).Set(float64(s.HeadroomBytes))
		overlays.WithLabelValues(s.Path).Set(float64(s.OverlayBytes))
		alarm.WithLabelValues(s.Path).Set(alarms[s.Level])
		if s.FullInSeconds > 0 {
			full.WithLabelValues(s.Path).Set(float64(s.FullInSeconds))
		}
	}
}

// gauges makes one figure with a label.
func gauges(registry *prometheus.Registry, name, help, label string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	registry.MustRegister(g)
	return g
}
