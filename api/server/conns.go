package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
)

const (
	// connsAtMost bounds the connections of a listener: each costs a file and some memory.
	connsAtMost = 2048
	// connsOfOne is how many of them one address, or one user of the host, may have,
	// so that nobody can take them all. It is more than a panel with a hundred
	// listeners to events needs.
	connsOfOne = 256
	// connsOfProxies is how many of them the trusted proxies may have together: anybody
	// on a proxy's host has its address.
	connsOfProxies = connsAtMost * 3 / 4
)

// ownerProxies counts the connections of all trusted proxies.
const ownerProxies = "proxies"

// connLimit closes what comes beyond the limits at once: a connection that waited
// for its turn would be no better off. Before that it gives up one that nobody proved to be
// anybody on, and that has nothing to do: so who may call finds a place.
type connLimit struct {
	net.Listener
	proxies []netip.Prefix

	mu  sync.Mutex
	all int
	of  map[string]int
	// spare are the connections that may be given up, those that are idle longest first.
	spare []*countedConn
}

// limitConns bounds the connections of l.
func limitConns(l net.Listener, proxies []netip.Prefix) net.Listener {
	return &connLimit{Listener: l, proxies: proxies, of: map[string]int{}}
}

// Accept is net.Listener's. Beyond the limits a connection is closed at once and the next one taken: nobody waits
// behind it.
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		counted := &countedConn{Conn: c, limit: l, owner: l.owner(c)}
		if l.enter(counted) {
			return counted, nil
		}
		c.Close()
	}
}

// owner is whom a connection counts for; "" for root, who is never kept out of the host's
// own socket.
func (l *connLimit) owner(c net.Conn) string {
	if c.RemoteAddr().Network() == "unix" {
		p := peerOf(c)
		if p.root() {
			return ""
		}
		return p.owner()
	}
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	ip := at.Addr().Unmap()
	// Behind a proxy are many callers; limitOrigin tells them apart by what it says.
	if slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return ownerProxies
	}
	return network(ip.String())
}

// enter counts a connection in, if need be in the place of another.
func (l *connLimit) enter(c *countedConn) bool {
	if c.owner == "" {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	most := connsOfOne
	if c.owner == ownerProxies {
		most = connsOfProxies
	}
	switch {
	case l.of[c.owner] >= most:
		if !l.giveUp(func(other *countedConn) bool { return other.owner == c.owner }) {
			return false
		}
	case l.all >= connsAtMost:
		if !l.giveUp(func(*countedConn) bool { return true }) {
			return false
		}
	}
	l.all++
	l.of[c.owner]++
	return true
}

// giveUp closes the spare connection that has been idle longest, of those that may go.
func (l *connLimit) giveUp(may func(*countedConn) bool) bool {
	i := slices.IndexFunc(l.spare, may)
	if i < 0 {
		return false
	}
	c := l.spare[i]
	l.leaveLocked(c)
	c.Conn.Close() // the server then notices that it is gone
	return true
}

// leaveLocked gives the place of a connection back, once.
func (l *connLimit) leaveLocked(c *countedConn) {
	if c.left || c.owner == "" {
		return
	}
	c.left = true
	l.all--
	if l.of[c.owner]--; l.of[c.owner] == 0 {
		delete(l.of, c.owner)
	}
	l.spare = slices.DeleteFunc(l.spare, func(other *countedConn) bool { return other == c })
}

// countedConn is a connection that gives its place back.
type countedConn struct {
	net.Conn
	limit *connLimit
	owner string

	// Under the limit's lock:
	left   bool // its place was given back
	proven bool // somebody who may call has called on it
}

// Close is net.Conn's. It may be called twice; the place is given back once.
func (c *countedConn) Close() error {
	c.limit.mu.Lock()
	c.limit.leaveLocked(c)
	c.limit.mu.Unlock()
	return c.Conn.Close()
}

// prove notes that who has the connection may call.
func (c *countedConn) prove() {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	c.proven = true
}

// note is told what becomes of the connection.
func (c *countedConn) note(state http.ConnState) {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	c.limit.spare = slices.DeleteFunc(c.limit.spare, func(other *countedConn) bool { return other == c })
	if state == http.StateIdle && !c.proven && !c.left && c.owner != "" {
		c.limit.spare = append(c.limit.spare, c)
	}
}

// countedOf is the counted connection below one of a server; nil when there is none.
func countedOf(c net.Conn) *countedConn {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	counted, _ := c.(*countedConn)
	return counted
}

type connKey struct{}

// withConn is the ConnContext of the TCP listener.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, countedOf(c))
}

// proveConn notes that the connection of a request belongs to somebody who may call.
func proveConn(ctx context.Context) {
	if c, _ := ctx.Value(connKey{}).(*countedConn); c != nil {
		c.prove()
	}
}
