package server

import (
	"fmt"
	"testing"
)

func TestFailuresAreCountedPerNetwork(t *testing.T) {
	l := newLimiter(failuresPerSecond, failureBurst)
	for range failureBurst {
		if l.wait(network("2001:db8::1")) != 0 {
			t.Fatal("limited before the burst is used up")
		}
		l.spend(network("2001:db8::1"))
	}
	for addr, limited := range map[string]bool{
		"2001:db8::1": true, "2001:db8::ffff": true, "2001:db8:0:1::1": false, "192.0.2.1": false, "::ffff:192.0.2.1": false,
	} {
		if (l.wait(network(addr)) > 0) != limited {
			t.Errorf("%s must wait %s", addr, l.wait(network(addr)))
		}
	}
}

func TestLimiterForgets(t *testing.T) {
	l := newLimiter(failuresPerSecond, failureBurst)
	for range failureBurst {
		l.spend("192.0.2.1")
	}
	for i := range 2 * budgetsKept {
		l.spend(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if n := len(l.budget); n > budgetsKept {
		t.Errorf("%d addresses are remembered", n)
	}
	if l.wait("192.0.2.1") == 0 && l.budget["192.0.2.1"] == nil {
		t.Error("a guesser was forgotten among harmless addresses")
	}
}
