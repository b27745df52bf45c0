package lab

import (
	"context"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestLibvirtdIsKilledAndStartedAgain(t *testing.T) {
	l, err := Start(context.Background(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(l.Virsh(context.Background(), "version"))
	t.Log(l.LibvirtdPID())
	if err := l.KillLibvirtd(); err != nil {
		t.Error(err)
	}
	if err := l.StartLibvirtd(context.Background()); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
