package image

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"vpssnapd/hypervisor/pathname"
)

// maxFileName is the longest name that Linux file systems take, in bytes.
const maxFileName = 255

// ours matches the part of a file name that we add.
var ours = regexp.MustCompile(`\.vpssnap-[0-9a-f]{12}\..*$`)

// OverlayPath names the overlay of a disk: beside its base, with the base's
// name, whose it is and which disk, as in web1.qcow2.vpssnap-3f2a9c01b7de.vda.qcow2.
// It is never used twice: QEMU keeps the node of a failed overlay open.
func OverlayPath(base, snapshot, target string) string {
	return WithSuffix(base, fmt.Sprintf(".vpssnap-%s.%s.qcow2", snapshot, target))
}

// UndoPath names the file that keeps a disk as it was before a restore.
func UndoPath(base, snapshot, target, operation string) string {
	return WithSuffix(base, fmt.Sprintf(".vpssnap-%s.%s.undo-%s.qcow2", snapshot, target, operation))
}

// NVRAMPath names the copy of the UEFI variables that belongs to a snapshot.
func NVRAMPath(nvram, snapshot, what string) string {
	return WithSuffix(nvram, fmt.Sprintf(".vpssnap-%s.%s.nvram", snapshot, what))
}

// WithSuffix names a file beside another, with another end instead of ours.
func WithSuffix(path, suffix string) string {
	dir, name := filepath.Split(path)
	name = ours.ReplaceAllString(name, "")
	if len(name)+len(suffix) > maxFileName {
		name = strings.ToValidUTF8(name[:maxFileName-len(suffix)], "")
	}
	return filepath.Join(dir, name+suffix)
}

// ourFile matches the names of our files; the group is the snapshot's id.
var ourFile = regexp.MustCompile(`\.vpssnap-([0-9a-f]{12})\.`)

// SnapshotOf is the id of the snapshot that a file belongs to by its name; "" when it
// is not named as ours.
func SnapshotOf(path string) string {
	m := ourFile.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return ""
	}
	return m[1]
}

// overlayName matches the end of an overlay's name; the groups are the snapshot's id and
// the name that the disk had at the take.
var overlayName = regexp.MustCompile(`\.vpssnap-([0-9a-f]{12})\.([a-z0-9]+)\.qcow2$`)

// IsOverlay reports whether a file is named as the overlay of a base, whatever the name of
// its disk is now.
func IsOverlay(path, base, snapshot string) bool {
	m := overlayName.FindStringSubmatch(filepath.Base(path))
	return m != nil && m[1] == snapshot && pathname.Same(path, OverlayPath(base, snapshot, m[2]))
}

// IsOurs reports whether a file lies beside another and is named as one of a snapshot's.
func IsOurs(path, beside, snapshot string) bool {
	return IsPlain(path) && filepath.Dir(path) == filepath.Dir(beside) && SnapshotOf(path) == snapshot
}

// IsPlain reports whether a name is an absolute path without detours.
func IsPlain(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && !strings.Contains(path, "\x00") && path != "/"
}
