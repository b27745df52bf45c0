package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon/vps"
)

func sampleSnapshot() vps.Snapshot {
	base := "/srv/images/web 1 & <co>.qcow2"
	return vps.Snapshot{
		ID: "0123456789ab", VPS: "3b0c5d1e-0000-4000-8000-000000000001", State: vps.SnapshotAvailable,
		CreatedAt: time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC), Consistency: vps.ConsistencyFilesystem,
		Description: "\"before\" <the> & 'upgrade' é\ttab", NVRAM: "/srv/n.fd", NVRAMSaved: nvramPath("/srv/n.fd", "0123456789ab", "saved"),
		SizeBytes: 3 << 20,
		Disks: []vps.SnapshotDisk{
			{Target: "vda", Base: base, BaseFormat: "qcow2", BaseInode: 4711, BaseModified: time.Date(2026, 3, 1, 11, 0, 0, 1000, time.UTC), SizeBytes: 1 << 20,
				Overlay: overlayPath(base, "0123456789ab", "vda"), OverlayInode: 4712},
			{Target: "vdb", Base: "/srv/b.raw", BaseFormat: "raw", SizeBytes: 2 << 20, Overlay: overlayPath("/srv/b.raw", "0123456789ab", "vdb")},
		},
	}
}

// What is written into a definition is what is read from it.
func TestMetadataTravels(t *testing.T) {
	snap := sampleSnapshot()
	text, err := metadataOf(snap, restoreNotes{NVRAMInode: 5, Spares: []spare{{Target: "vda", Path: "/srv/s", Inode: 4713}}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMetadata(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(snap, m.snap); diff != "" {
		t.Errorf("read otherwise than written:\n%s", diff)
	}
	if m.spares["vda"] != 4713 || m.spares["vdb"] != 0 || m.nvramSpare != 5 {
		t.Errorf("spares %v, %d", m.spares, m.nvramSpare)
	}
	if why := metadataDiffers(text, snap); why != "" {
		t.Errorf("it %s", why)
	}
}

// Metadata that names anything but files of ours beside a base is refused.
func TestMetadataIsNotBelieved(t *testing.T) {
	good, err := metadataOf(sampleSnapshot(), restoreNotes{})
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
		if m, err := parseMetadata(text); err == nil {
			t.Errorf("with %q it reads as %+v", bad.new, m)
		}
	}
	if _, err := parseMetadata("<snapshot>" + strings.Repeat(" ", maxMetadata)); err == nil {
		t.Error("a text without end is read")
	}
}

// FuzzMetadata: nothing that a definition may hold makes us stumble, and what is
// believed names plain files that are named as ours.
func FuzzMetadata(f *testing.F) {
	good, err := metadataOf(sampleSnapshot(), restoreNotes{Spares: []spare{{Target: "vda", Path: "/srv/s", Inode: 1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("")
	f.Add(`<snapshot id="0123456789ab" state="restoring" created_at="2026-03-01T12:00:00Z" consistency="crash"><disk/></snapshot>`)
	f.Add(`<!DOCTYPE a [<!ENTITY b "c">]><snapshot>&b;</snapshot>`)
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMetadata(text)
		if err != nil {
			return
		}
		if n := m.snap.NVRAMSaved; n != "" && (!plainPath(m.snap.NVRAM) || n != nvramPath(m.snap.NVRAM, m.snap.ID, "saved")) {
			t.Fatalf("believed: %+v", m.snap)
		}
		for _, disk := range m.snap.Disks {
			if !plainPath(disk.Base) || disk.Overlay != overlayPath(disk.Base, m.snap.ID, disk.Target) || disk.SizeBytes <= 0 {
				t.Fatalf("believed: %+v", disk)
			}
		}
		again, err := metadataOf(m.snap, restoreNotes{})
		if err != nil {
			t.Fatal(err)
		}
		read, err := parseMetadata(again)
		if err != nil {
			t.Fatalf("what was believed is not when written again: %v", err)
		}
		if diff := cmp.Diff(m.snap, read.snap); diff != "" {
			t.Fatal(diff)
		}
	})
}
