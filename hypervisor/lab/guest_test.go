package lab

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// bootWithin is far more than a boot takes, even on a machine that is busy.
const bootWithin = 2 * time.Minute

func bootGuest(t *testing.T, l *Lab, s Spec) {
	t.Helper()
	s.OS = true
	startGuest(t, l, s)
	must(t, l.WaitAgent(within(t, bootWithin), s.Name))
}

func TestGuestReadsAndWritesFilesAndRunsPrograms(t *testing.T) {
	l := startLab(t)
	ctx := within(t, bootWithin)
	bootGuest(t, l, Spec{Name: "web1", Disks: []DiskSpec{
		{Target: "vda", SizeBytes: 64 << 20, Ext4: true},
		{Target: "vdb", SizeBytes: 64 << 20, Ext4: true, Format: "raw"},
		{Target: "vdc", SizeBytes: 16 << 20},
	}})
	data := bytes.Repeat([]byte("0123456\x00"), agentChunk/4)
	must(t, l.GuestWriteFile(ctx, "web1", "/mnt/vdb/file", data))
	must(t, l.GuestSync(ctx, "web1"))
	if got, err := l.GuestReadFile(ctx, "web1", "/mnt/vdb/file"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d of %d bytes, %v", len(got), len(data), err)
	}
	if _, err := l.GuestReadFile(ctx, "web1", "/mnt/vdb/missing"); err == nil {
		t.Error("a missing file can be read")
	}
	out, code, err := l.GuestExec(ctx, "web1", "sh", "-c", "ls /mnt; exit 3")
	if err != nil || code != 3 || out != "vda\nvdb\n" {
		t.Errorf("the program ends with %q, %d, %v; want vda and vdb mounted, vdc not", out, code, err)
	}

	must(t, l.KillLibvirtd())
	must(t, l.StartLibvirtd(ctx))
	must(t, l.WaitAgent(ctx, "web1"))
	if got, err := l.GuestReadFile(ctx, "web1", "/mnt/vdb/file"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after libvirtd's death: read %d of %d bytes, %v", len(got), len(data), err)
	}

	must(t, l.GuestShutdown(ctx, "web1"))
	_, err = l.Virsh(ctx, "start", "web1")
	must(t, err)
	must(t, l.WaitAgent(ctx, "web1"))
	if got, err := l.GuestReadFile(ctx, "web1", "/mnt/vdb/file"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after a reboot: read %d of %d bytes, %v", len(got), len(data), err)
	}
}

func TestFreezeStopsTheGuestsWrites(t *testing.T) {
	l := startLab(t)
	ctx := within(t, bootWithin)
	bootGuest(t, l, Spec{Name: "web1", Disks: []DiskSpec{{Target: "vda", SizeBytes: 64 << 20, Ext4: true}}})
	must(t, l.StartRecorder(ctx, "web1"))
	must(t, l.WaitAcknowledged(ctx, "web1", 10))
	_, err := l.Virsh(ctx, "domfsfreeze", "web1")
	must(t, err)
	frozen := hashDisk(t, l, "web1", "vda")
	if hashDisk(t, l, "web1", "vda") != frozen {
		t.Error("a frozen guest writes")
	}
	_, err = l.Virsh(ctx, "domfsthaw", "web1")
	must(t, err)
	last, err := l.Acknowledged("web1")
	must(t, err)
	must(t, l.WaitAcknowledged(ctx, "web1", last+10))

	must(t, l.GuestWriteFile(ctx, "web1", "/run/hook", []byte("[ \"$1\" = thaw ]\n")))
	if _, err := l.Virsh(ctx, "domfsfreeze", "web1"); err == nil {
		t.Error("the guest's hook refuses the freeze, and it happens")
	}
	_, err = l.Virsh(ctx, "domfsthaw", "web1")
	must(t, err)
}

func TestAcknowledgedRecordsOutliveQEMU(t *testing.T) {
	l := startLab(t)
	ctx := within(t, bootWithin)
	bootGuest(t, l, Spec{Name: "web1", Disks: []DiskSpec{{Target: "vda", SizeBytes: 64 << 20, Ext4: true}}})
	must(t, l.StartRecorder(ctx, "web1"))
	must(t, l.WaitAcknowledged(ctx, "web1", 20))
	must(t, l.KillQEMU("web1"))
	acknowledged, err := l.Acknowledged("web1")
	must(t, err)
	must(t, l.WaitState(ctx, "web1", "shut off"))
	_, err = l.Virsh(ctx, "start", "web1")
	must(t, err)
	must(t, l.WaitAgent(ctx, "web1"))
	records, err := l.Records(ctx, "web1")
	must(t, err)
	if len(records) < acknowledged {
		t.Errorf("%d records were acknowledged, %d are there", acknowledged, len(records))
	}
	for i, n := range records {
		if n != i+1 {
			t.Fatalf("record %d is %d", i+1, n)
		}
	}
	must(t, l.StartRecorder(ctx, "web1"))
	must(t, l.WaitAcknowledged(ctx, "web1", len(records)+1))
}

func TestUEFIGuestBoots(t *testing.T) {
	l := startLab(t)
	bootGuest(t, l, Spec{Name: "web1", UEFI: true, Disks: []DiskSpec{{Target: "vda", SizeBytes: 64 << 20, Ext4: true}}})
	out, _, err := l.GuestExec(within(t, bootWithin), "web1", "ls", "-d", "/sys/firmware/efi", "/mnt/vda")
	if err != nil || !strings.Contains(out, "/sys/firmware/efi") || !strings.Contains(out, "/mnt/vda") {
		t.Errorf("the guest has %q, %v", out, err)
	}
}

func TestBuildersInEachOthersWay(t *testing.T) {
	dir := t.TempDir()
	packages, err := findPackages(t.Context())
	must(t, err)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := buildInto(t.Context(), dir+"/key", packages); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "key" {
		t.Errorf("two builders left %v, %v", entries, err)
	}
}

func TestAcknowledgedReadsOnlyWholeLines(t *testing.T) {
	l := &Lab{dir: t.TempDir()}
	must(t, os.Mkdir(l.consoleDir(), 0o755))
	for text, want := range map[string]int{
		"":                         0,
		"READY\r\nACK 1\r\nACK 2":  1,
		"ACK 9\r\nACK 10\r\n":      10,
		"ACK 3\nSTOPPED at 4\r\n":  3,
		"ACK x\r\nNACK 7\r\nACK\n": 0,
	} {
		must(t, os.WriteFile(l.ConsoleFile("web1"), []byte(text), 0o600))
		if got, err := l.Acknowledged("web1"); err != nil || got != want {
			t.Errorf("%q acknowledges %d, %v, want %d", text, got, err, want)
		}
	}
}
