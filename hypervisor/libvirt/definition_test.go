package libvirt

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

func parse(t *testing.T, text string) *definition {
	t.Helper()
	d, err := parseDefinition(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// withDisk is a definition with one disk.
func withDisk(disk string) string {
	return "<domain type='kvm' id='1'><name>web1</name><devices>" + disk + "</devices></domain>"
}

func TestReadDisk(t *testing.T) {
	for name, c := range map[string]struct {
		xml  string
		want hypervisor.Disk
	}{
		"raw file, chain ends": {
			`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/i/a.raw' index='1'/><backingStore/><target dev='vda' bus='virtio'/></disk>`,
			hypervisor.Disk{Target: "vda", Device: "disk", Type: "file", Path: "/i/a.raw", Format: "raw", ChainKnown: true},
		},
		"device is disk by default": {
			`<disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a'/><target dev='vda'/></disk>`,
			hypervisor.Disk{Target: "vda", Device: "disk", Type: "file", Path: "/i/a", Format: "qcow2"},
		},
		"two layers below": {
			`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/c' index='3'/>
			<backingStore type='file' index='2'><format type='qcow2'/><source file='/i/b'/>
				<backingStore type='file' index='1'><format type='raw'/><source file='/i/a'/><backingStore/></backingStore>
			</backingStore><target dev='vda'/></disk>`,
			hypervisor.Disk{
				Target: "vda", Device: "disk", Type: "file", Path: "/i/c", Format: "qcow2", ChainKnown: true,
				Chain: []hypervisor.Layer{{Path: "/i/b", Format: "qcow2"}, {Path: "/i/a", Format: "raw"}},
			},
		},
		"chain stated in part, on a network": {
			`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/c'/>
			<backingStore type='network'><format type='raw'/><source protocol='nbd' name='x'/></backingStore><target dev='vda'/></disk>`,
			hypervisor.Disk{
				Target: "vda", Device: "disk", Type: "file", Path: "/i/c", Format: "qcow2",
				Chain: []hypervisor.Layer{{Format: "raw"}},
			},
		},
		"a name with everything": {
			`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/i/a&amp;b &lt;c&gt; &apos;d&apos; "é" ]]&gt;&#10;:,'/><target dev='vda'/></disk>`,
			hypervisor.Disk{Target: "vda", Device: "disk", Type: "file", Path: "/i/a&b <c> 'd' \"é\" ]]>\n:,", Format: "raw"},
		},
		"flags": {
			`<disk type='file' device='lun'><driver name='qemu' type='raw'/><source file='/i/a'><slices><slice type='storage' offset='0' size='1'/></slices><encryption format='luks'/></source>
			<mirror type='file' file='/i/b' job='active-commit' ready='yes'/><target dev='sda'/><readonly/><shareable/><transient/></disk>`,
			hypervisor.Disk{
				Target: "sda", Device: "lun", Type: "file", Path: "/i/a", Format: "raw",
				ReadOnly: true, Shareable: true, Transient: true, Encrypted: true, Slice: true, Job: true,
			},
		},
		"left out of snapshots": {
			`<disk type='file' device='disk' snapshot='no'><driver name='qemu' type='raw'/><source file='/i/a'/><target dev='vdb'/></disk>`,
			hypervisor.Disk{Target: "vdb", Device: "disk", Type: "file", Path: "/i/a", Format: "raw", SnapshotNo: true},
		},
		"encryption in its old place": {
			`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/a'/><encryption format='qcow'/><target dev='vda'/></disk>`,
			hypervisor.Disk{Target: "vda", Device: "disk", Type: "file", Path: "/i/a", Format: "qcow2", Encrypted: true},
		},
		"empty drive": {
			`<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/></disk>`,
			hypervisor.Disk{Target: "sda", Device: "cdrom", Type: "file", Format: "raw", ReadOnly: true},
		},
		"block device": {
			`<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/a'/><target dev='vda'/></disk>`,
			hypervisor.Disk{Target: "vda", Device: "disk", Type: "block", Format: "raw"},
		},
		"nothing stated": {
			`<disk/>`,
			hypervisor.Disk{Device: "disk"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			disks := parse(t, withDisk(c.xml)).disks()
			if len(disks) != 1 || !reflect.DeepEqual(disks[0], c.want) {
				t.Errorf("got %+v, want %+v", disks, c.want)
			}
		})
	}
}

func TestReadFirmwareAndTPM(t *testing.T) {
	for _, c := range []struct {
		xml   string
		nvram string
		other bool
	}{
		{`<os><type>hvm</type></os>`, "", false},
		{`<os firmware='bios'><type>hvm</type></os>`, "", false},
		{`<os firmware='efi'><type>hvm</type></os>`, "", true},
		{`<os firmware='efi'><loader stateless='yes'/></os>`, "", false},
		{`<os><loader readonly='yes' type='pflash'>/fw</loader></os>`, "", true},
		{`<os><loader type='rom'>/usr/share/seabios/bios.bin</loader></os>`, "", false},
		{`<os><loader readonly='yes' type='pflash'>/fw</loader><nvram template='/t'>/i/vars.fd</nvram></os>`, "/i/vars.fd", false},
		{`<os><nvram template='/t'/></os>`, "", true},
		{`<os><nvram type='file'><source file='/i/a&amp;b.fd'/></nvram></os>`, "/i/a&b.fd", false},
		{`<os><nvram type='network'><source protocol='iscsi' name='x'/></nvram></os>`, "", true},
		{`<os><varstore path='/i/vars.json'/></os>`, "", true},
		{``, "", false},
	} {
		d := parse(t, "<domain><name>a</name>"+c.xml+"</domain>")
		if nvram, other := d.nvram(); nvram != c.nvram || other != c.other {
			t.Errorf("%s: got %q, %v", c.xml, nvram, other)
		}
	}
	for kind, want := range map[string]bool{"emulator": true, "external": true, "passthrough": false} {
		if got := parse(t, withDisk("<tpm><backend type='"+kind+"'/></tpm>")).tpm(); got != want {
			t.Errorf("TPM %s: %v", kind, got)
		}
	}
}

func TestReadAgent(t *testing.T) {
	for channel, want := range map[string]hypervisor.AgentState{
		``: hypervisor.AgentNone,
		`<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0' state='connected'/></channel>`:                                            hypervisor.AgentNone,
		`<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`:                                                              hypervisor.AgentDisconnected,
		`<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/></channel>`:                                         hypervisor.AgentDisconnected,
		`<channel type='unix'/><channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>`: hypervisor.AgentConnected,
	} {
		if got := parse(t, withDisk(channel)).agent(); got != want {
			t.Errorf("%s: %s, want %s", channel, got, want)
		}
	}
}

func TestReadMetadata(t *testing.T) {
	for xml, want := range map[string]string{
		``:            "",
		`<metadata/>`: "",
		`<metadata><x:a xmlns:x="urn:x">1</x:a></metadata>`: "",
		`<metadata><x:a xmlns:x="urn:x"/><vpssnap:snapshot xmlns:vpssnap="https://vpssnapd.org/xmlns/snapshot/1" id="1&quot;&amp;"><vpssnap:disk/>é &lt;</vpssnap:snapshot></metadata>`: `<snapshot id="1&quot;&amp;"><disk/>é &lt;</snapshot>`,
		`<metadata><snapshot xmlns="https://vpssnapd.org/xmlns/snapshot/1"/></metadata>`:                                                                                                `<snapshot xmlns="https://vpssnapd.org/xmlns/snapshot/1"/>`,
	} {
		got, err := parse(t, "<domain>"+xml+"</domain>").metadata()
		if err != nil || got != want {
			t.Errorf("%s: %s, %v", xml, got, err)
		}
	}
}

// rich holds what this program knows nothing of, and what it must not lose.
const rich = `<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->
<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>a&amp;b &lt;]]&gt;</name>
  <description>one
two&#13;three	"four" 'five'</description>
  <metadata>
    <x:y xmlns:x="urn:x" x:z="1">&#233;</x:y>
  </metadata>
  <newer than="libvirt"><![CDATA[<raw>&]]></newer>
  <devices>
    <disk type="file" device="disk" newer="yes">
      <driver name="qemu" type="qcow2" cache="none" discard_no_unref="on"/>
      <source file="/i/over" startupPolicy="optional"><seclabel model="dac" relabel="no"/></source>
      <backingStore type="file"><format type="raw"/><source file="/i/base"/><backingStore/></backingStore>
      <target dev="vda" bus="virtio"/>
      <serial>line&#10;break</serial>
    </disk>
    <disk type="file" device="disk">
      <source file="/i/other&#10;name"/>
      <backingStore/>
      <target dev="vdb" bus="virtio"/>
    </disk>
    <graphics type="vnc" passwd="s&lt;e&apos;c&quot;r&amp;et&#9;"/>
  </devices>
  <qemu:commandline><qemu:arg value="-x"/></qemu:commandline>
</domain>`

// tokens is what an XML parser sees in a text.
func tokens(t *testing.T, text string) []string {
	t.Helper()
	var all []string
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			all = append(all, "<"+token.Name.Space+":"+token.Name.Local)
			for _, a := range token.Attr {
				all = append(all, a.Name.Space+":"+a.Name.Local+"="+a.Value)
			}
		case xml.EndElement:
			all = append(all, ">")
		case xml.CharData:
			all = append(all, string(token))
		case xml.Comment:
			all = append(all, "!"+string(token))
		}
	}
}

