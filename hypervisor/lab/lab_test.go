package lab

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func startLab(t *testing.T) *Lab {
	t.Helper()
	l, err := Start(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestGuestSurvivesTheDeathOfLibvirtd(t *testing.T) {
	l := startLab(t)
	if _, err := l.DefineDomain(t.Context(), Spec{Name: "web1", Disks: []DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Virsh(t.Context(), "start", "web1"); err != nil {
		t.Fatal(err)
	}
	before, err := l.QEMUPID("web1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.KillLibvirtd(); err != nil {
		t.Fatal(err)
	}
	if err := l.StartLibvirtd(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := l.QEMUPID("web1")
	if err != nil || after != before {
		t.Errorf("QEMU was process %d, is %d, %v", before, after, err)
	}
	if state, err := l.State(t.Context(), "web1"); err != nil || state != "running" {
		t.Errorf("web1 is %q, %v", state, err)
	}
}
