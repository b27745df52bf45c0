package store

import (
	"context"
	"database/sql"
	"testing"
	"time"
)

// TestWritableTellsAHangFromALock: a transaction of ours that does not end is a hang,
// another program's lock is not: no new process would cure it.
func TestWritableTellsAHangFromALock(t *testing.T) {
	s, path := fresh(t)
	soon := func() error {
		within, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		return s.Writable(within)
	}
	began, end, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Write(ctx, func(*Tx) error {
			close(began)
			<-end
			return nil
		})
	}()
	<-began
	if soon() == nil {
		t.Error("a transaction that never ends is not noticed")
	}
	close(end)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := soon(); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
	other, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lock, err := other.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	within, cancel := context.WithTimeout(ctx, 30*time.Second) // SQLite gives up after 5 s
	defer cancel()
	if err := s.Writable(within); err != nil {
		t.Errorf("another program's lock: %v", err)
	}
}
