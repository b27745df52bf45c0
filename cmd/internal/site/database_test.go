package site_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// TestDatabaseDamaged (FAULTS, database): what a damaged record says is not acted
// upon. The daemon does not start, says what to do, and leaves everything as it is.
func TestDatabaseDamaged(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.snapped("run", "running")
	h.snapped("off", "shut off")
	h.must(h.StopDaemon())
	whole, err := os.ReadFile(h.Database())
	h.must(err)
	files, err := h.OurFiles()
	h.must(err)
	untouched := func(how string) {
		t.Helper()
		now, err := h.OurFiles()
		if err != nil || strings.Join(now, " ") != strings.Join(files, " ") {
			t.Errorf("%s: the files were %v and are %v (%v)", how, files, now, err)
		}
		h.holds("run", 'b')
		h.holds("off", 'b')
	}
	for how, damage := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2+100] },
		"empty":     func([]byte) []byte { return nil },
		"no header": func(b []byte) []byte { clear(b[:16]); return b },
		"flipped":   func(b []byte) []byte { b[4096] ^= 0xff; return b },
	} {
		h.must(os.WriteFile(h.Database(), damage(bytes.Clone(whole)), 0o600))
		damaged, err := os.ReadFile(h.Database())
		h.must(err)
		err = h.StartDaemon(t.Context())
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "vpssnapd rebuild") {
			t.Errorf("%s: it ends with %v", how, err)
		}
		if now, err := os.ReadFile(h.Database()); err != nil || !bytes.Equal(now, damaged) {
			t.Errorf("%s: the damaged file was written to", how)
		}
		untouched(how)
	}
	h.must(os.WriteFile(h.Database(), whole, 0o600))
	h.must(h.StartDaemon(t.Context()))
	h.well()
}

// TestDatabaseBitFlips (FAULTS, database): a single bit that has flipped anywhere
// is either found at the start, or costs neither a file nor a byte of a VPS.
func TestDatabaseBitFlips(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.snapped("run", "running")
	h.must(h.StopDaemon())
	whole, err := os.ReadFile(h.Database())
	h.must(err)
	files, err := h.OurFiles()
	h.must(err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	source := rand.New(rand.NewPCG(seed, 0))
	refused := 0
	for range 12 {
		place, bit := source.IntN(len(whole)), source.IntN(8)
		flipped := bytes.Clone(whole)
		flipped[place] ^= 1 << bit
		h.clearLog()
		h.must(os.WriteFile(h.Database(), flipped, 0o600))
		if err := h.StartDaemon(t.Context()); err != nil {
			refused++
		} else {
			h.must(h.StopDaemon())
		}
		if now, err := h.OurFiles(); err != nil || strings.Join(now, " ") != strings.Join(files, " ") {
			t.Fatalf("bit %d of byte %d: the files were %v and are %v (%v)", bit, place, files, now, err)
		}
		h.holds("run", 'b')
	}
	t.Logf("%d of 12 were found at the start", refused)
	h.clearLog()
	h.must(os.WriteFile(h.Database(), whole, 0o600))
	h.must(h.StartDaemon(t.Context()))
	h.well()
	h.restore("run")
	h.holds("run", 'a')
}

// clearLog removes the database's log, which belongs to another state of it.
func (h *host) clearLog() {
	h.t.Helper()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(h.Database() + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Fatal(err)
		}
	}
}

// TestDatabaseOldCopy (FAULTS, database): a copy from before a delete and a new
// take is put back. The host's reality wins: nothing is deleted, and it is told.
func TestDatabaseOldCopy(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.snapped("run", "running")
	h.must(h.StopDaemon())
	old, err := os.ReadFile(h.Database())
	h.must(err)
	h.must(h.StartDaemon(t.Context()))
	h.delete("run")
	h.take("run", api.TakeRequest{})
	h.fill("run", 'c')
	h.must(h.StopDaemon())
	files, err := h.OurFiles()
	h.must(err)
	h.clearLog()
	h.must(os.WriteFile(h.Database(), old, 0o600))
	h.must(h.StartDaemon(t.Context()))
	if r, err := h.Client.Checks(t.Context()); err != nil || len(r.Findings) == 0 {
		t.Errorf("nothing is found: %+v, %v", r, err)
	}
	if s, err := h.Client.Snapshot(t.Context(), "run"); err != nil || s.State != "broken" {
		t.Errorf("the snapshot of the copy is %s (%v)", s.State, err)
	}
	if now, err := h.OurFiles(); err != nil || strings.Join(now, " ") != strings.Join(files, " ") {
		t.Errorf("the files were %v and are %v (%v)", files, now, err)
	}
	h.holds("run", 'c')
	if !strings.Contains(h.DaemonLog(), "older than what was recorded last") {
		t.Errorf("it does not say that the copy is old:\n%s", h.DaemonLog())
	}
	h.must(h.StopDaemon())
	h.must(os.Rename(h.Database(), h.Database()+".old"))
	h.clearLog()
	if out := h.rebuild(0); !strings.Contains(out, "is available") {
		t.Errorf("rebuilt:\n%s", out)
	}
	h.must(h.StartDaemon(t.Context()))
	h.well()
	h.restore("run")
	h.holds("run", 'b')
}

// TestDatabaseOfOthers (FAULTS, database): one of a newer version is refused, and
// while another program holds the lock, calls that change something are answered
// with 503 within bounds, and those that read as ever.
func TestDatabaseOfOthers(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	h.snapped("run", "running")
	db, err := sql.Open("sqlite", h.Database())
	h.must(err)
	defer db.Close()
	holder, err := db.Conn(ctx)
	h.must(err)
	defer holder.Close()
	exec := func(query string) { h.t.Helper(); _, err := holder.ExecContext(ctx, query); h.must(err) }
	exec("BEGIN IMMEDIATE")
	_, err = h.Client.PutOption(ctx, "run", api.OptionOrder{State: "active", OrderRef: "order-2"})
	if client.CodeOf(err) != api.CodeHypervisorUnavailable {
		t.Errorf("while the lock is held: %v", err)
	}
	if _, err := h.Client.Snapshot(ctx, "run"); err != nil {
		t.Errorf("a reader has to wait for a writer: %v", err)
	}
	exec("ROLLBACK")
	if _, err = h.Client.PutOption(ctx, "run", api.OptionOrder{State: "active", OrderRef: "order-2"}); err != nil {
		t.Errorf("when the lock is free again: %v", err)
	}
	h.must(h.StopDaemon())
	exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)")
	err = h.StartDaemon(context.WithoutCancel(ctx))
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "newer vpssnapd") {
		t.Errorf("with a newer database it ends with %v", err)
	}
	if left, _ := filepath.Glob(h.Database() + ".damaged-*"); len(left) > 0 {
		t.Errorf("it was taken for damaged: %v", left)
	}
	exec("DELETE FROM goose_db_version WHERE version_id = 9999")
	h.must(holder.Close())
	h.must(db.Close())
	h.must(h.StartDaemon(ctx))
	h.well()
}
