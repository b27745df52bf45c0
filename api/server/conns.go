package server

import (
	"net"
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
)

// connLimit closes what comes beyond the limits at once: a connection that waited
// for its turn would be no better off.
type connLimit struct {
	net.Listener
	proxies []netip.Prefix

	mu  sync.Mutex
	all int
	of  map[string]int
}

// limitConns bounds the connections of l. A proxy's are bounded as a whole only.
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
		who := l.owner(c)
		if l.enter(who) {
			return &countedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(who) })}, nil
		}
		c.Close()
	}
}

// owner is whom a connection counts for; "" for nobody in particular.
func (l *connLimit) owner(c net.Conn) string {
	if c.RemoteAddr().Network() == "unix" {
		return peerOf(c).owner()
	}
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	ip := at.Addr().Unmap()
	// Behind a proxy are many callers; limitOrigin tells them apart by what it says.
	if slices.ContainsFunc(l.proxies, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return ""
	}
	return network(ip.String())
}

// enter counts a connection in and reports whether there is room for it.
func (l *connLimit) enter(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= connsAtMost || who != "" && l.of[who] >= connsOfOne {
		return false
	}
	l.all++
	l.of[who]++
	return true
}

// leave counts it out; an owner without connections is forgotten.
func (l *connLimit) leave(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.of[who]--; l.of[who] == 0 {
		delete(l.of, who)
	}
}

// countedConn is a connection that gives its place back.
type countedConn struct {
	net.Conn
	leave func()
}

// Close is net.Conn's. It may be called twice; the place is given back once.
func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
