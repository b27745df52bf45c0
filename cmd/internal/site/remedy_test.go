package site_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/hypervisor/lab"
)

// situation is what brings doctor to print a remedy, which is then run as it is printed.
type situation struct {
	kind  api.RemedyKind
	code  api.CheckCode // of the finding that offers it
	state string
	make  func(p *patient)
	// edit is the definition that the operator types in virsh edit.
	edit func(p *patient) string
	// looks: the commands only show something, and must show this; the finding stays.
	looks func(p *patient) string
	// then are the remedies that doctor offers afterwards, until the finding is gone.
	then []api.RemedyKind
	// between is what happens by itself before them, as that the guest goes off.
	between func(p *patient)
	// gone: the snapshot is given up or was replaced, as the remedy says.
	gone bool
}

const (
	on  = "running"
	off = "shut off"
)

func atBase(p *patient) string    { return p.before }
func atOverlay(p *patient) string { return p.after }

var situations = map[string]situation{
	"base moved aside":    {kind: "put_back", code: "missing_base", state: on, make: func(p *patient) { p.aside(p.base("vda")) }},
	"overlay moved aside": {kind: "put_back", code: "missing_overlay", state: off, make: func(p *patient) { p.aside(p.overlay("vda")) }},
	"base moved away": {kind: "find_file", code: "missing_base", state: off, make: func(p *patient) { p.away(p.base("vda")) },
		looks: func(p *patient) string { return p.hidden }},
	"overlay removed under QEMU": {kind: "rescue_disk", code: "missing_overlay", state: on,
		make: func(p *patient) { p.must(os.Remove(p.overlay("vda"))) }, then: []api.RemedyKind{"merge_and_give_up"}, gone: true},
	"overlay copied under QEMU": {kind: "rescue_disk", code: "replaced_overlay", state: on,
		make: func(p *patient) { p.copied(p.overlay("vda")) }, then: []api.RemedyKind{"merge_and_give_up"}, gone: true},
	"base replaced": {kind: "put_aside", code: "replaced_base", state: off, make: func(p *patient) { p.swapped(p.base("vda")) }},
	"overlay replaced, and the name for the wrong one taken": {kind: "put_aside", code: "replaced_overlay", state: off,
		make: func(p *patient) {
			p.swapped(p.overlay("vdb"))
			p.must(os.WriteFile(p.overlay("vdb")+".put-aside", []byte("kept"), 0o600))
		}},
	"base replaced under QEMU": {kind: "shut_down", code: "replaced_base", state: on, make: func(p *patient) { p.swapped(p.base("vda")) },
		between: (*patient).goesOff, then: []api.RemedyKind{"put_aside"}},
	"header changed": {kind: "rewrite_header", code: "overlay_header_differs", state: off, make: (*patient).otherHeader},
	"header changed under QEMU": {kind: "shut_down", code: "overlay_header_differs", state: on, make: (*patient).otherHeader,
		between: (*patient).goesOff, then: []api.RemedyKind{"rewrite_header"}},
	"base touched, and vouched for": {kind: "vouch", code: "base_written", state: on, make: (*patient).touched},
	"base touched, off":             {kind: "vouch", code: "base_written", state: off, make: (*patient).touched},
	"base touched, and merged": {kind: "merge_by_hand", code: "base_written", state: on, make: (*patient).touched,
		then: []api.RemedyKind{"merge_and_give_up"}, gone: true},
	"disk taken out": {kind: "attach_disk", code: "disk_set_changed", state: on,
		make: func(p *patient) { p.virsh("detach-disk", p.name, "vdb", "--config") }},
	"disk taken out, off": {kind: "attach_disk", code: "disk_set_changed", state: off,
		make: func(p *patient) { p.virsh("detach-disk", p.name, "vdb", "--config") }},
	"a job of somebody else": {kind: "end_job", code: "foreign_job", state: on, make: func(p *patient) {
		p.virsh("blockcopy", p.name, "vda", "--dest", p.file("copy"), "--format", "qcow2", "--transient-job")
	}},
	"another image defined":     {kind: "use_overlay", code: "disk_moved", state: off, make: (*patient).movedDisk, edit: atOverlay},
	"another image defined, on": {kind: "use_overlay", code: "disk_moved", state: on, make: (*patient).movedDisk, edit: atOverlay},
	"another image, and meant":  {kind: "merge_and_give_up", code: "disk_moved", state: off, make: (*patient).movedDisk, edit: (*patient).movedAtBase, gone: true},
	"base defined and written":  {kind: "merge_and_give_up", code: "definition_names_base", state: off, make: (*patient).wentOnWithBase, gone: true},
	"base defined, overlay good": {kind: "use_overlay", code: "definition_names_base", state: off, make: (*patient).touchedAndDefined, edit: atOverlay,
		then: []api.RemedyKind{"vouch"}},
	"overlay on top":      {kind: "merge_foreign_overlay", code: "foreign_snapshot", state: on, make: (*patient).onTop},
	"overlay on top, off": {kind: "merge_foreign_overlay", code: "foreign_snapshot", state: off, make: (*patient).onTop},
	"overlay on top at the next boot": {kind: "use_overlay", code: "foreign_snapshot", state: on, make: (*patient).onTopNext,
		edit: atOverlay},
	"libvirt's snapshot left": {kind: "forget_libvirt_snapshots", code: "foreign_snapshot", state: on, make: func(p *patient) {
		p.onTop()
		p.virsh("blockcommit", p.name, "vda", "--top", p.file("top"), "--base", p.overlay("vda"), "--active", "--pivot", "--wait")
	}},
	"undefined while it runs": {kind: "define_again", code: "vps_gone", state: on, make: func(p *patient) { p.virsh("undefine", p.name) }},
	"undefined, for good": {kind: "give_up_gone", code: "vps_gone", state: off, make: func(p *patient) { p.virsh("undefine", p.name) },
		then: []api.RemedyKind{"cancel_option"}, gone: true},
	"name given away": {kind: "define_gone", code: "vps_redefined", state: off, make: (*patient).givenAway,
		looks: func(p *patient) string { return p.name2 }},
	"resized": {kind: "replace_snapshot", code: "disk_resized", state: on, gone: true,
		make: func(p *patient) { p.virsh("blockresize", p.name, "vda", "24M"); p.lookAgain() }},
	"open to all":       {kind: "set_rights", code: "wrong_mode_or_owner", state: on, make: func(p *patient) { p.must(os.Chmod(p.overlay("vda"), 0o644)) }},
	"open to all, off":  {kind: "set_rights", code: "wrong_mode_or_owner", state: off, make: func(p *patient) { p.must(os.Chmod(p.overlay("vdb"), 0o664)) }},
	"an old definition": {kind: "use_base", code: "stale_overlay", state: off, make: (*patient).oldDefinition, edit: atBase, gone: true},
	"an old definition at the next boot": {kind: "use_base", code: "stale_overlay", state: on, make: (*patient).oldDefinition, edit: atBase,
		gone: true},
	"metadata of nothing": {kind: "remove_metadata", code: "unrecorded_snapshot", state: off, make: (*patient).oldMetadata, gone: true},
	"an overlay renamed": {kind: "look_at_layers", code: "unrecorded_snapshot", state: off, make: (*patient).renamedOverlay,
		looks: func(p *patient) string { return p.hidden }},
}

