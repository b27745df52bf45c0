// Package servertest is a small daemon in memory: enough of one to try the API
// and the CLI on, with none of the disks.
package servertest

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"vpssnapd/api/server"
	"vpssnapd/daemon/vps"
)

// The VPS that New makes.
const (
	// Web1 runs and has an active option, but no snapshot.
	Web1 = "11111111-1111-4111-8111-111111111111"
	// Web2 runs and has no option.
	Web2 = "22222222-2222-4222-8222-222222222222"
	// Web3 is off and has an option and a snapshot.
	Web3 = "33333333-3333-4333-8333-333333333333"
)

// Epoch is the time at which everything that New makes was made.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// OwnGroup is the group of the user who runs the test, who is an operator then.
func OwnGroup() (string, error) {
	g, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		return "", fmt.Errorf("cannot tell one's own group: %w", err)
	}
	return g.Name, nil
}

// Service is a server.Service. Its exported fields are changed with Set.
type Service struct {
	// Outcome is how the next operations end; "" means succeeded.
	Outcome vps.Status
	// Hold makes operations stay as they are, so that a wait lasts.
	Hold bool
	// Err is returned by every call that can fail, when it is set.
	Err error
	// Panic makes Host panic.
	Panic bool
	// Storage is added to what Host tells.
	Storage []vps.Storage
	// GivenAway is a name that belonged to another VPS with a snapshot.
	GivenAway string
	// Findings is what Checks finds. Repair puts right what is repairable.
	Findings []vps.Finding

	// CutDownloads is how many of the next downloads are cut off, each after a third.
	CutDownloads int

	mu       sync.Mutex
	vps      []*vps.VPS
	ops      []*vps.Operation
	messages []vps.Message
	events   []vps.Event
	changed  chan struct{}
	calls    []string
	tokens   map[string]vps.Token // by their secrets
	webhooks []vps.Webhook
	waiting  atomic.Int32
	// downloads are the links; a revoked one has none.
	downloads []vps.Download
}

var _ server.Service = (*Service)(nil)

// New returns a service with Web1, Web2 and Web3, and with a token for each
// scope, whose secret is the scope's name: "panel" may read and snapshot, "bound"
// and "bound-to-3" are bound to Web1 and Web3.
func New() *Service {
	s := &Service{tokens: held(), changed: make(chan struct{})}
	for i, id := range []string{Web1, Web2, Web3} {
		s.vps = append(s.vps, &vps.VPS{
			ID: id, Name: fmt.Sprintf("web%d", i+1),
			State: vps.StateRunning, Agent: vps.AgentConnected, Persistent: true,
			Disks: []vps.Disk{{Target: "vda", Path: "/srv/images/web.qcow2", Format: "qcow2", SizeBytes: 20 << 30, Included: true}},
		})
	}
	s.vps[0].Option = s.option(Web1, vps.OptionActive)
	s.vps[2].Option = s.option(Web3, vps.OptionActive)
	s.vps[2].State = vps.StateOff
	s.vps[2].Snapshot = s.snapshot(Web3, "before the upgrade")
	for _, v := range s.vps {
		s.say(v, vps.MessageWarning, vps.Actor{Name: "vpssnapd", Way: vps.WayRecovery}, "This is a test.")
		s.refresh(v)
	}
	return s
}

// Set changes how s behaves, also while it is used.
func (s *Service) Set(change func(*Service)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *Service) option(id string, state vps.OptionState) *vps.Option {
	return &vps.Option{
		ID: "opt-1", VPS: id, State: state, OrderRef: "order-1",
		Price:     vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth},
		OrderedAt: Epoch, ActivatedAt: &Epoch, UpdatedAt: Epoch,
	}
}

func (s *Service) snapshot(id, description string) *vps.Snapshot {
	return &vps.Snapshot{
		ID: "abcdef012345", VPS: id, State: vps.SnapshotAvailable, Description: description,
		CreatedAt: Epoch, Consistency: vps.ConsistencyFilesystem, FreezeMS: 205,
		SizeBytes: 20 << 30, DeltaBytes: 3 << 30, UpdatedAt: Epoch,
		Disks: []vps.SnapshotDisk{{Target: "vda", Base: "/srv/images/web.qcow2", Overlay: "/srv/images/web.overlay"}},
	}
}

func (s *Service) say(v *vps.VPS, kind vps.MessageKind, a vps.Actor, text string) {
	s.messages = append(s.messages, vps.Message{
		ID: int64(len(s.messages) + 1), At: Epoch, VPS: v.ID, VPSName: v.Name,
		Kind: kind, Actor: a, Text: text, Detail: "for operators: /srv/images",
	})
}

