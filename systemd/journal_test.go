package systemd

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/vps"
)

const (
	journalDir    = "/run/systemd/journal"
	asJournalTest = "VPSSNAPD_TEST_JOURNAL"
)

// TestMain lets the test of the journal run itself in a mount namespace of its own.
func TestMain(m *testing.M) {
	if os.Getenv(asJournalTest) != "" {
		if err := writeToJournal(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestJournalFields: what the daemon logs arrives in the journal with the fields that
// people search by, in journald's own protocol.
func TestJournalFields(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asJournalTest+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := decodeJournal(t, out)
	for field, want := range map[string]string{
		"MESSAGE":           `operation waits for an operator vps=web1 operation=op-1 step=pivot took=1.5s error="two\nlines"`,
		"PRIORITY":          "3",
		"MESSAGE_ID":        messageIDs[string(vps.EventOperationNeedsAttention)],
		"VPSSNAP_VPS":       "web1",
		"VPSSNAP_VPS_UUID":  "d4a1",
		"VPSSNAP_OPERATION": "op-1",
		"VPSSNAP_STEP":      "pivot",
		"VPSSNAP_EVENT":     "operation.needs_attention",
		"VPSSNAP_TOOK":      "1.5s",
		"VPSSNAP_ERROR":     "two; lines",
	} {
		if got[field] != want {
			t.Errorf("%s is %q, not %q", field, got[field], want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// writeToJournal stands in for journald, logs one line, and prints what arrived.
func writeToJournal() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(journalDir, 0o755); err != nil {
		return err
	}
	journald, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: journalDir + "/socket", Net: "unixgram"})
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(os.Stderr.Fd()), &stat); err != nil {
		return err
	}
	if err := os.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)); err != nil {
		return err
	}
	op := vps.Operation{ID: "op-1", VPS: "d4a1", VPSName: "web1"}
	Logger(slog.LevelInfo).Error("operation waits for an operator", vps.LogEvent(vps.EventOperationNeedsAttention),
		vps.LogAttr(op.VPS, op.VPSName),
		"operation", op.ID, "step", "pivot", "took", 1500*time.Millisecond, "error", "two\nlines")
	text := make([]byte, 1<<16)
	if err := journald.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	n, err := journald.Read(text)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text[:n])
	return err
}

// decodeJournal reads journald's native protocol.
func decodeJournal(t *testing.T, text []byte) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		name, value, short := strings.Cut(string(line), "=")
		if !short {
			t.Fatalf("%s has several lines, which slog-journal does not end", name)
		}
		fields[name] = value
		text = rest
	}
	return fields
}