// TestRemedies (FAULTS row 31; issue "doctor never prints a command that could hurt"): every
// remedy is run as doctor prints it, in its situation. What the guest and the snapshot hold is
// the same afterwards, and the finding is gone.
func TestRemedies(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.must(os.WriteFile(h.editor(), []byte("#!/bin/sh\nexec cp -- \"$EDITED\" \"$1\"\n"), 0o700))
	for what, s := range situations {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			(&host{h.Site, t}).remedied(what, s)
		})
	}
}

// TestEveryRemedyIsRun: a remedy that no situation of the tests runs is not to be printed.
func TestEveryRemedyIsRun(t *testing.T) {
	t.Parallel()
	ran := map[api.RemedyKind]bool{}
	for _, s := range situations {
		for _, kind := range append(s.then, s.kind) {
			ran[kind] = true
		}
	}
	for kind := range ofTheHost {
		ran[kind] = true
	}
	for _, kind := range slices.Concat(daemontest.RemediesOnFake(), daemontest.RemediesOfStrikes()) {
		ran[api.RemedyKind(kind)] = true
	}
	for _, kind := range daemontest.Remedies(t) {
		if !ran[api.RemedyKind(kind)] {
			t.Errorf("no situation runs the remedy %s", kind)
		}
	}
}

// ofTheHost tell of the host as a whole, or only when every image can be read.
var ofTheHost = map[api.RemedyKind]func(h *host){
	"remove_file": (*host).removesFile, "leave_file": (*host).leavesFile,
	"take_rights_away": (*host).takesRights, "see_libvirt": (*host).seesLibvirt,
}

