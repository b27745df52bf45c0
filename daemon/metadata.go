package daemon

import (
	"context"
	"encoding/xml"
	"fmt"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/vps"
)

// snapshotXML is the copy of a snapshot's record that travels in the domain's
// own definition. SQLite stays the record: whoever defines the domain anew may
// drop this.
type snapshotXML struct {
	XMLName     xml.Name  `xml:"snapshot"`
	ID          string    `xml:"id,attr"`
	State       string    `xml:"state,attr"`
	CreatedAt   string    `xml:"created_at,attr"`
	Consistency string    `xml:"consistency,attr"`
	Description string    `xml:"description,omitempty"`
	NVRAM       string    `xml:"nvram,omitempty"`
	NVRAMSaved  string    `xml:"nvram_saved,omitempty"`
	Disks       []diskXML `xml:"disk"`
}

type diskXML struct {
	Target     string `xml:"target,attr"`
	Base       string `xml:"base,attr"`
	BaseFormat string `xml:"base_format,attr"`
	SizeBytes  int64  `xml:"size_bytes,attr"`
	Overlay    string `xml:"overlay,attr"`
	Undo       string `xml:"undo,attr,omitempty"`
}

func metadataOf(s vps.Snapshot) (string, error) {
	x := snapshotXML{ID: s.ID, State: string(s.State), CreatedAt: s.CreatedAt.Format(time.RFC3339Nano), Consistency: string(s.Consistency),
		Description: s.Description, NVRAM: s.NVRAM, NVRAMSaved: s.NVRAMSaved}
	for _, d := range s.Disks {
		x.Disks = append(x.Disks, diskXML{d.Target, d.Base, d.BaseFormat, d.SizeBytes, d.Overlay, d.Undo})
	}
	text, err := xml.Marshal(x)
	return string(text), err
}

// writeMetadata puts the copy of the record into the domain's definition.
func (d *Daemon) writeMetadata(ctx context.Context, r *operation.Run) error {
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	text, err := metadataOf(snap)
	if err != nil {
		return err
	}
	if err := d.Config.Host.SetMetadata(ctx, snap.VPS, text); err != nil {
		return fmt.Errorf("record not copied into the domain's metadata: %w", err)
	}
	return nil
}
