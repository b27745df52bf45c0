package systemd

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"vpssnapd/daemon/vps"
)

// statusEvery is how often systemd is told what is being done, without a watchdog.
const statusEvery = 5 * time.Second

// Supervised is what systemd watches.
type Supervised interface {
	// Health is nil unless something hangs that only another process can cure. It
	// returns when ctx ends.
	Health(ctx context.Context) error
	// Status says in one line what is being done.
	Status(ctx context.Context) string
}

// Supervise tells systemd what s does, and feeds the watchdog of the unit while s is
// healthy, until ctx ends.
func Supervise(ctx context.Context, s Supervised, logger *slog.Logger) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		logger.Error("the watchdog is not fed", "error", err)
	}
	every := statusEvery
	if limit > 0 {
		// Four looks per limit, so that one that is late costs nothing.
		every = min(every, limit/4)
	}
	look := time.NewTicker(every)
	defer look.Stop()
	for said := ""; ; {
		said = tell(ctx, s, limit, said, logger)
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// tell looks once; said is the status that systemd was told last.
func tell(ctx context.Context, s Supervised, limit time.Duration, said string, logger *slog.Logger) string {
	within := statusEvery
	if limit > 0 {
		within = limit / 2 // the next look still comes in time
	}
	looking, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	// No ping while something hangs: systemd then kills and starts us, which operations
	// survive.
	if err := s.Health(looking); err != nil {
		if ctx.Err() == nil {
			logger.Error("the daemon hangs; systemd's watchdog will start it again", vps.LogEvent(vps.LogHung), "error", err)
		}
		return said
	}
	if limit > 0 {
		notify(daemon.SdNotifyWatchdog)
	}
	now := s.Status(looking)
	if now != said {
		notify(status(now))
	}
	return now
}

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
