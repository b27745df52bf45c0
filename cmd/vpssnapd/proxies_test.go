package main

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
)

// Whole worlds are no trusted proxies, however they are written.
func TestTrustedProxiesAreNoWorld(t *testing.T) {
	for prefix, refused := range map[string]bool{
		"0.0.0.0/0": true, "::/0": true, "0.0.0.0/1": true, "128.0.0.0/1": true, "::ffff:0:0/96": true, "2000::/3": true,
		"0.0.0.0/7": true, "1.2.3.4/0": true, "10.0.0.0/8": false, "127.0.0.1/32": false, "fc00::/7": false,
		"192.0.2.0/24": false, "2001:db8::/32": false,
	} {
		_, err := parseConfig(strings.NewReader(fmt.Sprintf("trusted_proxies = [%q]\n", prefix)))
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "trusted_proxies") {
			t.Errorf("%s: %v", prefix, err)
		}
	}
}

// TLS 1.2 is spoken in no suite with CBC or without forward secrecy.
func TestSuitesOfTLS12(t *testing.T) {
	for _, id := range suites {
		if name := tls.CipherSuiteName(id); strings.Contains(name, "CBC") || !strings.Contains(name, "ECDHE") {
			t.Errorf("%s is offered", name)
		}
	}
}
