package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// maxFileName is the longest name that Linux file systems take, in bytes.
const maxFileName = 255

// ours matches the part of a file name that we add.
var ours = regexp.MustCompile(`\.vpssnap-[0-9a-f]{12}\..*$`)

// overlayPath names the overlay of a disk: beside its base, with the base's
// name, whose it is and which disk, as in web1.qcow2.vpssnap-3f2a9c01b7de.vda.qcow2.
// It is never used twice: QEMU keeps the node of a failed overlay open.
func overlayPath(base, snapshot, target string) string {
	return besides(base, fmt.Sprintf(".vpssnap-%s.%s.qcow2", snapshot, target))
}

// undoPath names the file that keeps a disk as it was before a restore.
func undoPath(base, snapshot, target, operation string) string {
	return besides(base, fmt.Sprintf(".vpssnap-%s.%s.undo-%s.qcow2", snapshot, target, operation))
}

// nvramPath names the copy of the UEFI variables that belongs to a snapshot.
func nvramPath(nvram, snapshot, what string) string {
	return besides(nvram, fmt.Sprintf(".vpssnap-%s.%s.nvram", snapshot, what))
}

func besides(path, suffix string) string {
	dir, name := filepath.Split(path)
	name = ours.ReplaceAllString(name, "")
	if len(name)+len(suffix) > maxFileName {
		name = strings.ToValidUTF8(name[:maxFileName-len(suffix)], "")
	}
	return filepath.Join(dir, name+suffix)
}

// newSnapshotID makes the id of a snapshot: 12 hex digits.
func newSnapshotID() string { return randomHex(6) }

// newOperationID makes an id that sorts by time.
func newOperationID(now time.Time) string {
	return fmt.Sprintf("op-%012x%s", now.UnixMilli(), randomHex(4))
}

// newOptionID makes the id of an option.
func newOptionID() string { return "opt-" + randomHex(8) }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b)
}
