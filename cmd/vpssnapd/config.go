package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/pelletier/go-toml/v2"

	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/hostfile"
	"vpssnapd/hypervisor"
)

// config is the configuration file. packaging/config.toml documents every key. A key
// keeps its name and its unit for ever; a new one gets a default with which nothing
// changes on update.
type config struct {
	StateDir      string     `toml:"state_dir"`
	Socket        string     `toml:"socket"`
	Listen        string     `toml:"listen"`
	OperatorGroup string     `toml:"operator_group"`
	LogLevel      slog.Level `toml:"log_level"`
	// TrustedProxies may say for whom they ask (X-Forwarded-For).
	TrustedProxies []netip.Prefix `toml:"trusted_proxies"`
	CallsPerSecond int            `toml:"calls_per_second"`
	TLS            tlsFiles       `toml:"tls"`
	Libvirt        struct {
		URI       string `toml:"uri"`
		ConfigDir string `toml:"config_dir"`
	} `toml:"libvirt"`
	Snapshot struct {
		Grace       duration `toml:"grace"`
		UndoKeep    duration `toml:"undo_keep"`
		FreezeLimit duration `toml:"freeze_limit"`
		AgentWait   duration `toml:"agent_wait"`
		MergeLimit  int      `toml:"merge_limit"`
		Headroom    size     `toml:"headroom"`
	} `toml:"snapshot"`
	Images struct {
		// Templates are the directories in which the files may lie that disks lie on.
		Templates []string `toml:"templates"`
	} `toml:"images"`
	Merge struct {
		Bandwidth    size     `toml:"bandwidth"`
		Weight       uint64   `toml:"weight"`
		StalledAfter duration `toml:"stalled_after"`
		Help         bool     `toml:"help"`
		LongestStop  duration `toml:"longest_stop"`
	} `toml:"merge"`
	Webhook struct {
		// Allow lists the addresses that webhooks may lead to although they are not public.
		Allow     []netip.Prefix `toml:"allow"`
		AllowHTTP bool           `toml:"allow_http"`
	} `toml:"webhook"`
	Download struct {
		Rate   size `toml:"rate"`
		AtOnce int  `toml:"at_once"`
	} `toml:"download"`
	Offer struct {
		Name        string     `toml:"name"`
		Description string     `toml:"description"`
		Amount      int64      `toml:"amount"`
		Currency    string     `toml:"currency"`
		Period      vps.Period `toml:"period"`
		Conditions  []string   `toml:"conditions"`
	} `toml:"offer"`
	Mail      mailConfig `toml:"mail"`
	Retention retention  `toml:"retention"`
}

// retention is how long what is over stays in the record; 0: for ever.
type retention struct {
	Operations    duration `toml:"operations"`
	Snapshots     duration `toml:"snapshots"`
	OptionHistory duration `toml:"option_history"`
	Messages      duration `toml:"messages"`
	Events        duration `toml:"events"`
}

// duration is written as in "1h30m".
type duration time.Duration

// UnmarshalText takes Go's own form: "90d" is refused, and not guessed.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// size is written as in "10 GiB".
type size int64

// UnmarshalText takes bytes with a unit: "GiB" is 1024³ of them, "GB" is 1000³.
func (s *size) UnmarshalText(text []byte) error {
	v, err := humanize.ParseBytes(string(text))
	// It becomes an int64, with room to add to it.
	if err == nil && v > 1<<62 {
		err = errors.New("too large")
	}
	*s = size(v)
	return err
}

// defaults suit a host of which nobody has set anything; packaging/config.toml shows them,
// and a test compares both.
func defaults() config {
	var c config
	c.StateDir = "/var/lib/vpssnapd"
	c.Socket = "/run/vpssnapd/api.sock"
	c.OperatorGroup = "vpssnap"
	c.CallsPerSecond = server.DefaultPerSecond
	c.Libvirt.URI = "qemu:///system"
	c.Libvirt.ConfigDir = "/etc/libvirt/qemu"
	c.Snapshot.Grace = duration(7 * 24 * time.Hour)
	c.Snapshot.UndoKeep = duration(time.Hour)
	// FAULTS.md, row 29: no guest stays frozen longer.
	c.Snapshot.FreezeLimit = duration(10 * time.Second)
	c.Snapshot.AgentWait = duration(time.Minute)
	// Two merges at a time leave the disks to the guests.
	c.Snapshot.MergeLimit = 2
	c.Snapshot.Headroom = 5 << 30
	c.Merge.Weight = 20
	c.Merge.StalledAfter = duration(30 * time.Second)
	c.Merge.Help = true
	c.Merge.LongestStop = duration(2 * time.Second)
	c.Download.Rate = 50 << 20
	c.Download.AtOnce = 4
	c.Offer.Name = "Snapshot"
	c.Offer.Description = "One snapshot of the VPS: a quick way back before a risky change. It is no backup."
	c.Offer.Currency = "EUR"
	c.Offer.Period = vps.PeriodMonth
	c.Mail.TLS = mail.StartTLS
	c.Mail.RemindBefore = duration(72 * time.Hour)
	c.Retention.Operations = duration(365 * 24 * time.Hour)
	c.Retention.Snapshots = duration(365 * 24 * time.Hour)
	// Longer than the rest: bills are questioned late. Messages have no limit: customers
	// read them.
	c.Retention.OptionHistory = duration(3 * 365 * 24 * time.Hour)
	c.Retention.Events = duration(7 * 24 * time.Hour)
	return c
}

