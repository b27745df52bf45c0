package libvirt

import (
	"context"
	"errors"
	"testing"

	"vpssnapd/hypervisor"
)

// A queue is told from a call that hangs: what merely had to wait says nothing of the VPS.
func TestAQueueIsNoCallThatHangs(t *testing.T) {
	at := gate{which: ordinary, id: "web1"}
	for what, others := range map[string]int{"the same call all the time": 0, "others came through": 3} {
		g := &gates{}
		if err := g.pass(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		waiting := &countedContext{Context: ctx, asked: make(chan struct{})}
		go func() { ended <- g.pass(waiting, at) }()
		for range others {
			<-waiting.asked
			g.mu.Lock()
			before := g.busy[at]
			g.busy[at] = make(chan struct{}) // the next one came first
			g.mu.Unlock()
			close(before)
		}
		<-waiting.asked
		cancel()
		if err := <-ended; errors.Is(err, hypervisor.ErrQueued) != (others > 0) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// countedContext tells each time that somebody begins to wait for its end.
type countedContext struct {
	context.Context
	asked chan struct{}
}

func (c *countedContext) Done() <-chan struct{} {
	c.asked <- struct{}{}
	return c.Context.Done()
}