// refresh works out the actions of v, and its running operation.
func (s *Service) refresh(v *vps.VPS) {
	v.Operation = nil
	for _, op := range s.ops {
		if op.VPS == v.ID && !op.Status.Final() {
			v.Operation = op
		}
	}
	none := vps.Verdict{Code: vps.CodeNotFound, Reason: vps.Say("the VPS has no snapshot")}
	v.Actions = vps.Actions{Take: vps.Verdict{Allowed: true}, Restore: none, UndoRestore: none, Delete: none}
	if v.Snapshot != nil {
		v.Actions.Restore, v.Actions.Delete = vps.Verdict{Allowed: true}, vps.Verdict{Allowed: true}
		v.Actions.Take = vps.Verdict{Code: vps.CodeSnapshotExists, Reason: vps.Say("%s has a snapshot already, from %s", v.Name, v.Snapshot.CreatedAt.Format(time.RFC3339))}
	}
	if v.Option == nil {
		v.Actions.Take = vps.Verdict{Code: vps.CodeOptionRequired, Reason: vps.Say("%s has no active snapshot option", v.Name)}
	}
}

// called records a call that changes something, with its author.
func (s *Service) called(what, ref string, a vps.Actor) {
	s.calls = append(s.calls, fmt.Sprintf("%s %s by %s (%s)", what, ref, a.Name, a.Way))
}

// Calls lists the changing calls that came, as in "take web1 by root (operator)".
func (s *Service) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

func (s *Service) find(ref string) (*vps.VPS, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	if ref != "" && ref == s.GivenAway {
		return nil, vps.Errorf(vps.CodeVPSChanged, "the name %s belonged to another VPS", ref)
	}
	for _, v := range s.vps {
		if v.ID == strings.ToLower(ref) || v.Name == ref {
			s.refresh(v)
			return v, nil
		}
	}
	return nil, vps.Errorf(vps.CodeNotFound, "no such VPS")
}

// ListVPS and the methods below are those of the daemon.
func (s *Service) ListVPS(context.Context) ([]vps.VPS, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []vps.VPS
	for _, v := range s.vps {
		s.refresh(v)
		list = append(list, copyVPS(v))
	}
	return list, s.Err
}

func (s *Service) ShowVPS(_ context.Context, ref string) (vps.VPS, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.VPS{}, err
	}
	return copyVPS(v), nil
}

// copyVPS copies what later calls may change.
func copyVPS(v *vps.VPS) vps.VPS {
	c := *v
	c.Option, c.Snapshot, c.Operation = copyOf(v.Option), copyOf(v.Snapshot), copyOf(v.Operation)
	return c
}

func copyOf[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

func (s *Service) Host(context.Context) (vps.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Panic {
		panic("the test asked for it")
	}
	return vps.Host{
		Hostname: "host1", Version: "1.0", LibvirtVersion: "9.0.0", HypervisorVersion: "7.2.22", Connected: true,
		VPSCount: 3, SnapshotCount: 1,
		Storage: append([]vps.Storage{
			{Path: "/srv/images", TotalBytes: 1 << 40, FreeBytes: 1 << 39, HeadroomBytes: 10 << 30, OverlayBytes: 3 << 30, TakesPermitted: true, Level: vps.SpaceOK},
		}, s.Storage...),
	}, s.Err
}

func (s *Service) Checks(context.Context) (vps.Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report(), s.Err
}

func (s *Service) report() vps.Report {
	return vps.Report{At: Epoch, VPSCount: len(s.vps), SnapshotCount: 1, Findings: append([]vps.Finding(nil), s.Findings...)}
}

func (s *Service) Repair(_ context.Context, a vps.Actor) (vps.Report, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Err != nil {
		return vps.Report{}, s.Err
	}
	s.called("repair", "host", a)
	var left []vps.Finding
	var repairs []vps.Repair
	for _, f := range s.Findings {
		if !f.Repairable {
			left = append(left, f)
			continue
		}
		repairs = append(repairs, vps.Repair{Code: f.Code, VPS: f.VPS, VPSName: f.VPSName, Done: true, Text: "it was put right"})
	}
	s.Findings = left
	r := s.report()
	r.Repairs = repairs
	return r, nil
}

func (s *Service) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Err
}

// Metrics has one of its own.
func (s *Service) Metrics() prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "vpssnap_test", Help: "A test."}))
	return r
}

func (s *Service) Messages(_ context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var page vps.MessagePage
	for _, m := range slices.Backward(s.messages) {

		if q.VPS != "" && m.VPS != q.VPS || q.Kind != "" && m.Kind != q.Kind || q.Before != 0 && m.ID >= q.Before ||
			m.At.Before(q.Since) || !q.Until.IsZero() && !m.At.Before(q.Until) {
			continue
		}
		if len(page.Messages) == q.Limit {
			page.Next = page.Messages[q.Limit-1].ID
			break
		}
		page.Messages = append(page.Messages, m)
	}
	return page, s.Err
}

// Tell adds an event.
func (s *Service) Tell(e vps.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.ID, e.At = int64(len(s.events)+1), Epoch
	s.events = append(s.events, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Service) Events(_ context.Context, after int64) (vps.EventPage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := int64(len(s.events))
	if after == vps.FromNow {
		after = last
	}
	if after > last {
		return vps.EventPage{After: last, Missed: true, Changed: s.changed}, s.Err
	}
	page := vps.EventPage{After: after, Changed: s.changed}
	page.Events = append(page.Events, s.events[after:min(last, after+100)]...)
	return page, s.Err
}

// Say adds a message.
func (s *Service) Say(m vps.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.ID = int64(len(s.messages) + 1)
	s.messages = append(s.messages, m)
}
