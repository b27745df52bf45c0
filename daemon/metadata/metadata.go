// Package metadata is the copy of a snapshot's record that travels in the definition of
// its VPS: how it is written, read and compared. It touches nothing.
package metadata

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/vps"
)

// snapshotXML is the copy of a snapshot's record that travels in the domain's own
// definition. SQLite stays the record: whoever defines the domain again may drop this.
// It is written when a snapshot becomes available and before a delete or a restore does
// what cannot be taken back, so that a rebuild can tell. Times are RFC 3339 in UTC,
// sizes bytes. An attribute is added, never given another meaning: the definition may be
// read by another version of the daemon.
type snapshotXML struct {
	XMLName     xml.Name  `xml:"snapshot"`
	ID          string    `xml:"id,attr"`
	VPS         string    `xml:"vps,attr"`
	State       string    `xml:"state,attr"`
	CreatedAt   string    `xml:"created_at,attr"`
	Consistency string    `xml:"consistency,attr"`
	RestoredAt  string    `xml:"restored_at,attr,omitempty"`
	UndoUntil   string    `xml:"undo_until,attr,omitempty"`
	Description string    `xml:"description,omitempty"`
	NVRAM       string    `xml:"nvram,omitempty"`
	NVRAMSaved  string    `xml:"nvram_saved,omitempty"`
	NVRAMUndo   string    `xml:"nvram_undo,omitempty"`
	NVRAMSpare  uint64    `xml:"nvram_spare_inode,omitempty"`
	Disks       []diskXML `xml:"disk"`
}

// diskXML is one disk of the snapshot as the definition keeps it: all that is needed to
// rebuild the record when the database is lost.
type diskXML struct {
	Target       string `xml:"target,attr"`
	Base         string `xml:"base,attr"`
	BaseFormat   string `xml:"base_format,attr"`
	BaseModified string `xml:"base_modified,attr,omitempty"`
	SizeBytes    int64  `xml:"size_bytes,attr"`
	BaseInode    uint64 `xml:"base_inode,attr,omitempty"`
	Overlay      string `xml:"overlay,attr"`
	OverlayInode uint64 `xml:"overlay_inode,attr,omitempty"`
	Undo         string `xml:"undo,attr,omitempty"`
	UndoInode    uint64 `xml:"undo_inode,attr,omitempty"`
	// Spare is, in the middle of a restore, the file that takes the overlay's place.
	Spare      string `xml:"spare,attr,omitempty"`
	SpareInode uint64 `xml:"spare_inode,attr,omitempty"`
}

// Restoring is what the middle of a restore is about to exchange; its zero value: nothing.
type Restoring struct {
	Replacements []Replacement // one for each disk, in the order of the snapshot's
	NVRAMInode   uint64        // of the UEFI variables that take the place of the present ones; 0: none
}

// Replacement is an overlay that waits under another name to take a disk's place.
type Replacement struct {
	Target string
	Path   string
	Inode  uint64
}

// Encode makes the copy of a record that goes into a definition. The result is one line,
// and Parse reads all of it again.
func Encode(s vps.Snapshot, r Restoring) (string, error) {
	x := snapshotXML{
		ID:          s.ID,
		VPS:         s.VPS,
		State:       string(s.State),
		CreatedAt:   s.CreatedAt.Format(time.RFC3339Nano),
		Consistency: string(s.Consistency),
		Description: s.Description,
		NVRAM:       s.NVRAM,
		NVRAMSaved:  s.NVRAMSaved,
		NVRAMUndo:   s.NVRAMUndo,
		NVRAMSpare:  r.NVRAMInode,
		RestoredAt:  timeOrNone(s.RestoredAt),
		UndoUntil:   timeOrNone(s.UndoUntil),
	}
	for i, d := range s.Disks {
		disk := diskXML{
			Target:       d.Target,
			Base:         d.Base,
			BaseFormat:   d.BaseFormat,
			BaseInode:    d.BaseInode,
			SizeBytes:    d.SizeBytes,
			Overlay:      d.Overlay,
			OverlayInode: d.OverlayInode,
			Undo:         d.Undo,
			UndoInode:    d.UndoInode,
		}
		if !d.BaseModified.IsZero() {
			disk.BaseModified = d.BaseModified.UTC().Format(time.RFC3339Nano)
		}
		// The spare's inode tells after a crash whether the exchange of that disk was
		// done.
		if i < len(r.Replacements) {
			disk.Spare, disk.SpareInode = r.Replacements[i].Path, r.Replacements[i].Inode
		}
		x.Disks = append(x.Disks, disk)
	}
	text, err := xml.Marshal(x)
	return string(text), err
}