// readConfig reads the file over the defaults.
func readConfig(ctx context.Context, path string) (config, error) {
	text, err := hostfile.Read(ctx, path, hostfile.Trusted)
	if err != nil {
		return config{}, fmt.Errorf("cannot read the configuration: %w", err)
	}
	c, err := parseConfig(bytes.NewReader(text))
	if err != nil {
		return c, fmt.Errorf("cannot use the configuration %s: %w", path, err)
	}
	return c, nil
}

// parseConfig reads a configuration over the defaults. Unknown keys are errors.
func parseConfig(text io.Reader) (config, error) {
	c := defaults()
	// A misspelt key would silently leave the default.
	err := toml.NewDecoder(text).DisallowUnknownFields().Decode(&c)
	if err != nil {
		return c, withLines(err)
	}
	return c, c.check()
}

// withLines says where in the file the errors are, all unknown keys at once. The library
// names one error at a time, and an operator would start again and again.
func withLines(err error) error {
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var all []error
		for _, one := range unknown.Errors {
			line, _ := one.Position()
			all = append(all, fmt.Errorf("line %d: unknown key %q", line, strings.Join(one.Key(), ".")))
		}
		return errors.Join(all...)
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := wrong.Position()
		return fmt.Errorf("line %d: %w", line, err)
	}
	return err
}

// currency is the form that the API promises.
var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// check looks at nothing but the configuration itself: files and network are the start's
// business.
func (c config) check() error {
	for key, path := range map[string]string{"state_dir": c.StateDir, "socket": c.Socket, "libvirt.config_dir": c.Libvirt.ConfigDir} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s = %q is no absolute path", key, path)
		}
	}
	for _, dir := range c.Images.Templates {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("images.templates: %q is no absolute path", dir)
		}
	}
	switch {
	// The upper bounds are promises to guests, which no operator should break by a
	// typing error.
	case c.Snapshot.FreezeLimit <= 0 || time.Duration(c.Snapshot.FreezeLimit) > 10*time.Second:
		return errors.New("snapshot.freeze_limit must be above 0 and at most 10s")
	case c.Snapshot.Grace < 0 || c.Snapshot.UndoKeep < 0 || c.Snapshot.AgentWait < 0:
		return errors.New("durations of [snapshot] must not be negative")
	case c.Snapshot.MergeLimit < 1:
		return errors.New("snapshot.merge_limit must be 1 or more")
	case c.Merge.Weight < 1 || c.Merge.Weight > 10000:
		return errors.New("merge.weight must be 1 to 10000")
	case c.Merge.StalledAfter < duration(time.Second):
		return errors.New("merge.stalled_after must be 1s or more")
	case c.Merge.LongestStop < 0 || c.Merge.LongestStop > duration(10*time.Second):
		return errors.New("merge.longest_stop must not be negative, and at most 10s")
	case c.Download.Rate != 0 && c.Download.Rate < slowestDownload:
		return errors.New(`download.rate must be "64 KiB" or more, or "0"`)
	case c.Download.AtOnce < 0:
		return errors.New("download.at_once must not be negative")
	case c.Offer.Amount < 0 || !currency.MatchString(c.Offer.Currency):
		return errors.New("offer needs an amount of 0 or more in minor units and an ISO 4217 currency, as EUR")
	case c.Offer.Period != vps.PeriodMonth && c.Offer.Period != vps.PeriodYear && c.Offer.Period != vps.PeriodOnce:
		return errors.New(`offer.period must be "month", "year" or "once"`)
	}
	return errors.Join(c.Mail.check(), c.Retention.check(), c.checkListen())
}

// shortestRetention is a day: callers that follow an operation, or read events, have that
// time to come back.
const shortestRetention = duration(24 * time.Hour)

