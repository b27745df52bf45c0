package server_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
)

// together makes all these requests at the same time, and counts the answers by status.
func (s *site) together(requests ...*http.Request) map[int]int {
	s.t.Helper()
	statuses := make([]int, len(requests))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, r := range requests {
		wg.Go(func() {
			<-begin
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			if resp, err := transport.RoundTrip(r); err == nil {
				statuses[i] = resp.StatusCode
				resp.Body.Close()
			}
		})
	}
	close(begin)
	wg.Wait()
	count := map[int]int{}
	for _, status := range statuses {
		count[status]++
	}
	return count
}

func TestHundredTakesAtOnce(t *testing.T) {
	w := newWholeSite(t)
	var takes []*http.Request
	for range 100 {
		takes = append(takes, w.request(w.panel, "POST", "/v1/vps/web1/snapshot", ""))
	}
	if count := w.together(takes...); count[202] != 1 || count[409] != 99 {
		t.Errorf("a hundred takes at once are answered with %v", count)
	}
	if n := w.operations(); n != 1 {
		t.Errorf("there are %d operations", n)
	}
}

func TestDeleteAgainstRestore(t *testing.T) {
	w := newWholeSite(t)
	op := w.ended(w.call(w.panel, "POST", "/v1/vps/web1/snapshot", ""))
	goOn := make(chan struct{})
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "StartMerge.before" || at == "Exchange.before" { // neither ends before the other is asked for
			<-goOn
		}
		return nil
	})
	count := w.together(w.request(w.panel, "DELETE", "/v1/vps/web1/snapshot", ""),
		w.request(w.panel, "POST", "/v1/vps/web1/snapshot/restore", `{"confirm":"`+op.SnapshotID+`"}`))
	close(goOn)
	if count[202] != 1 || count[409]+count[404]+count[422] != 1 {
		t.Errorf("a delete and a restore at once are answered with %v", count)
	}
}