// Record is a record as it was read from a domain's metadata, with what only
// the middle of a restore has: the inode that each file will have afterwards.
type Record struct {
	Snapshot   vps.Snapshot
	Spares     map[string]uint64 // by target; 0: none
	NVRAMSpare uint64
}

// The element comes from a definition that anybody with the right to define can write, so
// its size is bounded before it is parsed.
const (
	maxMetadata = 1 << 20
	maxDisks    = 256
)

// What goes into file names is matched against these before a path is made of it: an id with
// a slash would lead out of the directory of the images.
var (
	snapshotID = regexp.MustCompile(`^[0-9a-f]{12}$`)
	targetName = regexp.MustCompile(`^[a-z]{1,8}$`)
	// metadataStates are the states that are ever written.
	metadataStates = []vps.SnapshotState{vps.SnapshotAvailable, vps.SnapshotDeleting, vps.SnapshotRestoring}
	consistencies  = []vps.Consistency{vps.ConsistencyFilesystem, vps.ConsistencyCrash, vps.ConsistencyOffline}
)

// Parse reads what metadataOf wrote. Whoever may define domains may have
// changed it, so everything is checked.
func Parse(text string) (Record, error) {
	var x snapshotXML
	if len(text) > maxMetadata {
		return Record{}, errors.New("the metadata is too large")
	}
	// A decoder that stops at the end of the element, so that what follows it is seen
	// and refused.
	dec := xml.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&x); err != nil {
		return Record{}, fmt.Errorf("the metadata is not ours: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Record{}, errors.New("the metadata goes on after its end")
	}
	created, err1 := parseTime(x.CreatedAt)
	restored, err2 := parseTimeOrNone(x.RestoredAt)
	undo, err3 := parseTimeOrNone(x.UndoUntil)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Record{}, err
	}
	s := vps.Snapshot{ID: x.ID, VPS: x.VPS, State: vps.SnapshotState(x.State),
		// As fine as the database keeps it, or the copy would never equal the record.
		CreatedAt:   created.Truncate(time.Microsecond),
		Consistency: vps.Consistency(x.Consistency), Description: x.Description, RestoredAt: restored, UndoUntil: undo,
		NVRAM: x.NVRAM, NVRAMSaved: x.NVRAMSaved, NVRAMUndo: x.NVRAMUndo}
	switch {
	case !snapshotID.MatchString(s.ID):
		return Record{}, fmt.Errorf("the metadata names a snapshot %q", s.ID)
	case !slices.Contains(metadataStates, s.State):
		return Record{}, fmt.Errorf("the metadata has the state %q", s.State)
	case !slices.Contains(consistencies, s.Consistency):
		return Record{}, fmt.Errorf("the metadata has the consistency %q", s.Consistency)
	case len(x.Disks) == 0 || len(x.Disks) > maxDisks:
		return Record{}, fmt.Errorf("the metadata names %d disks", len(x.Disks))
	// A path from here is later removed or copied over: only names that we would have
	// made ourselves pass.
	case s.NVRAM != "" && !image.IsPlain(s.NVRAM),
		s.NVRAMSaved != "" && s.NVRAMSaved != image.NVRAMPath(s.NVRAM, s.ID, "saved"),
		s.NVRAMUndo != "" && !image.IsOurs(s.NVRAMUndo, s.NVRAM, s.ID):
		return Record{}, errors.New("the metadata names no plain file for the UEFI variables")
	}
	m := Record{Snapshot: s, Spares: map[string]uint64{}, NVRAMSpare: x.NVRAMSpare}
	return m, m.readDisks(x.Disks)
}

