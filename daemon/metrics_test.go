package daemon_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// measured returns the value of one series; labels as in kind="take".
func (w *world) measured(name string, labels ...string) (float64, bool) {
	w.t.Helper()
	families, err := w.daemon.Metrics.Gatherer().Gather()
	w.must(err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if hasLabels(m, labels) {
				if h := m.GetHistogram(); h != nil {
					return float64(h.GetSampleCount()), true
				}
				return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true
			}
		}
	}
	return 0, false
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for _, want := range labels {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName()+"="+l.GetValue() == want }) {
			return false
		}
	}
	return true
}

func TestMetricsOfALife(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 7)
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"vpssnap_operations_total", []string{"kind=take", "status=succeeded"}, 1},
		{"vpssnap_operations_total", []string{"kind=delete", "status=failed"}, 0},
		{"vpssnap_operation_duration_seconds", []string{"kind=take", "status=succeeded"}, 1},
		{"vpssnap_freeze_seconds", nil, 1},
		{"vpssnap_snapshots_by_state", []string{"state=available"}, 1},
		{"vpssnap_options", []string{"state=active"}, 1},
		{"vpssnap_database_up", nil, 1},
		{"vpssnap_merges_limit", nil, 2},
		{"vpssnap_guests_owed", []string{"kind=thaw"}, 0},
	} {
		w.eventually(
			c.name+" is told", func() bool { got, ok := w.measured(c.name, c.labels...); return ok && got == c.want },
		)
	}
	for _, name := range []string{"vpssnap_database_bytes", "vpssnap_events_total", "vpssnap_database_commits_total"} {
		if got, ok := w.measured(name); !ok || got <= 0 {
			t.Errorf("%s is %v", name, got)
		}
	}
}

var (
	metricName = regexp.MustCompile(`\bvpssnap_[a-z0-9_]+\b`)
	fqName     = regexp.MustCompile(`fqName: "(vpssnap_[a-z0-9_]+)"`)
)

// metricNames are all names of ours that can ever be gathered.
func metricNames(t *testing.T) []string {
	t.Helper()
	w := newWorld(t, nil)
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		w.daemon.Metrics.Gatherer().(prometheus.Collector).Describe(descs)
	}()
	var names []string
	for desc := range descs {
		if m := fqName.FindStringSubmatch(desc.String()); m != nil {
			names = append(names, m[1])
		}
	}
	// The figures of the host are made by the server, from Host.
	server, err := os.ReadFile("../api/server/metrics.go")
	w.must(err)
	names = append(names, metricName.FindAllString(string(server), -1)...)
	slices.Sort(names)
	return slices.Compact(names)
}

// The dashboard and the alerts ask only for metrics that there are.
func TestMetricsOfPackagingExist(t *testing.T) {
	names := metricNames(t)
	for _, path := range []string{"../packaging/grafana-dashboard.json", "../packaging/prometheus-alerts.yaml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		asked := metricName.FindAllString(string(text), -1)
		if len(asked) < 10 {
			t.Errorf("%s asks for %d metrics only", path, len(asked))
		}
		for _, name := range asked {
			if !slices.Contains(names, strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s asks for %s, which there is not", path, name)
			}
		}
	}
}

// openapi.yaml lists the names, for they are stable.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documented := metricName.FindAllString(string(text), -1)
	slices.Sort(documented)
	documented = slices.Compact(documented)
	if names := metricNames(t); !slices.Equal(names, documented) {
		t.Errorf("there are\n%s\ndocumented are\n%s", strings.Join(names, "\n"), strings.Join(documented, "\n"))
	}
}

// The files have the form that Prometheus and Grafana read.
func TestAlertsAndDashboardAreWellFormed(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile("../packaging/prometheus-alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Groups[0].Rules {
		if r.Alert == "" || r.Expr == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" ||
			r.Annotations["description"] == "" {
			t.Errorf("the rule %+v lacks something", r)
		}
	}
	var board struct {
		UID    string `json:"uid"`
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		} `json:"panels"`
	}
	if text, err = os.ReadFile("../packaging/grafana-dashboard.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 || seen[p.ID] {
			t.Errorf("the panel %+v lacks something", p)
		}
		seen[p.ID] = true
	}
}
