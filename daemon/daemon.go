// Package daemon is what the product does: it takes, restores and deletes the
// one snapshot of a VPS, keeps the option that pays for it, and recovers.
//
// Read take.go for how an operation is built: a request that checks and
// records, and a list of steps with their undo.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/hypervisor"
)

// databaseFile is the record's name in the state directory.
const databaseFile = "vpssnapd.db"

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
	WebhookBody func(e vps.Event, host string) ([]byte, error)
	// Senders carry what else is to be told outside, by kind. What was recorded for
	// one that is missing waits for it, and is given up after a day.
	Senders map[vps.DeliveryKind]Sender
	// Hold delays a shutdown of the host until release is called; nil: nothing does.
	// It may keep the caller waiting when the host shuts down already.
	Hold   func(ctx context.Context, why string) (release func())
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// Daemon is the running product on one host.
type Daemon struct {
	Config
	store     *store.Store
	runner    *operation.Runner
	inventory *inventory
	followers *followers
	merges    *slots
	comparing *semaphore.Weighted // see comparedAtOnce
	lock      *os.File
	stop      context.CancelFunc
	ctx       context.Context
	wg        sync.WaitGroup
	locks     keyedMutex
	names     *names
	headers   headers
	guests    keyedMutex // see withGuest
	suspended sync.Map   // by id, the guests that this process has suspended
	pivoting  sync.Map   // by id, the pivotMark of a pivot that is under way
	// deadlines is told that an option or an undo got another end.
	deadlines   chan struct{}
	expiryTries lastTries
	apart       apart
	fillings    atomic.Pointer[map[uint64]*filling] // as last measured
	drift       *driftWatch
	events      *eventFeed
	metrics     *metrics
	settings    atomic.Pointer[Settings] // those in force
	used        chan string              // ids of tokens whose use is to be noted
	poster      *webhook.Poster
	held        sync.Map // by outboxKey, until when a target wants to be left alone
	downloads   *readers
	sums        chan vps.Download // images to sum up
}

// Open opens the record, recovers what an earlier process left behind, and
// begins to work. It waits for libvirt up to connectWait; when libvirt does not
// come, recovery happens at the moment that it does.
func Open(ctx context.Context, c Config) (*Daemon, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.WebhookBody == nil {
		c.WebhookBody = func(vps.Event, string) ([]byte, error) { return nil, errors.New("there is no form for webhooks") }
	}
	c.Webhook.Version = c.Version
	c.Host = withFailpoints(c.Host)
	lock, err := lockState(c.StateDir)
	if err != nil {
		return nil, err
	}
	db, err := openStore(ctx, c.StateDir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	d, err := assemble(ctx, c, db, lock)
	if err != nil {
		return nil, errors.Join(err, db.Close(), lock.Close())
	}
	d.background(d.followEvents)
	d.background(d.watchStore)
	d.background(d.watchHost)
	if err := d.recover(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.background(d.watchDeadlines)
	d.background(d.watchSpace)
	d.background(d.watchDrift)
	d.background(d.noteUses)
	d.background(d.sumImages)
	d.background(d.runOutbox)
	return d, nil
}

// assemble puts the parts together; nothing works yet.
func assemble(ctx context.Context, c Config, db *store.Store, lock *os.File) (*Daemon, error) {
	known, err := db.KnownVPSes(ctx)
	if err != nil {
		return nil, err
	}
	last, err := db.LastEvent(ctx)
	if err != nil {
		return nil, err
	}
	d := &Daemon{Config: c, store: db, events: openFeed(last), lock: lock, merges: newSlots(c.Settings.MergeLimit), comparing: semaphore.NewWeighted(comparedAtOnce), followers: newFollowers(), names: newNames(known),
		deadlines: make(chan struct{}, 1), drift: newDriftWatch(), used: make(chan string, 64), poster: webhook.New(c.Webhook),
		downloads: newReaders(), sums: make(chan vps.Download, 16)}
	d.settings.Store(&c.Settings)
	d.metrics = newMetrics(d)
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.inventory = newInventory(c.Host, c.Logger, d.saw)
	d.runner = operation.New(operation.Config{
		Store: db, Plan: d.plan, Changed: d.journalOperation, Unavailable: unavailable, Explain: explain,
		Failed: d.letRunMeanwhile, Ended: d.operationEnded, Over: d.operationOver, Hold: d.hold(), Logger: c.Logger, Now: d.now,
	})
	return d, nil
}

// ErrUnusable says that the database cannot be worked with until an operator has
// done something about it: another start will not help.
var ErrUnusable = errors.New("the database cannot be used")

func openStore(ctx context.Context, stateDir string) (*store.Store, error) {
	db, err := store.Open(ctx, filepath.Join(stateDir, databaseFile))
	if errors.Is(err, store.ErrDamaged) {
		err = fmt.Errorf("%w; nothing was changed. vpssnapd rebuild -config FILE keeps it aside and makes a new one from what the host's VPSes say", err)
	}
	if errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrNewer) {
		err = fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	return db, err
}

// Close stops working and leaves every operation resumable. Guests run on.
func (d *Daemon) Close() error {
	d.stop()
	d.downloads.cut(func(*reading) bool { return true }, "the daemon stops")
	d.runner.Close()
	d.wg.Wait()
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

// plan names the steps of every kind of operation.
func (d *Daemon) plan(op vps.Operation) (operation.Plan, error) {
	switch op.Kind {
	case vps.KindTake:
		return d.takePlan(op)
	case vps.KindRestore, vps.KindUndoRestore:
		return d.restorePlan(op), nil
	case vps.KindDelete:
		return d.deletePlan(op)
	}
	return nil, fmt.Errorf("operations of kind %q are unknown to this version", op.Kind)
}

// hold keeps the host up while an operation is where it should not be cut.
func (d *Daemon) hold() func(context.Context, vps.Operation) func() {
	if d.Hold == nil {
		return nil
	}
	return func(ctx context.Context, op vps.Operation) func() {
		return d.Hold(ctx, fmt.Sprintf("%s of %s", op.Kind, op.VPSName))
	}
}

// operationEnded gives back what a run held.
func (d *Daemon) operationEnded(op vps.Operation) {
	d.merges.release(op.ID)
	d.hasStarted(op.VPS)
	d.pivoting.Delete(op.VPS)
	d.count(op)
	d.letGo(d.ctx, op.VPS)
}

// operationOver follows a run up, beside the next operation of the VPS.
func (d *Daemon) operationOver(op vps.Operation) {
	d.definitionChanged(d.ctx, op.VPS) // by somebody, while it was left to the operation
	d.deadlinesChanged()
}

func (d *Daemon) background(work func(context.Context)) {
	d.wg.Go(func() {
		work(d.ctx)
	})
}

// now is the time as it is stored: UTC, whole microseconds.
func (d *Daemon) now() time.Time { return d.Now().UTC().Truncate(time.Microsecond) }

// Ready is nil when the database and libvirt answer.
func (d *Daemon) Ready(ctx context.Context) error {
	if err := d.store.Ping(ctx); err != nil {
		return vps.Errorf(vps.CodeInternal, "the daemon's database does not answer").Because(err)
	}
	ctx, cancel := context.WithTimeout(ctx, showWithin)
	defer cancel()
	if _, err := d.Config.Host.Info(ctx); err != nil {
		return vps.Errorf(vps.CodeHypervisorUnavailable, "libvirt does not answer").Because(err)
	}
	return nil
}
