package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pelletier/go-toml/v2"
)

// How the test writes what the daemon only reads.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
func (s size) MarshalText() ([]byte, error)     { return fmt.Appendf(nil, "%d B", int64(s)), nil }

// FuzzConfig: no file makes us stumble, and what is accepted keeps the promises
// that the rest relies on and is the same when it is written and read again.
func FuzzConfig(f *testing.F) {
	f.Add("")
	f.Add("listen = '0.0.0.0:1'\n[tls]\ncert = '/c'\nkey = '/k'\nclient_ca = '/a'\n")
	f.Add("trusted_proxies = ['127.0.0.1/32', '2001:db8::/48']\ncalls_per_second = 1\n")
	f.Add(`state_dir = "/srv/a"` + "\n" + `listen = "[::1]:1"` + "\nlog_level = \"debug+3\"\n")
	f.Add(
		"[libvirt]\nuri = 'test:///default'\n[snapshot]\ngrace = '0s'\nundo_keep = '1h30m'\nfreeze_limit = '10s'\nmerge_limit = 1\nheadroom = '1.5 TB'\n",
	)
	f.Add("[offer]\nname = 'S'\namount = 299\ncurrency = 'CHF'\nperiod = 'once'\nconditions = ['a', \"b\\u0000\"]\n")
	f.Add("snapshot.headroom = '9 EiB'\nsnapshot.freeze_limit = '-1ns'\n")
	f.Add("[retention]\noperations = '24h'\nsnapshots = '0s'\nmessages = '17520h'\n")
	f.Add("[webhook]\nallow = ['10.20.0.0/16', 'fd00::/8']\nallow_http = true\n")
	f.Add("[snapshot]\ngrace = 5\n[[offer]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		keepsPromises(t, c)
		written, err := toml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseConfig(strings.NewReader(string(written)))
		if err != nil {
			t.Fatalf("written again it is refused: %v\n%s", err, written)
		}
		if diff := cmp.Diff(c, again, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

func keepsPromises(t *testing.T, c config) {
	t.Helper()
	d := c.settings()
	if !filepath.IsAbs(c.StateDir) || !filepath.IsAbs(c.Socket) || !filepath.IsAbs(c.Libvirt.ConfigDir) {
		t.Errorf("paths: %+v", c)
	}
	if d.Guest.FreezeLimit <= 0 || d.Guest.FreezeLimit > 10*time.Second || d.Notify.Grace < 0 || d.Snapshot.UndoKeep < 0 ||
		d.Snapshot.AgentWait < 0 ||
		d.Merge.Limit < 1 ||
		d.Space.Headroom < 0 {
		t.Errorf("limits: %+v", d)
	}
	if d.Offer.Price.Amount < 0 || !currency.MatchString(d.Offer.Price.Currency) {
		t.Errorf("the offer, which goes to order systems: %+v", d.Offer)
	}
	for _, keep := range []time.Duration{d.Retention.Operations, d.Retention.Snapshots, d.Retention.OptionHistory, d.Retention.Messages, d.Retention.Events} {
		if keep < 0 || keep > 0 && keep < 24*time.Hour {
			t.Errorf("what has just ended is pruned: %+v", d.Retention)
		}
	}
	if c.Listen == "" {
		return
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); err != nil || c.TLS.Key == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		t.Errorf("listens on %q without TLS", c.Listen)
	}
}

// TestRetention: 0 is for ever, and nothing is pruned before anybody could see it.
func TestRetention(t *testing.T) {
	for text, says := range map[string]string{
		"operations = '24h'\nsnapshots = '0s'\noption_history = '9000h'\nmessages = '0s'\nevents = '48h'": "",
		"operations = '23h'":      "retention.operations",
		"snapshots = '-24h'":      "retention.snapshots",
		"option_history = '1ns'":  "retention.option_history",
		"messages = '1h'":         "retention.messages",
		"events = '-1ns'":         "retention.events",
		"events = 'a long while'": "line 2",
	} {
		c, err := parseConfig(strings.NewReader("[retention]\n" + text))
		if says == "" &&
			(err != nil || c.settings().Retention.Operations != 24*time.Hour || c.settings().Retention.Snapshots != 0) {
			t.Errorf("%q: %+v, %v", text, c.settings().Retention, err)
		}
		if says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