// readDisks takes up the disks of the metadata.
func (m *Record) readDisks(disks []diskXML) error {
	seen := map[string]bool{}
	for _, x := range disks {
		d := vps.SnapshotDisk{
			Target:       x.Target,
			Base:         x.Base,
			BaseFormat:   x.BaseFormat,
			BaseInode:    x.BaseInode,
			SizeBytes:    x.SizeBytes,
			Overlay:      x.Overlay,
			OverlayInode: x.OverlayInode,
			Undo:         x.Undo,
			UndoInode:    x.UndoInode,
		}
		switch {
		case !targetName.MatchString(d.Target) || seen[d.Target]:
			return fmt.Errorf("the metadata names a disk %q, or names it twice", d.Target)
		case !image.IsPlain(d.Base) || !image.IsOverlay(d.Overlay, d.Base, m.Snapshot.ID),
			d.Undo != "" && !image.IsOurs(d.Undo, d.Base, m.Snapshot.ID):
			return fmt.Errorf("the files that the metadata names for disk %s are not named as ours", d.Target)
		case d.BaseFormat != "qcow2" && d.BaseFormat != "raw":
			return fmt.Errorf("the metadata names the format %q for disk %s", d.BaseFormat, d.Target)
		case d.SizeBytes <= 0:
			return fmt.Errorf("the metadata names %d bytes for disk %s", d.SizeBytes, d.Target)
		}
		if x.BaseModified != "" {
			at, err := parseTime(x.BaseModified)
			if err != nil {
				return err
			}
			d.BaseModified = at
		}
		seen[d.Target] = true
		m.Snapshot.SizeBytes += d.SizeBytes
		m.Snapshot.Disks = append(m.Snapshot.Disks, d)
		m.Spares[d.Target] = x.SpareInode
	}
	// In the order of the record, which Differs relies on.
	slices.SortFunc(m.Snapshot.Disks, func(a, b vps.SnapshotDisk) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

// timeOrNone is empty where there is no time, so that omitempty leaves the attribute out.
func timeOrNone(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// parseTime refuses what it cannot read. A snapshot with a wrong time would be worse than
// one that is not adopted: its undo would end at a moment that nobody chose.
func parseTime(text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return at, fmt.Errorf("the time %q in the metadata cannot be read", text)
	}
	return at.UTC(), nil
}

// parseTimeOrNone reads a time that need not be there. The database keeps microseconds, so
// more of it would never compare equal.
func parseTimeOrNone(text string) (*time.Time, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // none is no error
	}
	at, err := parseTime(text)
	at = at.Truncate(time.Microsecond)
	return &at, err
}

// Differs says how the copy in the definition differs from the record,
// "" when it does not. What a description or an undo says may lag behind.
func Differs(text string, s vps.Snapshot) string {
	if text == "" {
		return "is missing"
	}
	m, err := Parse(text)
	if err != nil {
		return "cannot be read: " + err.Error()
	}
	switch {
	case m.Snapshot.ID != s.ID || m.Snapshot.VPS != s.VPS:
		return "is of another snapshot, " + m.Snapshot.ID
	case m.Snapshot.State != s.State:
		return "says that the snapshot is " + string(m.Snapshot.State)
	case len(m.Snapshot.Disks) != len(s.Disks):
		return "names other disks"
	}
	for i, d := range s.Disks {
		has := m.Snapshot.Disks[i]
		if has.Target != d.Target || has.Base != d.Base || has.BaseInode != d.BaseInode ||
			!has.BaseModified.Equal(d.BaseModified) || has.OverlayInode != d.OverlayInode {
			return "names other files for disk " + d.Target
		}
	}
	return ""
}
