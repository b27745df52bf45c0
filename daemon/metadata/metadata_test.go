package metadata

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/vps"
)

func sampleSnapshot() vps.Snapshot {
	base := "/srv/images/web 1 & <co>.qcow2"
	return vps.Snapshot{
		ID: "0123456789ab", VPS: "3b0c5d1e-0000-4000-8000-000000000001", State: vps.SnapshotAvailable,
		CreatedAt: time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC), Consistency: vps.ConsistencyFilesystem,
		Description: "\"before\" <the> & 'upgrade' é\ttab", NVRAM: "/srv/n.fd", NVRAMSaved: image.NVRAMPath("/srv/n.fd", "0123456789ab", "saved"),
		SizeBytes: 3 << 20,
		Disks: []vps.SnapshotDisk{
			{
				Target:       "vda",
				Base:         base,
				BaseFormat:   "qcow2",
				BaseInode:    4711,
				BaseModified: time.Date(2026, 3, 1, 11, 0, 0, 1000, time.UTC),
				SizeBytes:    1 << 20,
				Overlay:      image.OverlayPath(base, "0123456789ab", "vda"),
				OverlayInode: 4712,
			},
			{
				Target:     "vdb",
				Base:       "/srv/b.raw",
				BaseFormat: "raw",
				SizeBytes:  2 << 20,
				Overlay:    image.OverlayPath("/srv/b.raw", "0123456789ab", "vdb"),
			},
		},
	}
}

// What is written into a definition is what is read from it.
func TestMetadataTravels(t *testing.T) {
	snap := sampleSnapshot()
	text, err := Encode(
		snap, Restoring{NVRAMInode: 5, Replacements: []Replacement{{Target: "vda", Path: "/srv/s", Inode: 4713}}},
	)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(snap, m.Snapshot); diff != "" {
		t.Errorf("read otherwise than written:\n%s", diff)
	}
	if m.Spares["vda"] != 4713 || m.Spares["vdb"] != 0 || m.NVRAMSpare != 5 {
		t.Errorf("spares %v, %d", m.Spares, m.NVRAMSpare)
	}
	if why := Differs(text, snap); why != "" {
		t.Errorf("it %s", why)
	}
}

// Metadata that names anything but files of ours beside a base is refused.
func TestMetadataIsNotBelieved(t *testing.T) {
	good, err := Encode(sampleSnapshot(), Restoring{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct{ old, new string }{
		{"0123456789ab\" vps", "0123456789AB\" vps"},
		{`state="available"`, `state="gone"`},
		{`state="available"`, `state="broken"`},
		{`consistency="filesystem"`, `consistency="certain"`},
		{`created_at="2026`, `created_at="long ago`},
		{`target="vdb"`, `target="vda"`},
		{`target="vdb"`, `target="../x"`},
		{`base="/srv/b.raw"`, `base="b.raw"`},
		{`base="/srv/b.raw"`, `base="/etc/../srv/b.raw"`},
		{`overlay="/srv/b.raw.`, `overlay="/etc/b.raw.`},
		{`base_format="raw"`, `base_format="luks"`},
		{`size_bytes="2097152"`, `size_bytes="-1"`},
		{`<nvram_saved>`, `<nvram_saved>/etc/passwd`},
		{`</snapshot>`, `</snapshot><snapshot/>`},
		{`<snapshot`, `<snap`},
	} {
		text := strings.Replace(good, bad.old, bad.new, 1)
		if text == good {
			t.Fatalf("%q is not in %s", bad.old, good)
		}
		if m, err := Parse(text); err == nil {
			t.Errorf("with %q it reads as %+v", bad.new, m)
		}
	}
	if _, err := Parse("<snapshot>" + strings.Repeat(" ", maxMetadata)); err == nil {
		t.Error("a text without end is read")
	}
}

// FuzzMetadata: nothing that a definition may hold makes us stumble, and what is
// believed names plain files that are named as ours.
func FuzzMetadata(f *testing.F) {
	good, err := Encode(sampleSnapshot(), Restoring{Replacements: []Replacement{{Target: "vda", Path: "/srv/s", Inode: 1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("")
	f.Add(
		`<snapshot id="0123456789ab" state="restoring" created_at="2026-03-01T12:00:00Z" consistency="crash"><disk/></snapshot>`,
	)
	f.Add(`<!DOCTYPE a [<!ENTITY b "c">]><snapshot>&b;</snapshot>`)
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Parse(text)
		if err != nil {
			return
		}
		if n := m.Snapshot.NVRAMSaved; n != "" &&
			(!image.IsPlain(m.Snapshot.NVRAM) || n != image.NVRAMPath(m.Snapshot.NVRAM, m.Snapshot.ID, "saved")) {
			t.Fatalf("believed: %+v", m.Snapshot)
		}
		for _, disk := range m.Snapshot.Disks {
			if !image.IsPlain(disk.Base) || disk.Overlay != image.OverlayPath(disk.Base, m.Snapshot.ID, disk.Target) ||
				disk.SizeBytes <= 0 {
				t.Fatalf("believed: %+v", disk)
			}
		}
		again, err := Encode(m.Snapshot, Restoring{})
		if err != nil {
			t.Fatal(err)
		}
		read, err := Parse(again)
		if err != nil {
			t.Fatalf("what was believed is not when written again: %v", err)
		}
		if diff := cmp.Diff(m.Snapshot, read.Snapshot); diff != "" {
			t.Fatal(diff)
		}
	})
}