// TestRemediesOfTheHost does the same for those.
func TestRemediesOfTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(twoDisks("known"), off) // our files are looked for where disks lie
	h.take("known", api.TakeRequest{})
	for kind, test := range ofTheHost {
		t.Run(string(kind), func(t *testing.T) { test(&host{h.Site, t}) })
	}
}

// patient is a VPS with a snapshot in a situation.
type patient struct {
	*host
	name, name2     string
	own, id         string // the VPS's id, and that of the VPS which the finding is about
	before, after   string // its definitions, without and with the snapshot
	bases, overlays map[string]string
	guest, snap     map[string]string // hashes of the disks
	hidden          string
	edit            func(p *patient) string
}

// remedied brings the situation about, and does what doctor prints.
func (h *host) remedied(what string, s situation) {
	h.t.Helper()
	p := h.patient(what, s)
	s.make(p)
	id := p.id
	var found api.Finding
	for n, kind := range append([]api.RemedyKind{s.kind}, s.then...) {
		if n == 1 && s.between != nil {
			s.between(p)
		}
		f, r := p.offered(kind, s.code, n > 0)
		if n == 0 {
			found = f
		}
		out := p.run(r)
		if s.looks != nil && !strings.Contains(out, s.looks(p)) {
			h.t.Errorf("it does not show %q:\n%s", s.looks(p), out)
		}
		p.id = id
	}
	if !h.defined(p.name) {
		h.must(h.Lab.DefineXML(h.t.Context(), p.after))
	}
	defer p.finish()
	if s.looks != nil {
		return
	}
	for _, f := range p.findings() {
		if f.Code == s.code && f.Disk == found.Disk {
			h.t.Errorf("doctor still finds %+v", f)
		}
	}
	p.holdsStill(s)
}

// patient makes a VPS with odd names and a snapshot.
func (h *host) patient(what string, s situation) *patient {
	h.t.Helper()
	p := &patient{host: h, name: "it's 5%41 " + strings.ReplaceAll(what, ",", ""), edit: s.edit, bases: map[string]string{}, overlays: map[string]string{}}
	spec := twoDisks(p.name)
	for n := range spec.Disks {
		d := &spec.Disks[n]
		d.Path = p.file(d.Target)
		p.bases[d.Target] = d.Path
	}
	p.own = h.define(spec, s.state)
	p.id = p.own
	p.before = h.virsh("dumpxml", "--inactive", "--security-info", p.name)
	h.fill(p.name, 'a')
	p.snap = p.hashes()
	h.take(p.name, api.TakeRequest{})
	p.after = h.virsh("dumpxml", "--inactive", "--security-info", p.name)
	for target := range p.bases {
		p.overlays[target] = h.path(p.name, target)
	}
	h.fill(p.name, 'b')
	p.lookAgain()
	return p
}

func (p *patient) file(what string) string {
	return filepath.Join(p.Lab.ImageDir(), "-"+p.name+" $(x) "+what+".img")
}

func (p *patient) base(target string) string    { return p.bases[target] }
func (p *patient) overlay(target string) string { return p.overlays[target] }
func (p *patient) lookAgain()                   { p.t.Helper(); p.guest = p.hashes() }

func (p *patient) hashes() map[string]string {
	p.t.Helper()
	sums := map[string]string{}
	for target := range p.bases {
		sum, err := p.Lab.HashDisk(p.t.Context(), p.name, target)
		p.must(err)
		sums[target] = sum
	}
	return sums
}

func (h *host) defined(name string) bool {
	_, err := h.Lab.Virsh(h.t.Context(), "domstate", name)
	return err == nil
}

// findings are those of the VPS.
func (p *patient) findings() []api.Finding {
	p.t.Helper()
	return slices.DeleteFunc(p.report().Findings, func(f api.Finding) bool { return f.VPS != p.id })
}

func (h *host) report() api.Report {
	h.t.Helper()
	out, errs, _ := h.CLI(h.t.Context(), "doctor", "-o", "json")
	var r api.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		h.t.Fatalf("doctor printed %q and %q: %v", out, errs, err)
	}
	return r
}

