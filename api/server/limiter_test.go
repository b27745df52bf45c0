package server

import (
	"fmt"
	"testing"
)

func TestFailuresAreCountedPerNetwork(t *testing.T) {
	l := newLimiter()
	for range failureBurst {
		if l.wait("2001:db8::1") != 0 {
			t.Fatal("limited before the burst is used up")
		}
		l.failed("2001:db8::1")
	}
	for addr, limited := range map[string]bool{
		"2001:db8::1": true, "2001:db8::ffff": true, "2001:db8:0:1::1": false, "192.0.2.1": false, "::ffff:192.0.2.1": false,
	} {
		if (l.wait(addr) > 0) != limited {
			t.Errorf("%s must wait %s", addr, l.wait(addr))
		}
	}
}

func TestLimiterForgets(t *testing.T) {
	l := newLimiter()
	for range failureBurst {
		l.failed("192.0.2.1")
	}
	for i := range 2 * addressesKept {
		l.failed(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if n := len(l.budget); n > addressesKept {
		t.Errorf("%d addresses are remembered", n)
	}
	if l.wait("192.0.2.1") == 0 && l.budget["192.0.2.1"] == nil {
		t.Error("a guesser was forgotten among harmless addresses")
	}
}