func TestPointDiskChangesNothingElse(t *testing.T) {
	d := parse(t, rich)
	if err := d.pointDisk(hypervisor.DiskSource{Target: "vda", Path: "/i/n&\"e'<w>\n", Format: "raw"}, ""); err != nil {
		t.Fatal(err)
	}
	got, err := d.text()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(
		rich,
		`      <backingStore type="file"><format type="raw"/><source file="/i/base"/><backingStore/></backingStore>`+"\n",
		"", 1,
	)
	want = strings.Replace(want, `type="qcow2"`, `type="raw"`, 1)
	want = strings.Replace(want, `file="/i/over"`, `file="/i/n&amp;&quot;e'&lt;w>&#10;"`, 1)
	// The white space around what was removed is nobody's concern.
	blank := func(s string) bool { return strings.TrimSpace(s) == "" }
	gotTokens, wantTokens := slices.DeleteFunc(tokens(t, got), blank), slices.DeleteFunc(tokens(t, want), blank)
	if !slices.Equal(gotTokens, wantTokens) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPointDiskStatesTheFormat(t *testing.T) {
	d := parse(t, rich)
	if err := d.pointDisk(hypervisor.DiskSource{Target: "vdb", Path: "/i/new", Format: "qcow2"}, ""); err != nil {
		t.Fatal(err)
	}
	got := readDisk(d.disk("vdb"))
	want := hypervisor.Disk{Target: "vdb", Device: "disk", Type: "file", Path: "/i/new", Format: "qcow2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if name := attr(d.disk("vdb"), "driver", "name"); name != "qemu" {
		t.Errorf("the driver is %q", name)
	}
}

func TestPointDiskRefusesWhatIsNoFile(t *testing.T) {
	for disk, want := range map[string]error{
		`<disk type='block'><source dev='/dev/a'/><target dev='vda'/></disk>`: hypervisor.ErrUnsupported,
		`<disk type='file' device='cdrom'><target dev='vda'/></disk>`:         hypervisor.ErrUnsupported,
		`<disk type='file'><source file='/i/a'/><target dev='vdb'/></disk>`:   hypervisor.ErrNotFound,
	} {
		d := parse(t, withDisk(disk))
		if err := d.pointDisk(hypervisor.DiskSource{Target: "vda", Path: "/i/b", Format: "raw"}, ""); !errors.Is(err, want) {
			t.Errorf("%s: %v", disk, err)
		}
	}
}

func TestSnapshotListsEveryDisk(t *testing.T) {
	d := parse(t, withDisk(`
		<disk type='file' device='disk'><source file='/i/a'/><target dev='vda'/></disk>
		<disk type='network' device='disk'><target dev='vdb'/></disk>
		<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
		<disk type='file' device='floppy'><target dev='fda'/></disk>`))
	text, err := d.snapshotXML([]hypervisor.DiskSwitch{{Target: "vda", Overlay: "/i/o&\"<'\n"}})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Memory struct {
			Snapshot string `xml:"snapshot,attr"`
		} `xml:"memory"`
		Disks []struct {
			Name     string `xml:"name,attr"`
			Snapshot string `xml:"snapshot,attr"`
			Driver   struct {
				Type string `xml:"type,attr"`
			} `xml:"driver"`
			Source struct {
				File string `xml:"file,attr"`
			} `xml:"source"`
		} `xml:"disks>disk"`
	}
	if err := xml.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Memory.Snapshot != "no" || len(got.Disks) != 4 {
		t.Fatalf("got %s", text)
	}
	if a := got.Disks[0]; a.Name != "vda" || a.Snapshot != "external" || a.Driver.Type != "qcow2" ||
		a.Source.File != "/i/o&\"<'\n" {
		t.Errorf("vda: %s", text)
	}
	for i, name := range []string{"vdb", "sda", "fda"} {
		if a := got.Disks[i+1]; a.Name != name || a.Snapshot != "no" || a.Source.File != "" {
			t.Errorf("%s: %s", name, text)
		}
	}
	if _, err := d.snapshotXML([]hypervisor.DiskSwitch{{Target: "vdz", Overlay: "/i/o"}}); !errors.Is(
		err, hypervisor.ErrNotFound,
	) {
		t.Errorf("an unknown disk: %v", err)
	}
}

