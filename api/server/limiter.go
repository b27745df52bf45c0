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
	// DefaultPerSecond is how many calls per second a token may make: a panel that
	// lists 500 VPSes does so in five seconds, one by one.
	DefaultPerSecond = 100
	// A VPS may be changed this many times at once by tokens, and once more each
	// changeEvery: each change leaves messages, events and operations in the record.
	changeBurst = 120
	changeEvery = 10 * time.Second
	// What is remembered. More is only seen under attack; then the fullest budget
	// is forgotten first.
	budgetsKept = 8192
)

// limiter gives everybody a budget of so many per second.
type limiter struct {
	perSecond rate.Limit
	burst     int

	mu     sync.Mutex
	now    func() time.Time
	budget map[string]*rate.Limiter
}

func newLimiter(perSecond rate.Limit, burst int) *limiter {
	return &limiter{perSecond: perSecond, burst: burst, now: time.Now, budget: map[string]*rate.Limiter{}}
}

// wait is how long who must wait until something is left of the budget; 0: not at all.
func (l *limiter) wait(who string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.budget[who]
	if b == nil {
		return 0
	}
	left := b.TokensAt(l.now())
	if left >= 1 {
		return 0
	}
	return time.Duration(math.Ceil((1-left)/float64(l.perSecond)*1e3)) * time.Millisecond
}

// spend takes one from the budget, and returns how long who must wait if there was
// none; 0: there was.
func (l *limiter) spend(who string) time.Duration {
	l.mu.Lock()
	b := l.budget[who]
	if b == nil {
		// The map is bounded, or an attacker with many addresses would fill the memory.
		if len(l.budget) >= budgetsKept {
			l.forget()
		}
		b = rate.NewLimiter(l.perSecond, l.burst)
		l.budget[who] = b
	}
	ok := b.AllowN(l.now(), 1)
	l.mu.Unlock()
	if ok {
		return 0
	}
	return max(l.wait(who), time.Millisecond)
}

// forget drops everybody whose budget is whole again, or else the one who is
// nearest to it.
func (l *limiter) forget() {
	fullest, most := "", math.Inf(-1)
	for who, b := range l.budget {
		left := b.TokensAt(l.now())
		if left >= float64(l.burst) {
			delete(l.budget, who)
		} else if left > most {
			fullest, most = who, left
		}
	}
	if len(l.budget) >= budgetsKept {
		delete(l.budget, fullest)
	}
}

// network is the address, or for IPv6 its /64, since one host has all of that. All
// addresses of the host itself are one: every user there has them all.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return "loopback"
	}
	if ip.Is4() {
		return ip.String()
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return addr
	}
	return p.String()
}
