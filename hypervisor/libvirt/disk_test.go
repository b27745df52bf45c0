package libvirt_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/beevik/etree"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
)

// richDisks is a disk for each child and attribute of <disk> that libvirt 9.0 knows and QEMU
// starts with a plain file. %s is its image.
var richDisks = map[string]string{
	"vda": `<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback' io='threads' error_policy='stop'
		rerror_policy='report' discard='unmap' detect_zeroes='unmap' copy_on_read='off' iothread='1' queues='1' queue_size='128'
		ioeventfd='on' event_idx='on' iommu='off' ats='off' packed='off' page_per_vq='off'>
		<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver>
		<source file='%s' startupPolicy='optional'><seclabel model='dac' relabel='no'/></source>
		<target dev='vda' bus='virtio'/><boot order='2'/><alias name='ua-first'/><serial>one</serial>
		<blockio logical_block_size='512' physical_block_size='4096'/></disk>`,
	"vdb": `<disk type='file' device='disk' model='virtio-non-transitional' snapshot='external'><driver name='qemu' type='qcow2'>
		<metadata_cache><max_size unit='MiB'>2</max_size></metadata_cache></driver>
		<source file='%s'/><backingStore/><target dev='vdb' bus='virtio'/>
		<iotune><total_bytes_sec>9000000</total_bytes_sec><total_iops_sec>5000</total_iops_sec>
		<total_bytes_sec_max>10000000</total_bytes_sec_max><total_bytes_sec_max_length>2</total_bytes_sec_max_length>
		<size_iops_sec>4096</size_iops_sec><group_name>group</group_name></iotune></disk>`,
	"vdc": `<disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe'/>
		<source file='%s'><seclabel model='dac' relabel='yes'><label>root:root</label></seclabel></source>
		<backingStore/><target dev='vdc' bus='virtio'/></disk>`,
	"sda": `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
		<target dev='sda' bus='scsi' rotation_rate='1'/><serial>two</serial><wwn>5000c50015ea71ad</wwn>
		<vendor>VENDOR</vendor><product>PRODUCT</product><address type='drive' controller='0' bus='0' target='0' unit='4'/></disk>`,
	"sdb": `<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='%s'/>
		<target dev='sdb' bus='usb' removable='on'/></disk>`,
	"hda": `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/>
		<target dev='hda' bus='ide'/><boot order='1'/><geometry cyls='16' heads='16' secs='63' trans='lba'/></disk>`,
	"vdd": `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
		<backingStore type='file'><format type='qcow2'/><source file='BACKING'><seclabel model='dac' relabel='no'/></source>
		<backingStore/></backingStore><target dev='vdd' bus='virtio'/></disk>`,
}

// laterDisks are the ones with what libvirt 9.0 does not know yet and 11.3 does.
var laterDisks = map[string]string{
	"vde": `<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap' discard_no_unref='on' queues='2'>
		<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>
		<iothreads><iothread id='1'><queue id='0'/></iothread><iothread id='2'><queue id='1'/></iothread></iothreads></driver>
		<source file='%s'/><target dev='vde' bus='virtio'/><blockio discard_granularity='4096'/></disk>`,
	"vdf": `<disk type='file' device='disk'><driver name='qemu' type='raw' queues='2'>
		<iothreads><iothread id='2'/><iothread id='1'/></iothreads></driver>
		<source file='%s'/><target dev='vdf' bus='virtio'/></disk>`,
	"vdg": `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
		<target dev='vdg' bus='virtio'/>
		<throttlefilters><throttlefilter group='slow'/><throttlefilter group='slower'/></throttlefilters></disk>`,
	"vdh": `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/>
		<target dev='vdh' bus='virtio'/><throttlefilters><throttlefilter group='slow'/></throttlefilters></disk>`,
	"hdb": `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
		<target dev='hdb' bus='ide'/><product>A product of 40 letters, as of libvirt 9</product></disk>`,
}

// laterWords are in a dump of them, if libvirt has kept everything that is new in them.
var laterWords = map[string][]string{
	"vde": {"discard_no_unref", "discard_granularity", "<queue id=\"1\"/>"},
	"vdf": {"<iothread id=\"2\"/>"},
	"vdg": {"group=\"slow\"", "group=\"slower\""},
	"vdh": {"group=\"slow\""},
	"hdb": {"of 40 letters"},
}

// throttleGroups are what their filters name.
const throttleGroups = `<throttlegroups>
	<throttlegroup><group_name>slow</group_name><total_bytes_sec>90000000</total_bytes_sec></throttlegroup>
	<throttlegroup><group_name>slower</group_name><total_iops_sec>50000</total_iops_sec></throttlegroup></throttlegroups>`

// withLater adds the later disks to a domain where libvirt knows them.
func withLater(t *testing.T, l *lab.Lab, spec *lab.Spec) map[string]string {
	t.Helper()
	disks := maps.Clone(richDisks)
	var major, minor int
	_, version, _ := strings.Cut(virsh(t, l, "version"), "Using library: libvirt ")
	if _, err := fmt.Sscanf(version, "%d.%d.", &major, &minor); err != nil {
		t.Fatalf("virsh tells no version: %v", err)
	}
	if major > 11 || major == 11 && minor >= 3 {
		maps.Copy(disks, laterDisks)
		spec.Extra += throttleGroups
	}
	return disks
}

