package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// world is a fake host with a daemon on it, both of which can die and come back.
type world struct {
	t        *testing.T
	hostDir  string
	stateDir string
	host     *fake.Host
	daemon   *daemon.Daemon
	log      *daemontest.Buffer
	config   func(*daemon.Config)

	mu    sync.Mutex
	clock time.Time // zero: the real one
}

var operator = vps.Actor{Name: "test", Way: vps.WayOperator}

func newWorld(t *testing.T, config func(*daemon.Config)) *world {
	t.Helper()
	w := &world{t: t, hostDir: t.TempDir(), stateDir: t.TempDir(), log: &daemontest.Buffer{}, config: config}
	empty, err := emptyDatabase()
	w.must(err)
	w.must(os.WriteFile(filepath.Join(w.stateDir, store.FileName), empty, 0o600))
	w.open()
	t.Cleanup(func() {
		w.close()
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

// emptyDatabase is one that has just been made. To make it takes as long as what many
// worlds then do with it.
var emptyDatabase = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "empty-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, store.FileName)
	db, err := store.Open(context.Background(), path, nil)
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// open starts a daemon on a new connection to the host.
func (w *world) open() {
	w.t.Helper()
	if err := w.tryOpen(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryOpen() error {
	host, err := fake.Open(w.hostDir)
	if err != nil {
		return err
	}
	c := daemon.Config{
		Host: host, StateDir: w.stateDir, Version: "test",
		Settings: daemon.Settings{
			Offer:    vps.Offer{ID: "snapshot", Price: vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth}},
			Notify:   notify.Policy{Grace: time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: time.Second},
			Merge:    merge.Policy{Limit: 2},
			Download: download.Policy{AtOnce: 3},
		},
		Logger: slog.New(slog.NewTextHandler(w.log, nil)), Now: w.now,
	}
	if w.config != nil {
		w.config(&c)
	}
	d, err := daemon.Open(context.Background(), c)
	if err != nil {
		host.Close()
		return err
	}
	w.host, w.daemon = host, d
	return nil
}

func (w *world) close() {
	if w.daemon == nil {
		return
	}
	if err := w.daemon.Close(); err != nil {
		w.t.Error(err)
	}
	w.host.Close()
	w.daemon = nil
}

// crash ends the daemon as SIGKILL does: what it is about to do to the host has
// no effect, and it writes no more.
func (w *world) crash() {
	w.host.Cut()
	w.close()
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.clock.IsZero() {
		return time.Now()
	}
	return w.clock
}

func (w *world) setClock(t time.Time) {
	w.mu.Lock()
	w.clock = t
	w.mu.Unlock()
}

const mib = 1 << 20

// vps defines a VPS, brings it into a state and activates its option.
func (w *world) vps(name string, state hypervisor.State, disks ...hypervisor.Disk) string {
	w.t.Helper()
	if len(disks) == 0 {
		disks = []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}}
	}
	id, err := w.host.Define(name, disks...)
	w.must(err)
	w.must(w.host.SetAgent(id, fake.AgentAnswers))
	if state != hypervisor.Off {
		w.must(w.host.Start(context.Background(), id, false))
	}
	if state == hypervisor.Paused {
		w.must(w.host.Suspend(context.Background(), id))
	}
	w.eventually("the daemon knows "+name, func() bool {
		v, err := w.daemon.Overview.ShowVPS(context.Background(), name)
		return err == nil && v.ID == id
	})
	w.activate(id)
	return id
}

func (w *world) activate(id string) {
	w.t.Helper()
	_, err := w.daemon.Options.PutOption(
		context.Background(), id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator,
	)
	w.must(err)
}

// write lets the guest write, whatever state it is in.
func (w *world) write(id, target string, offset int64, pattern byte) {
	w.t.Helper()
	paused := w.state(id) == hypervisor.Paused
	if paused {
		w.must(w.host.Resume(context.Background(), id))
	}
	w.must(w.host.Write(id, target, offset, pattern, 4096))
	if paused {
		w.must(w.host.Suspend(context.Background(), id))
	}
}

// sees fails unless the guest reads this pattern.
func (w *world) sees(id, target string, offset int64, pattern byte) {
	w.t.Helper()
	got, err := w.host.Read(id, target, offset, 4096)
	w.must(err)
	if want := bytes.Repeat([]byte{pattern}, 4096); !bytes.Equal(got, want) {
		w.t.Errorf("%s at %d: the guest reads %x..., want %x...", target, offset, got[:4], want[:4])
	}
}

func (w *world) state(id string) hypervisor.State {
	w.t.Helper()
	dom, err := w.host.Domain(context.Background(), id)
	w.must(err)
	return dom.State
}

func (w *world) take(id string, r vps.TakeRequest) vps.Operation {
	w.t.Helper()
	return w.done(w.daemon.Snapshots.Take(context.Background(), id, r, operator))
}

func (w *world) restore(id string) vps.Operation {
	w.t.Helper()
	return w.done(
		w.daemon.Snapshots.Restore(context.Background(), id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator),
	)
}

func (w *world) delete(id string) vps.Operation {
	w.t.Helper()
	return w.done(w.daemon.Snapshots.Delete(context.Background(), id, operator))
}

// done waits for an operation and fails unless it succeeds.
func (w *world) done(op vps.Operation, err error) vps.Operation {
	w.t.Helper()
	op = w.ended(op, err)
	if op.Status != vps.StatusSucceeded {
		w.t.Fatalf("%s ended as %s: %+v\n%s", op.Kind, op.Status, op.Error, w.log.String())
	}
	return op
}

func (w *world) ended(op vps.Operation, err error) vps.Operation {
	w.t.Helper()
	w.must(err)
	op, err = w.daemon.Operations.WaitOperation(context.Background(), op.ID, 20*time.Second)
	w.must(err)
	if !op.Status.Final() && op.Status != vps.StatusNeedsAttention {
		w.t.Fatalf("%s has not ended: %s at %s\n%s", op.Kind, op.Status, op.Step, w.log.String())
	}
	return op
}

func (w *world) snapshot(id string) vps.Snapshot {
	w.t.Helper()
	s, err := w.daemon.Snapshots.Snapshot(context.Background(), id)
	w.must(err)
	return s
}

// refuses fails unless err has the code.
func (w *world) refuses(code vps.Code, err error) {
	w.t.Helper()
	if got := vps.CodeOf(err); got != code {
		w.t.Fatalf("code %q (%v), want %q", got, err, code)
	}
}

// files returns the names of all files of ours beside the images.
func (w *world) files() []string {
	w.t.Helper()
	entries, err := os.ReadDir(w.host.ImageDir())
	w.must(err)
	var names []string
	for _, e := range entries {
		if strings.Contains(e.Name(), ".vpssnap-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// clean fails if anything of a snapshot is left of this VPS.
func (w *world) clean(id string) {
	w.t.Helper()
	if left := w.files(); len(left) > 0 {
		w.t.Errorf("files left behind: %v", left)
	}
	dom, err := w.host.Domain(context.Background(), id)
	w.must(err)
	for _, d := range append(dom.Disks, dom.PersistentDisks...) {
		if strings.Contains(filepath.Base(d.Path), ".vpssnap-") {
			w.t.Errorf("the definition still names %s", d.Path)
		}
		if d.Job {
			w.t.Errorf("a job still runs on %s", d.Target)
		}
	}
	if dom.Metadata != "" {
		w.t.Errorf("metadata left: %s", dom.Metadata)
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("not within 10 s: %s\n%s", what, w.log.String())
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(fmt.Errorf("%w\n%s", err, w.log.String()))
	}
}

// nvram makes a file with UEFI variables.
func (w *world) nvram() string {
	path := w.host.ImageDir() + "/web1_VARS.fd"
	w.must(os.WriteFile(path, []byte("variables"), 0o600))
	return path
}
