package server

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// An address may show this many wrong tokens at once ...
	failureBurst = 20
	// ... and this many more per second.
	failuresPerSecond = 5
	// Addresses remembered. More are only seen under attack; then the fullest
	// budget is forgotten first.
	addressesKept = 8192
)

// limiter counts failed authentications per address.
type limiter struct {
	mu     sync.Mutex
	budget map[string]*rate.Limiter
}

func newLimiter() *limiter { return &limiter{budget: map[string]*rate.Limiter{}} }

// wait is how long addr must wait before its tokens are looked at again; 0: not at all.
func (l *limiter) wait(addr string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.budget[network(addr)]
	if b == nil {
		return 0
	}
	left := b.Tokens()
	if left >= 1 {
		return 0
	}
	return time.Duration(math.Ceil((1-left)/failuresPerSecond)) * time.Second
}

func (l *limiter) failed(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := network(addr)
	b := l.budget[key]
	if b == nil {
		if len(l.budget) >= addressesKept {
			l.forget()
		}
		b = rate.NewLimiter(failuresPerSecond, failureBurst)
		l.budget[key] = b
	}
	b.Allow()
}

// forget drops every address whose budget is whole again, or else the one that
// is nearest to it.
func (l *limiter) forget() {
	fullest, most := "", -1.0
	for key, b := range l.budget {
		left := b.Tokens()
		if left >= failureBurst {
			delete(l.budget, key)
		} else if left > most {
			fullest, most = key, left
		}
	}
	if len(l.budget) >= addressesKept {
		delete(l.budget, fullest)
	}
}

// network is the address, or for IPv6 its /64, since one host has all of that.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return addr
	}
	return p.String()
}