func defineRich(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	spec := lab.Spec{Name: name, Extra: "<iothreads>2</iothreads>", Devices: "<controller type='scsi' model='virtio-scsi'/>"}
	rich := withLater(t, l, &spec)
	template := filepath.Join(l.ImageDir(), name+"-template.qcow2")
	var disks []string
	made := lab.Spec{Name: name + "-images", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: mib, Path: template}}}
	for _, target := range slices.Sorted(maps.Keys(rich)) {
		format := "qcow2"
		if strings.Contains(rich[target], "type='raw'") {
			format = "raw"
		}
		path := filepath.Join(l.ImageDir(), name+"-"+target)
		d := lab.DiskSpec{Target: target, SizeBytes: mib, Format: format, Path: path}
		if target == "vdd" {
			d.Backing, d.BackingFormat = template, "qcow2"
		}
		made.Disks = append(made.Disks, d)
		disks = append(disks, strings.ReplaceAll(fmt.Sprintf(rich[target], path), "BACKING", template))
	}
	made.Disks[0].Target = "vdz"
	_, err := l.DefineDomain(t.Context(), made)
	must(t, err)
	virsh(t, l, "undefine", made.Name)
	spec.Devices = strings.Replace(spec.Devices, "model='none'", "", 1) + strings.Join(disks, "\n")
	text, err := l.DomainXML(t.Context(), spec)
	must(t, err)
	text = strings.Replace(text, "<controller type='usb' model='none'/>", "<controller type='usb' model='qemu-xhci'/>", 1)
	must(t, l.DefineXML(t.Context(), text))
	return strings.TrimSpace(virsh(t, l, "domuuid", name))
}

// disksOf is each disk of a definition as text, without the numbers that libvirt gives anew to images in use.
func disksOf(t *testing.T, l *lab.Lab, id string, flags ...string) map[string]string {
	t.Helper()
	doc := etree.NewDocument()
	must(t, doc.ReadFromString(virsh(t, l, append([]string{"dumpxml", "--security-info", id}, flags...)...)))
	disks := map[string]string{}
	for _, e := range doc.FindElements("/domain/devices/disk") {
		for _, numbered := range append(e.FindElements(".//source"), e.FindElements(".//backingStore")...) {
			numbered.RemoveAttr("index")
		}
		text := etree.NewDocumentWithRoot(e.Copy())
		text.Indent(2)
		s, err := text.WriteToString()
		must(t, err)
		disks[e.FindElement("target").SelectAttrValue("dev", "")] = s
	}
	return disks
}

// FAULTS.md row 37: whatever is done with a disk's images, on or off, libvirt's dumps say of
// the disk what they said before, and of an overlay what they said of its base.
func TestADiskKeepsWhatIsSaidOfIt(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	for _, c := range []struct{ take, replace, remove string }{
		{"on", "", "on"}, {"off", "", "off"}, {"off", "", "on"}, {"on", "off", "on"}, {"off", "on", "off"},
	} {
		name := "take-" + c.take + "-replace-" + c.replace + "-delete-" + c.remove
		t.Run(name, func(t *testing.T) {
			r := &rich{T: t, Lab: l, h: h, id: defineRich(t, l, name)}
			r.power("on")
			r.live, r.next = disksOf(t, l, r.id), disksOf(t, l, r.id, "--inactive")
			r.knowsLater()
			r.power(c.take)
			bases := r.take(".one")
			if c.replace != "" {
				r.power(c.replace)
				middle := r.take(".two")
				r.mergeMiddle(middle, bases)
			}
			r.power(c.remove)
			r.merge(bases)
			r.same("next boot", disksOf(t, l, r.id, "--inactive"), r.next)
			r.power("on")
			r.same("running", disksOf(t, l, r.id), r.live)
			r.power("off")
			virsh(t, l, "undefine", r.id)
		})
	}
}

// rich is a domain with richDisks in a test.
type rich struct {
	*testing.T
	*lab.Lab
	h          *libvirt.Host
	id         string
	live, next map[string]string
}

// knowsLater checks that the test compares what it was made to compare.
func (r *rich) knowsLater() {
	r.Helper()
	for target, words := range laterWords {
		for _, word := range words {
			if text, there := r.live[target]; there && !strings.Contains(text, word) {
				r.Errorf("libvirt does not keep %s of disk %s:\n%s", word, target, text)
			}
		}
	}
}

func (r *rich) power(want string) {
	r.Helper()
	if want == "on" {
		must(r, r.h.Start(r.Context(), r.id, true)) // with nothing to boot it would not rest
	} else {
		must(r, r.h.PowerOff(r.Context(), r.id))
	}
}

func (r *rich) domain() hypervisor.Domain {
	r.Helper()
	d, err := r.h.Domain(r.Context(), r.id)
	must(r, err)
	return d
}

