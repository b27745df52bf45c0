package store

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
)

// Every combination of filters finds what it says, also of messages from when the clock
// was wrong: their ids do not follow their times.
func TestMessageFilters(t *testing.T) {
	s, _ := fresh(t)
	var all []vps.Message
	for i := range 60 {
		at := now.Add(time.Duration(i) * time.Minute)
		if i%20 == 10 {
			at = at.Add(time.Duration(i-30) * time.Hour)
		}
		all = append(
			all,
			vps.Message{ID: int64(i + 1), At: at, VPS: fmt.Sprint("v", i%3), Kind: vps.MessageKind(fmt.Sprint("k", i%2))},
		)
	}
	write(t, s, func(tx *Tx) error {
		for _, m := range all {
			must(
				t,
				tx.exec(
					ctx,
					`INSERT INTO message (id, at, vps, kind, vps_name, actor_name, actor_way, operation, text, detail)
				VALUES (?, ?, ?, ?, '', '', '', '', '', '')`,
					m.ID,
					micros(m.At),
					m.VPS,
					m.Kind,
				),
			)
		}
		return nil
	})
	for _, of := range []string{"", "v1", "none"} {
		for _, kind := range []vps.MessageKind{"", "k1"} {
			for _, since := range []time.Time{{}, now.Add(30 * time.Minute), now.Add(-time.Hour), now.Add(1000 * time.Hour)} {
				for _, until := range []time.Time{{}, now.Add(31 * time.Minute), now.Add(-time.Hour), now.Add(1000 * time.Hour)} {
					for _, before := range []int64{0, 25} {
						q := vps.MessageQuery{VPS: of, Kind: kind, Since: since, Until: until, Before: before, Limit: 7}
						checkMessages(t, s, q, all)
					}
				}
			}
		}
	}
}

func checkMessages(t *testing.T, s *Store, q vps.MessageQuery, all []vps.Message) {
	t.Helper()
	var want, got []int64
	for _, m := range slices.Backward(all) {
		if (q.VPS == "" || m.VPS == q.VPS) && (q.Kind == "" || m.Kind == q.Kind) && (q.Before == 0 || m.ID < q.Before) &&
			!m.At.Before(q.Since) && (q.Until.IsZero() || m.At.Before(q.Until)) && len(want) < q.Limit {
			want = append(want, m.ID)
		}
	}
	page, err := s.Messages(ctx, q)
	must(t, err)
	for _, m := range page.Messages {
		got = append(got, m.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v: %d, want %d", q, got, want)
	}
}

func TestOperationFilters(t *testing.T) {
	s, _ := fresh(t)
	statuses := []vps.Status{vps.StatusSucceeded, vps.StatusFailed, vps.StatusCancelled}
	var all []vps.Operation
	for i := range 60 {
		all = append(all, operation(fmt.Sprintf("op-%02d", i), fmt.Sprint("v", i%4), statuses[i%3]))
	}
	all = append(all, operation("op-99", "v1", vps.StatusRunning))
	write(t, s, func(tx *Tx) error {
		for _, o := range all {
			must(t, tx.InsertOperation(ctx, o))
		}
		return nil
	})
	for _, of := range []string{"", "v1", "none"} {
		for _, status := range []vps.Status{"", vps.StatusFailed, vps.StatusRunning} {
			for _, before := range []string{"", "op-30"} {
				q := vps.OperationQuery{VPS: of, Status: status, Before: before, Limit: 4}
				var want, got []string
				for _, o := range slices.Backward(all) {
					if (of == "" || o.VPS == of) && (status == "" || o.Status == status) && (before == "" || o.ID < before) &&
						len(want) < q.Limit {
						want = append(want, o.ID)
					}
				}
				page, err := s.Operations(ctx, q)
				must(t, err)
				for _, o := range page.Operations {
					got = append(got, o.ID)
				}
				if !slices.Equal(got, want) {
					t.Errorf("%+v: %q, want %q", q, got, want)
				}
			}
		}
	}
}