func TestMergeNamesLayersThatAreThere(t *testing.T) {
	live := parse(
		t,
		withDisk(`<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/c' index='3'/>
		<backingStore type='file' index='5'><format type='qcow2'/><source file='/i/b'/>
			<backingStore type='file' index='1'><format type='raw'/><source file='/i/a'/><backingStore/></backingStore>
		</backingStore><target dev='vda'/></disk>`),
	)
	for _, c := range []struct {
		merge     hypervisor.Merge
		top, base string
		err       error
	}{
		{hypervisor.Merge{Target: "vda", Top: "/i/c", Base: "/i/b", Active: true}, "vda[3]", "vda[5]", nil},
		{hypervisor.Merge{Target: "vda", Top: "/i/b", Base: "/i/a"}, "vda[5]", "vda[1]", nil},
		{hypervisor.Merge{Target: "vda", Top: "/i/b", Base: "/i/a", Active: true}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vda", Top: "/i/c", Base: "/i/b"}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vda", Top: "/i/a", Base: "/i/b"}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vda", Top: "/i/b", Base: "/i/b"}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vda", Top: "/i/c", Base: "/i/z", Active: true}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vda", Active: true}, "", "", hypervisor.ErrReplaced},
		{hypervisor.Merge{Target: "vdb", Top: "/i/c", Base: "/i/b", Active: true}, "", "", hypervisor.ErrNotFound},
	} {
		top, base, flags, err := commitArguments(live, c.merge)
		if top != c.top || base != c.base || !errors.Is(err, c.err) {
			t.Errorf("%+v: %q, %q, %v", c.merge, top, base, err)
		}
		if err == nil && (flags&libvirt.DOMAIN_BLOCK_COMMIT_ACTIVE != 0) != c.merge.Active {
			t.Errorf("%+v: flags %v", c.merge, flags)
		}
	}
}