// offered is the remedy that doctor prints with the finding, or any of the VPS's.
func (p *patient) offered(kind api.RemedyKind, code api.CheckCode, any bool) (api.Finding, api.Remedy) {
	p.t.Helper()
	findings := p.findings()
	for _, f := range findings {
		for _, r := range f.Remedies {
			if r.Kind == kind && (any || f.Code == code) {
				return f, r
			}
		}
	}
	p.t.Fatalf("doctor does not offer %s for %s: %+v", kind, code, findings)
	return api.Finding{}, api.Remedy{}
}

func (h *host) editor() string { return filepath.Join(h.Lab.Dir(), "editor") }

// run gives the commands to a shell, one after the other as they are pasted.
func (p *patient) run(r api.Remedy) (out string) {
	p.t.Helper()
	edited := ""
	if p.edit != nil {
		edited = filepath.Join(p.t.TempDir(), "edited.xml")
		p.must(os.WriteFile(edited, []byte(p.edit(p)), 0o600))
	}
	return p.host.run(r, "EDITED="+edited)
}

func (h *host) run(r api.Remedy, env ...string) (out string) {
	h.t.Helper()
	for _, line := range r.Commands {
		for _, asks := range []string{"vpssnap delete", "vpssnap vouch", "vpssnap option cancel"} {
			if strings.HasPrefix(line, asks) {
				line += " --yes"
			}
		}
		cmd := exec.CommandContext(h.t.Context(), "bash", "-c", line)
		cmd.Stdin = strings.NewReader("y\n") // rm -i
		cmd.Env = append(os.Environ(), "LIBVIRT_DEFAULT_URI="+h.Lab.URI(), "VPSSNAP_SOCKET="+h.Socket(),
			"PATH="+binDir+":"+os.Getenv("PATH"), "VISUAL="+h.editor(), "EDITOR="+h.editor())
		cmd.Env = append(cmd.Env, env...)
		text, err := cmd.CombinedOutput()
		out += string(text)
		// doctor's exit code says that there is still something.
		if err != nil && !strings.HasPrefix(line, "vpssnap doctor") {
			h.t.Errorf("%s: %v\n%s", line, err, text)
		}
	}
	return out
}

// holdsStill fails unless guest and snapshot hold what they held.
func (p *patient) holdsStill(s situation) {
	p.t.Helper()
	if got := p.hashes(); !maps.Equal(got, p.guest) {
		p.t.Errorf("the guest's disks hash to %v, they did to %v", got, p.guest)
	}
	if s.gone {
		return
	}
	p.restore(p.name)
	if got := p.hashes(); !maps.Equal(got, p.snap) {
		p.t.Errorf("the restored disks hash to %v, the snapshot had %v", got, p.snap)
	}
}

// finish removes the VPS, that the others do not find what it leaves.
func (p *patient) finish() {
	p.t.Helper()
	for _, name := range []string{p.name, p.name2} {
		if name == "" {
			continue
		}
		_, err := p.Lab.Virsh(p.t.Context(), "destroy", name)
		_, err2 := p.Lab.Virsh(p.t.Context(), "undefine", "--snapshots-metadata", name)
		_ = errors.Join(err, err2) // as it may be off, or gone
	}
	for _, id := range []string{p.own, p.id} {
		// Their codes are those of a VPS that is gone, and perhaps has neither.
		p.CLI(p.t.Context(), "delete", id, "--yes")
		p.CLI(p.t.Context(), "option", "cancel", id, "--now", "--yes")
	}
	files, err := os.ReadDir(p.Lab.ImageDir())
	p.must(err)
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "-"+p.name+" $(x) ") {
			p.must(os.RemoveAll(filepath.Join(p.Lab.ImageDir(), f.Name())))
		}
	}
}

func (p *patient) aside(path string) { p.t.Helper(); p.must(os.Rename(path, path+" --x")) }

func (p *patient) away(path string) {
	p.t.Helper()
	p.must(os.Mkdir(p.file("directory"), 0o700))
	p.hidden = filepath.Join(p.file("directory"), "-n it's")
	p.must(os.Rename(path, p.hidden))
}