func (r retention) check() error {
	for _, one := range []struct {
		key string
		is  duration
	}{
		{"operations", r.Operations}, {"snapshots", r.Snapshots}, {"option_history", r.OptionHistory},
		{"messages", r.Messages}, {"events", r.Events},
	} {
		if one.is != 0 && one.is < shortestRetention {
			return fmt.Errorf(`retention.%s must be "24h" or more, or "0s" (for ever)`, one.key)
		}
	}
	return nil
}

func (r retention) store() store.Retention {
	return store.Retention{Operations: time.Duration(r.Operations), Snapshots: time.Duration(r.Snapshots),
		OptionHistory: time.Duration(r.OptionHistory), Messages: time.Duration(r.Messages), Events: time.Duration(r.Events)}
}

// slowestDownload is well above the speed at which who downloads is cut off.
const slowestDownload = 64 << 10

// checkListen keeps a port without TLS on loopback: tokens must not cross a network in the clear.
func (c config) checkListen() error {
	if c.CallsPerSecond < 1 || c.CallsPerSecond > mostCallsPerSecond {
		return fmt.Errorf("calls_per_second must be 1 to %d", mostCallsPerSecond)
	}
	if err := errors.Join(c.checkProxies(), c.TLS.check()); err != nil {
		return err
	}
	if c.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("listen = %q: %w", c.Listen, err)
	}
	// "localhost" is allowed as a name; any other could resolve to anything later.
	if ip := net.ParseIP(host); !c.TLS.on() && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf(
			"listen = %q is not a loopback address: it needs tls.cert and tls.key, or a TLS proxy in front of a loopback address",
			c.Listen,
		)
	}
	return nil
}

// checkProxies refuses to believe half the world: everybody there could say that he asks for
// somebody else, and nobody would be held to a limit. 10.0.0.0/8 and fc00::/7 are the largest
// networks that can be one's own.
func (c config) checkProxies() error {
	for _, p := range c.TrustedProxies {
		bits, fewest := p.Bits(), 7
		if p.Addr().Is4In6() {
			bits -= 96
		}
		if p.Addr().Unmap().Is4() {
			fewest = 8
		}
		if bits < fewest {
			return fmt.Errorf("trusted_proxies has %s: anybody there could pretend to be any address; name the proxies' own", p)
		}
	}
	return nil
}

// mostCallsPerSecond is no limit at all; it only keeps the arithmetic sound.
const mostCallsPerSecond = 1_000_000

// daemon is what counts from the start; what may change by a reload is in settings.
func (c config) daemon(host hypervisor.Host, logger *slog.Logger) daemon.Config {
	return daemon.Config{Host: host, StateDir: c.StateDir, Version: version, Logger: logger, Settings: c.settings(),
		Webhook: webhook.Config{Allow: c.Webhook.Allow, AllowHTTP: c.Webhook.AllowHTTP}, WebhookBody: server.WebhookBody}
}

// settings are what [snapshot], [images], [merge], [offer] and [retention] say, and when [mail] reminds.
func (c config) settings() daemon.Settings {
	return daemon.Settings{
		Offer: vps.Offer{
			// The id is part of the API; only name and price are for operators to
			// choose.
			ID: "snapshot", Name: c.Offer.Name, Description: c.Offer.Description, Conditions: c.Offer.Conditions,
			Price: vps.Price{Amount: c.Offer.Amount, Currency: c.Offer.Currency, Period: c.Offer.Period},
		},
		Snapshot: snapshot.Policy{
			UndoKeep:  time.Duration(c.Snapshot.UndoKeep),
			AgentWait: time.Duration(c.Snapshot.AgentWait),
		},
		Guest: guest.Policy{FreezeLimit: time.Duration(c.Snapshot.FreezeLimit)},
		Merge: merge.Policy{
			Limit: c.Snapshot.MergeLimit, Bandwidth: int64(c.Merge.Bandwidth), StalledAfter: time.Duration(c.Merge.StalledAfter),
			Help: c.Merge.Help, LongestStop: time.Duration(c.Merge.LongestStop),
		},
		Images:    image.Policy{Templates: c.Images.Templates},
		Space:     space.Policy{Headroom: int64(c.Snapshot.Headroom)},
		Download:  download.Policy{Rate: int64(c.Download.Rate), AtOnce: c.Download.AtOnce},
		Notify:    notify.Policy{Grace: time.Duration(c.Snapshot.Grace), RemindBefore: time.Duration(c.Mail.RemindBefore)},
		Retention: c.Retention.store(),
	}
}
