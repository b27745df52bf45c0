package webhook

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// notPublic are the addresses that are no host on the internet, or are another one
// in disguise: IANA's special-purpose registries.
var notPublic = prefixes(
	"0.0.0.0/8",       // this network, and 0.0.0.0 itself
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // carrier-grade NAT
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, as clouds' metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocols
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // relays to 6to4
	"192.168.0.0/16",  // private
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, and broadcast
	"2001::/23",       // protocols, as Teredo, which holds an IPv4 address
	"2001:db8::/32",   // documentation
	"2002::/16",       // 6to4, which holds an IPv4 address
	"3fff::/20",       // documentation
)

// unicast6 is all of IPv6 that is given out to hosts on the internet. Outside of it
// are ::, ::1, IPv4-mapped, NAT64, unique local, link-local and multicast addresses.
var unicast6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// permitted reports, by an error, whether an address is none to send to: a webhook must
// not reach what only this host can, as a cloud's metadata service. What the
// configuration allows is allowed.
func (p *Poster) permitted(addr netip.Addr) error {
	// ::ffff:10.0.0.1 is 10.0.0.1 to the kernel.
	addr = addr.Unmap()
	in := func(n netip.Prefix) bool { return n.Contains(addr.WithZone("")) }
	switch {
	case slices.ContainsFunc(p.allow, in):
		return nil
	case addr.Is6() && !in(unicast6), slices.ContainsFunc(notPublic, in):
		return refused{addr}
	}
	return nil
}

// refused is the error of an address that is none to send to.
type refused struct{ addr netip.Addr }

func (r refused) Error() string {
	return fmt.Sprintf("%s is not a public address, and webhook.allow in the configuration does not name it", r.addr)
}

// control sees every address at the moment that it is connected to: what a name
// was resolved to before, by whomever, does not matter.
func (p *Poster) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address: %w", address, err)
	}
	return p.permitted(at.Addr())
}