// copied has a copy in the file's place, and the file itself nowhere.
func (p *patient) copied(path string) {
	p.t.Helper()
	p.tool("cp", "-a", path, path+".copy")
	p.must(os.Rename(path+".copy", path))
}

// swapped has a file with other data in the place, and the right one beside it.
func (p *patient) swapped(path string) {
	p.t.Helper()
	p.aside(path)
	p.tool("qemu-img", "create", "-q", "-f", "qcow2", path, "16M")
}

// otherHeader has the overlay lie on a copy by its header. It is written into the file, as
// qemu-img minds QEMU's lock.
func (p *patient) otherHeader() {
	p.t.Helper()
	base := p.base("vda")
	other := base[:len(base)-1] + "_"
	p.tool("cp", base, other)
	file, err := os.OpenFile(p.overlay("vda"), os.O_RDWR, 0)
	p.must(err)
	defer file.Close()
	header := make([]byte, 64<<10)
	_, err = file.ReadAt(header, 0)
	p.must(err)
	at := bytes.Index(header, []byte(base))
	_, err = file.WriteAt([]byte(other), int64(at))
	p.must(err)
}

func (p *patient) goesOff() { p.t.Helper(); p.virsh("destroy", p.name) }
func (p *patient) touched() { p.t.Helper(); p.tool("touch", p.base("vdb")) }

// definition is the present one of the next boot with another image of vda.
func (p *patient) definition(text, from, to string) string {
	p.t.Helper()
	escape := strings.NewReplacer("'", "&apos;", "&", "&amp;")
	with := strings.Replace(text, escape.Replace(from), escape.Replace(to), 1)
	if with == text {
		p.t.Fatalf("%s is not in\n%s", from, text)
	}
	return with
}

// movedDisk: the next boot of vda is to use a copy that holds the same.
func (p *patient) movedDisk() {
	p.t.Helper()
	p.tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "qcow2", p.overlay("vda"), p.file("moved"))
	p.must(p.Lab.DefineXML(p.t.Context(), p.definition(p.after, p.overlay("vda"), p.file("moved"))))
}

func (p *patient) movedAtBase() string { return p.definition(p.before, p.base("vda"), p.file("moved")) }

// wentOnWithBase: the VPS was defined with its bases, and wrote to them.
func (p *patient) wentOnWithBase() {
	p.t.Helper()
	p.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 8M 4k", p.base("vda"))
	p.tool("qemu-io", "-f", "raw", "-c", "write -q -P 99 8M 4k", p.base("vdb"))
	p.must(p.Lab.DefineXML(p.t.Context(), p.before))
	p.lookAgain()
}

func (p *patient) touchedAndDefined() {
	p.t.Helper()
	p.tool("touch", p.base("vda"), p.base("vdb"))
	p.must(p.Lab.DefineXML(p.t.Context(), p.before))
}

func (p *patient) onTop() {
	p.t.Helper()
	p.virsh("snapshot-create-as", p.name, "--name", "-- it's $(by) hand", "--disk-only", "--diskspec",
		"vda,snapshot=external,file="+p.file("top"), "--diskspec", "vdb,snapshot=no")
}

func (p *patient) onTopNext() {
	p.t.Helper()
	p.tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", p.overlay("vda"), "-F", "qcow2", p.file("top"), "16M")
	p.must(p.Lab.DefineXML(p.t.Context(), p.definition(p.after, p.overlay("vda"), p.file("top"))))
}

// givenAway: another VPS bears the name.
func (p *patient) givenAway() {
	p.t.Helper()
	p.virsh("undefine", p.name)
	other, err := p.Lab.DefineDomain(p.t.Context(), lab.Spec{Name: p.name, Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 1 << 20, Path: p.file("another")}}})
	p.must(err)
	p.name2 = other
	p.eventually("the other is known", func() bool { _, err := p.Client.VPS(p.t.Context(), other); return err == nil })
}

// oldDefinition: a definition from the time of a snapshot that was deleted since comes back,
// and its overlays do.
func (p *patient) oldDefinition() {
	p.t.Helper()
	for _, overlay := range p.overlays {
		p.must(os.Link(overlay, overlay+".kept"))
	}
	p.delete(p.name)
	p.lookAgain()
	for _, overlay := range p.overlays {
		p.must(os.Rename(overlay+".kept", overlay))
	}
	p.must(p.Lab.DefineXML(p.t.Context(), p.after))
}