func TestSyncDefinition(t *testing.T) {
	want := parse(t, rich)
	dir := t.TempDir()
	if err := syncDefinition(dir, "web1", want); err == nil {
		t.Error("a missing file went well")
	}
	path := filepath.Join(dir, "web1.xml")
	if err := os.WriteFile(path, []byte(rich), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syncDefinition(dir, "web1", want); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(rich, "/i/over", "/i/base", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syncDefinition(dir, "web1", want); err == nil {
		t.Error("a file that names another image went well")
	}
	if err := syncDefinition(filepath.Join(dir, "none"), "web1", want); err == nil {
		t.Error("a missing directory went well")
	}
	if err := syncDefinition(dir, "../web1", want); err == nil {
		t.Error("a name with a slash went well")
	}
}

func TestNoXMLIsAnError(t *testing.T) {
	for _, text := range []string{"", "x", "<a/>", "<domain>", "<x:domain/>", "<!-- -->", "<domain></domain", "<domain a=b/>"} {
		if _, err := parseDefinition(text); err == nil {
			t.Errorf("%q was taken for a definition", text)
		}
	}
}

func FuzzDefinition(f *testing.F) {
	f.Add(rich)
	f.Add(
		withDisk(
			`<disk type='file'><source file='/i/a' index='1'/><backingStore><backingStore/></backingStore><target dev='vda'/></disk>`,
		),
	)
	f.Add(`<domain><os firmware='efi'/><metadata><a xmlns='https://vpssnapd.org/xmlns/snapshot/1'/></metadata></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDefinition(text)
		if err != nil {
			return
		}
		d.agent()
		d.nvram()
		d.tpm()
		if _, err := d.metadata(); err != nil {
			return
		}
		for _, disk := range d.disks() {
			if _, err := d.snapshotXML([]hypervisor.DiskSwitch{{Target: disk.Target, Overlay: "/i/o"}}); err != nil {
				t.Errorf("no snapshot of %q: %v", disk.Target, err)
			}
			if layers, err := d.layers(disk.Target); err != nil || len(layers) == 0 {
				t.Errorf("no layers of %q: %v", disk.Target, err)
			}
			source := hypervisor.DiskSource{Target: disk.Target, Path: "/i/new", Format: "raw"}
			if d.pointDisk(source, "/i/below") != nil {
				continue
			}
			edited, err := d.text()
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseDefinition(edited)
			if err != nil {
				t.Fatalf("the edited definition is no XML: %v\n%s", err, edited)
			}
			if got := readDisk(again.disk(disk.Target)); got.Path != source.Path || got.Format != "raw" {
				t.Errorf("%q reads as %+v", disk.Target, got)
			}
		}
	})
}