// take puts an overlay on each disk, and returns what the disks used before.
func (r *rich) take(suffix string) []hypervisor.Disk {
	r.Helper()
	d := r.domain()
	var switches []hypervisor.DiskSwitch
	for _, disk := range d.Disks {
		o := hypervisor.Overlay{Path: disk.Path + suffix, Base: disk.Path, BaseFormat: disk.Format, SizeBytes: disk.SizeBytes}
		_, err := r.h.CreateOverlay(r.Context(), o)
		must(r, err)
		switches = append(switches, hypervisor.DiskSwitch{Target: disk.Target, Overlay: o.Path})
	}
	must(r, r.h.SwitchToOverlays(r.Context(), r.id, switches))
	must(r, r.h.SyncDefinition(r.Context(), r.id))
	r.onOverlays(switches)
	return d.Disks
}

// onOverlays checks that the disks differ in nothing but the image and what lies below.
func (r *rich) onOverlays(switches []hypervisor.DiskSwitch) {
	r.Helper()
	on := func(disks map[string]string) map[string]string {
		want := map[string]string{}
		for _, s := range switches {
			e := parseDisk(r, disks[s.Target])
			e.FindElement("driver").CreateAttr("type", "qcow2")
			e.FindElement("source").CreateAttr("file", s.Overlay)
			want[s.Target] = withoutChain(r, e)
		}
		return want
	}
	r.same("next boot on the overlays", chainless(r, disksOf(r.T, r.Lab, r.id, "--inactive")), on(r.next))
	if r.domain().State != hypervisor.Off {
		r.same("running on the overlays", chainless(r, disksOf(r.T, r.Lab, r.id)), on(r.live))
	}
}

// mergeMiddle merges the layers between the present overlays and the bases.
func (r *rich) mergeMiddle(middle, bases []hypervisor.Disk) {
	r.Helper()
	var sources []hypervisor.DiskSource
	d := r.domain()
	for i, disk := range d.Disks {
		top, base := middle[i].Path, bases[i]
		if d.State != hypervisor.Off {
			must(r, r.h.StartMerge(r.Context(), r.id, hypervisor.Merge{Target: disk.Target, Top: top, Base: base.Path}))
			until(r.T, "the end of the merge", func() bool {
				job, err := r.h.MergeJob(r.Context(), r.id, disk.Target)
				must(r, err)
				return !job.Found
			})
		} else {
			must(r, r.h.MergeOffline(r.Context(),
				hypervisor.OfflineMerge{Overlay: top, Base: base.Path, BaseFormat: base.Format}, nil))
			must(r, r.h.Rebase(r.Context(), disk.Path, base.Path, base.Format))
		}
		sources = append(sources, hypervisor.DiskSource{Target: disk.Target, Path: disk.Path, Format: "qcow2"})
	}
	must(r, r.h.PointDisks(r.Context(), r.id, sources))
	for _, disk := range middle {
		if d := r.domain(); d.Uses(disk.Path) {
			r.Fatalf("a definition still names %s", disk.Path)
		}
	}
}

// merge merges the overlays into the bases, and makes the disks use those.
func (r *rich) merge(bases []hypervisor.Disk) {
	r.Helper()
	var sources []hypervisor.DiskSource
	d := r.domain()
	for i, disk := range d.Disks {
		base := bases[i]
		if d.State != hypervisor.Off {
			m := hypervisor.Merge{Target: disk.Target, Top: disk.Path, Base: base.Path, Active: true}
			must(r, r.h.StartMerge(r.Context(), r.id, m))
			until(r.T, "the merge to be ready", func() bool {
				job, err := r.h.MergeJob(r.Context(), r.id, disk.Target)
				must(r, err)
				return job.Ready
			})
			must(r, r.h.Pivot(r.Context(), r.id, disk.Target))
		} else {
			must(r, r.h.MergeOffline(r.Context(),
				hypervisor.OfflineMerge{Overlay: disk.Path, Base: base.Path, BaseFormat: base.Format}, nil))
		}
		sources = append(sources, hypervisor.DiskSource{Target: disk.Target, Path: base.Path, Format: base.Format})
	}
	must(r, r.h.PointDisks(r.Context(), r.id, sources))
}

func (r *rich) same(what string, got, want map[string]string) {
	r.Helper()
	for _, target := range slices.Sorted(maps.Keys(want)) {
		if got[target] != want[target] {
			r.Errorf("%s: disk %s is\n%swant\n%s", what, target, got[target], want[target])
		}
	}
}

func parseDisk(t testing.TB, text string) *etree.Element {
	t.Helper()
	doc := etree.NewDocument()
	must(t, doc.ReadFromString(text))
	return doc.Root()
}

func withoutChain(t testing.TB, disk *etree.Element) string {
	t.Helper()
	if chain := disk.SelectElement("backingStore"); chain != nil {
		disk.RemoveChild(chain)
	}
	doc := etree.NewDocumentWithRoot(disk)
	doc.Indent(2)
	text, err := doc.WriteToString()
	must(t, err)
	return text
}

func chainless(t testing.TB, disks map[string]string) map[string]string {
	t.Helper()
	bare := map[string]string{}
	for target, text := range disks {
		bare[target] = withoutChain(t, parseDisk(t, text))
	}
	return bare
}