// oldMetadata: what the definition says of a snapshot cannot be read.
func (p *patient) oldMetadata() {
	p.t.Helper()
	snap, err := p.Client.Snapshot(p.t.Context(), p.name)
	p.must(err)
	p.delete(p.name)
	p.lookAgain()
	from, to := strings.Index(p.after, "<metadata>"), strings.Index(p.after, "</metadata>")
	text := strings.ReplaceAll(p.after[from:to], snap.ID, "unreadable") + "</metadata>\n<memory "
	p.must(p.Lab.DefineXML(p.t.Context(), strings.Replace(p.before, "<memory ", text, 1)))
}

// renamedOverlay: another VPS uses a file that has the name of an overlay, and does not fit it.
func (p *patient) renamedOverlay() {
	p.t.Helper()
	p.hidden = p.file("x") + ".vpssnap-0123456789ab.vda.qcow2"
	p.tool("qemu-img", "create", "-q", "-f", "qcow2", p.file("other"), "1M")
	p.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", p.file("other"), "-F", "qcow2", p.hidden)
	p.name2 = p.name + " 2"
	p.id = p.define(lab.Spec{Name: p.name2, Disks: []lab.DiskSpec{{Target: "vda", Path: p.hidden}}}, off)
}

// removesFile: one that nobody uses goes, and nothing else.
func (h *host) removesFile() {
	path := filepath.Join(h.Lab.ImageDir(), "-it's.vpssnap-0123456789ab.vda.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	f := h.finds("orphan_overlay")
	h.run(f.Remedies[0])
	if _, err := os.Stat(path); f.Remedies[0].Kind != "remove_file" || !os.IsNotExist(err) {
		h.t.Errorf("%+v leaves %s: %v", f, path, err)
	}
	h.well()
}

// leavesFile: no removal is offered for a file on which somebody's image lies, nor for any
// while an image cannot be read to its end.
func (h *host) leavesFile() {
	path := filepath.Join(h.Lab.ImageDir(), "it's.vpssnap-0123456789ab.vda.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	top := filepath.Join(h.Lab.ImageDir(), "on it.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", top)
	h.define(lab.Spec{Name: "user", Disks: []lab.DiskSpec{{Target: "vda", Path: top}}}, off)
	r := h.finds("orphan_overlay").Remedies[0]
	if out := h.run(r); r.Kind != "leave_file" || !strings.Contains(out, top) {
		h.t.Errorf("it is told %+v, which shows %s", r, out)
	}
	h.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", filepath.Join(h.Lab.ImageDir(), "missing"), "-F", "qcow2", top)
	if r := h.finds("orphan_overlay").Remedies[0]; r.Kind != "read" {
		h.t.Errorf("with an image that cannot be read it is told %+v", r)
	}
	h.remove("user")
	h.must(errors.Join(os.Remove(path), os.Remove(top)))
	h.well()
}

func (h *host) takesRights() {
	h.must(os.Chmod(h.Database(), 0o666))
	f := h.finds("wrong_mode_or_owner")
	if f.Remedies[0].Kind != "take_rights_away" {
		h.t.Errorf("found %+v", f)
	}
	h.run(f.Remedies[0])
	h.well()
}

// seesLibvirt: while libvirt is silent, nothing is offered but to look, whatever lies about.
func (h *host) seesLibvirt() {
	path := filepath.Join(h.Lab.ImageDir(), "newest data.vpssnap-0123456789ab.vda.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	h.define(lab.Spec{Name: "user", Disks: []lab.DiskSpec{{Target: "vda", Path: path}}}, off)
	h.must(h.Lab.KillLibvirtd())
	var kinds []string
	for _, f := range h.report().Findings {
		for _, r := range f.Remedies {
			kinds = append(kinds, fmt.Sprint(r.Kind))
			if r.Kind == "see_libvirt" && r.Commands[0] != "virsh uri" {
				h.t.Errorf("told is %+v", r)
			}
		}
	}
	if !slices.Contains(kinds, "see_libvirt") || slices.Contains(kinds, "remove_file") {
		h.t.Errorf("offered are %v", kinds)
	}
	h.must(h.Lab.StartLibvirtd(h.t.Context()))
	h.reconnected()
	h.finds("unrecorded_snapshot") // it is the disk of a VPS, as is known again
	h.remove("user")
	h.must(os.Remove(path))
	h.well()
}
