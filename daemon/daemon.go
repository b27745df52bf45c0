// Package daemon wires the product together: it opens the record, makes each capability
// of what it needs, lets an earlier process's work be taken up, and stops it all again.
// What the product does is in the packages below, one for each capability:
//
//	option, access, hook, overview   who may what, and what is shown
//	doctor, notify, webhook          what is compared, and who is told
//	vouch                            an operator's word for files that were moved
//	adoption, snapshot, download     records from the host; the snapshot; its image
//	merge, integrity, guest          what an operation is made of
//	operation, journal, space        long work, what happened, room
//	image, inventory, fault, store   files, domains, errors, the record
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/access"
	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/doctor"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/journal"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/option"
	"vpssnapd/daemon/overview"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vouch"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// Config is what a Daemon needs. Every field must be set, unless it says otherwise.
type Config struct {
	Host hypervisor.Host
	// StateDir holds the database and the lock; it exists.
	StateDir string
	Version  string
	// Settings are those of the start.
	Settings Settings
	// Webhook says where webhooks may lead to, and WebhookBody makes what is sent to
	// them; nil: it cannot be made.
	Webhook     webhook.Config
	WebhookBody webhook.Body
	// Senders carry what else is to be told outside, by kind. What was recorded for
	// one that is missing waits for it, and is given up after a day.
	Senders map[vps.DeliveryKind]notify.Sender
	// Hold delays a shutdown of the host until release is called; nil: nothing does.
	// It may keep the caller waiting when the host shuts down already.
	Hold func(ctx context.Context, why string) (release func())
	// Judge returns what is wrong with the files that the daemon was configured by and
	// works on, as hostfile tells it; nil: none are judged.
	Judge func(ctx context.Context) []error
	// Kinds are kinds of operations beside the daemon's own; nil: none.
	Kinds  []operation.Kind
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// Daemon is the running product on one host. Each field is a capability.
type Daemon struct {
	Overview   *overview.Overview
	Metrics    *overview.Metrics
	Options    *option.Options
	Tokens     *access.Tokens
	Doctor     *doctor.Doctor
	Webhooks   *webhook.Webhooks
	Snapshots  *snapshot.Snapshots
	Vouchers   *vouch.Vouchers
	Downloads  *download.Downloads
	Operations *operation.Operations
	Journal    *journal.Journal
	// Answers knows what calls were answered that their clients may repeat.
	Answers *store.Store

	logger    *slog.Logger
	settings  atomic.Pointer[Settings] // those in force
	lock      *os.File
	store     *store.Store
	group     *work.Group
	inventory *inventory.Inventory
	space     *space.Space
	guests    *guest.Guests
	merger    *merge.Merger
	adopter   *adoption.Adopter
	outbox    *notify.Outbox
}

// Open opens the record, recovers what an earlier process left behind, and
// begins to work. It waits for libvirt up to connectWait; when libvirt does not
// come, recovery happens at the moment that it does.
func Open(ctx context.Context, c Config) (*Daemon, error) {
	lock, err := lockState(c.StateDir)
	if err != nil {
		return nil, err
	}
	db, err := openStore(ctx, c.StateDir, c.Now)
	if err != nil {
		lock.Close()
		return nil, err
	}
	d, err := assemble(ctx, c, db, lock)
	if err != nil {
		return nil, errors.Join(err, db.Close(), lock.Close())
	}
	d.begin(d.Journal.Run, d.Journal.WatchStore, d.inventory.Watch)
	if err := d.recover(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.begin(d.Options.Watch, d.watchHost, d.prune, d.Doctor.Watch, d.inventory.RecordNames, d.Tokens.NoteUses,
		d.Downloads.SumImages, d.outbox.Run)
	return d, nil
}

// begin lets work go on until the daemon stops.
func (d *Daemon) begin(all ...func(context.Context)) {
	for _, work := range all {
		d.group.Go(work)
	}
}

// ErrUnusable means that the database cannot be worked with until an operator has
// done something about it: another start will not help.
var ErrUnusable = errors.New("the database cannot be used")

func openStore(ctx context.Context, stateDir string, now func() time.Time) (*store.Store, error) {
	db, err := store.Open(ctx, filepath.Join(stateDir, store.FileName), now)
	if errors.Is(err, store.ErrDamaged) {
		err = fmt.Errorf(
			"%w; nothing was changed. vpssnapd rebuild -config FILE keeps it aside and makes a new one from what the "+
				"host's VPSes say",
			err,
		)
	}
	if errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrNewer) {
		err = fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return db, err
}

// Close stops working and leaves every operation resumable. Guests run on.
func (d *Daemon) Close() error {
	d.group.Stop()
	d.Downloads.Close()
	d.Operations.Close()
	d.group.Wait()
	return errors.Join(d.store.Close(), d.lock.Close())
}

// lockWait is how long the lock of a predecessor may outlive it: a child that it
// had just forked when it was killed holds all its files until it executes (seen
// in the kill campaign on a busy machine).
const lockWait = 2 * time.Second

// lockState makes sure that one daemon only works on a state directory.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	for until := time.Now().Add(lockWait); ; time.Sleep(20 * time.Millisecond) {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return f, nil
		}
		if time.Now().After(until) {
			f.Close()
			return nil, fmt.Errorf("another vpssnapd works on %s: stop it first", dir)
		}
	}
}
