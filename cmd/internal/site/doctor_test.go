package site_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// doctor runs vpssnap doctor and fails unless it finds exactly these codes and
// says so with its exit code.
func (h *host) doctor(flags []string, want ...api.CheckCode) api.Report {
	h.t.Helper()
	out, errs, code := h.CLI(h.t.Context(), append([]string{"doctor", "-o", "json"}, flags...)...)
	var r api.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		h.t.Fatalf("doctor printed %q and %q: %v", out, errs, err)
	}
	var got []api.CheckCode
	for _, f := range r.Findings {
		got = append(got, f.Code)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || code != map[bool]int{true: 0, false: 10}[len(want) == 0] {
		h.t.Fatalf("doctor found %v (exit code %d), want %v:\n%s", got, code, want, out)
	}
	return r
}

// finds is doctor for one finding.
func (h *host) finds(code api.CheckCode) api.Finding {
	h.t.Helper()
	return h.doctor(nil, code).Findings[0]
}

// well fails unless doctor finds nothing.
func (h *host) well() { h.t.Helper(); h.doctor(nil) }

// paste gives the commands of a remedy to a shell, as an operator does, who then
// says yes to what vpssnap asks.
func (h *host) paste(r api.Remedy) {
	h.t.Helper()
	for _, line := range r.Commands {
		if strings.HasPrefix(line, "vpssnap delete") || strings.HasPrefix(line, "vpssnap vouch") {
			line += " --yes"
		}
		cmd := exec.CommandContext(h.t.Context(), "bash", "-c", line)
		cmd.Env = append(
			os.Environ(), "LIBVIRT_DEFAULT_URI="+h.Lab.URI(), "VPSSNAP_SOCKET="+h.Socket(),
			"PATH="+binDir+":"+os.Getenv("PATH"),
		)
		if out, err := cmd.CombinedOutput(); err != nil && !strings.HasPrefix(line, "vpssnap doctor") {
			h.t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// TestDoctor does to VPSes with snapshots what operators and panels do, and cures
// it with nothing but the commands that doctor prints (FAULTS row 31).
func TestDoctor(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	for name, test := range map[string]func(h *host, name string){
		"on-top-running": func(h *host, name string) { h.foreignOnTop(name, "running") },
		"base-defined":   (*host).baseDefined,
		"base-away":      (*host).baseAway,
		"overlay-gone":   (*host).overlayGone,
		"orphan":         (*host).orphan,
		"resized":        (*host).resized,
		"by-hand-merged": (*host).mergedByHand,
		"renamed":        (*host).renamed,
		"given-away":     (*host).givenAway,
		"copied-off":     func(h *host, name string) { h.copied(name, "shut off") },
		"copied-running": func(h *host, name string) { h.copied(name, "running") },
		"copied-under":   (*host).copiedUnder,
		"touched":        (*host).touched,
	} {
		ok := t.Run(name, func(t *testing.T) {
			h := &host{h.Site, t}
			test(h, name)
			h.well()
		})
		if !ok {
			return // the others would find what it has left
		}
	}
}

// snapped makes a VPS with two disks and a snapshot, and writes before and after it.
func (h *host) snapped(name, state string) (id string) {
	h.t.Helper()
	id = h.define(twoDisks(name), state)
	h.fill(name, 'a')
	h.take(name, api.TakeRequest{})
	h.fill(name, 'b')
	h.well()
	return id
}

func twoDisks(name string) lab.Spec {
	return lab.Spec{
		Name:  name,
		Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}, {Target: "vdb", SizeBytes: 16 << 20, Format: "raw"}},
	}
}

func (h *host) fill(name string, pattern byte) {
	h.t.Helper()
	for _, target := range []string{"vda", "vdb"} {
		h.must(h.Lab.WriteDisk(h.t.Context(), name, target, 0, pattern, 1<<20))
	}
}

func (h *host) holds(name string, pattern byte) {
	h.t.Helper()
	for _, target := range []string{"vda", "vdb"} {
		h.must(h.Lab.CheckDisk(h.t.Context(), name, target, 0, pattern, 1<<20))
	}
}

// works restores and deletes the snapshot, byte for byte, and removes the VPS.
func (h *host) works(name string) {
	h.t.Helper()
	h.holds(name, 'b')
	h.restore(name)
	h.holds(name, 'a')
	h.well()
	h.remove(name)
}

// remove ends a VPS and everything about it.
func (h *host) remove(name string) {
	h.t.Helper()
	if h.has(name) {
		h.delete(name)
	}
	_, err := h.Client.CancelOption(h.t.Context(), name, true)
	h.must(err)
	if h.state(name) != "shut off" {
		h.virsh("destroy", name)
	}
	h.virsh("undefine", name)
}

func (h *host) foreignOnTop(name, state string) {
	h.snapped(name, state)
	for _, target := range []string{"vda", "vdb"} {
		top := filepath.Join(h.Lab.ImageDir(), name+" it's "+target+".qcow2")
		other := map[string]string{"vda": "vdb", "vdb": "vda"}[target]
		h.virsh(
			"snapshot-create-as", name, "by hand", "--disk-only", "--diskspec", target+",snapshot=external,file="+top,
			"--diskspec", other+",snapshot=no",
		)
		f := h.finds("foreign_snapshot")
		if f.VPSName != name || f.Disk != target || f.Path != top || f.Repairable {
			h.t.Errorf("found %+v", f)
		}
		h.doctor([]string{"--repair"}, "foreign_snapshot")
		h.paste(f.Remedies[0])
		h.well()
		h.must(os.Remove(top))
		if got := h.state(name); got != state {
			h.t.Errorf("the VPS is %s, it was %s", got, state)
		}
	}
	h.works(name)
}

// baseDefined: a panel defines the VPS from its own database. It is put right by
// itself where that is safe; where it is not, nothing is done, and it is said.
func (h *host) baseDefined(name string) {
	h.define(twoDisks(name), "running")
	panels := h.virsh("dumpxml", "--inactive", "--security-info", name)
	h.take(name, api.TakeRequest{})
	overlay := h.path(name, "vda")
	h.must(h.Lab.DefineXML(h.t.Context(), panels))
	h.eventually("the definition names the overlay again", func() bool {
		return strings.Contains(h.virsh("domblklist", "--inactive", name), overlay)
	})
	h.eventually("nothing is left of it", func() bool {
		out, _, code := h.CLI(h.t.Context(), "doctor")
		return code == 0 && strings.Contains(out, "All is well")
	})
	h.virsh("destroy", name)
	base, _, _ := strings.Cut(overlay, ".vpssnap-")
	h.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 99 8M 4k", base)
	h.must(h.Lab.DefineXML(h.t.Context(), panels))
	r := h.doctor([]string{"--repair"}, "base_written", "definition_names_base", "definition_names_base")
	for _, f := range r.Findings {
		if f.Code == "definition_names_base" && f.Disk == "vda" {
			h.paste(f.Remedies[0]) // the base is what counts
		}
	}
	h.doctor(nil, "orphan_overlay", "orphan_overlay")
	if h.has(name) {
		h.t.Error("the snapshot was not given up")
	}
	h.removeOurs()
	h.remove(name)
}

func (h *host) removeOurs() {
	h.t.Helper()
	files, err := h.OurFiles()
	h.must(err)
	for _, f := range files {
		h.must(os.Remove(filepath.Join(h.Lab.ImageDir(), f)))
	}
}

// baseAway: the snapshot's data is moved away and back (FAULTS row 32).
func (h *host) baseAway(name string) {
	h.snapped(name, "running")
	base, _, _ := strings.Cut(h.path(name, "vda"), ".vpssnap-")
	h.must(os.Rename(base, base+".moved by hand"))
	f := h.finds("missing_base")
	s, err := h.Client.Snapshot(h.t.Context(), name)
	h.must(err)
	if s.State != "broken" || !strings.Contains(s.Reason, "base is missing") || f.Path != base {
		h.t.Errorf("the snapshot is %s: %s; found %+v", s.State, s.Reason, f)
	}
	h.refused("vps_changed", "broken")(h.Client.Restore(h.t.Context(), name, api.RestoreRequest{Confirm: s.ID}))
	h.must(h.Lab.WriteDisk(h.t.Context(), name, "vda", 2<<20, 'c', 1<<20))
	h.paste(f.Remedies[0])
	h.well()
	h.works(name)
}

// overlayGone: the file that a running VPS writes to is removed. Its data is
// saved out of the running VPS, and the snapshot given up.
func (h *host) overlayGone(name string) {
	id := h.snapped(name, "running")
	h.must(os.Remove(h.path(name, "vda")))
	f := h.finds("missing_overlay")
	rescue := slices.IndexFunc(
		f.Remedies, func(r api.Remedy) bool { return strings.Contains(strings.Join(r.Commands, " "), "blockcopy") },
	)
	if rescue < 0 || f.VPS != id {
		h.t.Fatalf("no rescue in %+v", f)
	}
	h.paste(f.Remedies[rescue])
	h.holds(name, 'b')
	r := h.doctor(nil, "missing_overlay", "disk_moved")
	for _, f := range r.Findings {
		if f.Code == "disk_moved" {
			h.paste(f.Remedies[1]) // the new image is right: the other disk is merged, and the snapshot given up
		}
	}
	h.doctor([]string{"--repair"}, "orphan_overlay") // the other disk's overlay, which nothing uses any more
	h.removeOurs()
	h.holds(name, 'b')
	h.virsh("destroy", name)
	h.virsh("start", name)
	h.holds(name, 'b')
	h.take(name, api.TakeRequest{})
	h.remove(name)
}

// orphan: a file that no record names is told of, and never touched.
func (h *host) orphan(name string) {
	h.snapped(name, "running")
	path := filepath.Join(h.Lab.ImageDir(), "other.qcow2.vpssnap-0123456789ab.vda.qcow2")
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
	if f := h.finds("orphan_overlay"); f.Path != path || f.Repairable {
		h.t.Errorf("found %+v", f)
	}
	h.doctor([]string{"--repair"}, "orphan_overlay")
	h.must(os.Remove(path))
	h.works(name)
}

func (h *host) resized(name string) {
	h.snapped(name, "running")
	h.virsh("blockresize", name, "vda", "24M")
	if f := h.finds("disk_resized"); f.Disk != "vda" || !strings.Contains(f.Detail, "16777216") {
		h.t.Errorf("found %+v", f)
	}
	h.holds(name, 'b')
	h.restore(name)
	h.holds(name, 'a')
	h.well()
	h.remove(name)
}

// mergedByHand: an operator merges our overlay into its base behind our back.
func (h *host) mergedByHand(name string) {
	h.snapped(name, "running")
	overlays := []string{h.path(name, "vda"), h.path(name, "vdb")}
	for _, target := range []string{"vda", "vdb"} {
		h.virsh("blockcommit", name, target, "--active", "--pivot", "--wait")
	}
	r := h.doctor([]string{"--repair"}, "base_written", "base_written", "definition_names_base", "definition_names_base")
	h.holds(name, 'b')
	for _, f := range r.Findings {
		if f.Code == "definition_names_base" && f.Disk == "vda" {
			h.paste(f.Remedies[0])
		}
	}
	h.doctor(nil, "orphan_overlay", "orphan_overlay")
	for _, o := range overlays {
		h.must(os.Remove(o))
	}
	h.holds(name, 'b')
	h.clean(name)
	h.take(name, api.TakeRequest{})
	h.remove(name)
}

func (h *host) renamed(name string) {
	h.snapped(name, "shut off")
	h.virsh("domrename", name, name+"2")
	h.eventually("the new name is known", func() bool { return h.has(name + "2") })
	h.well()
	h.works(name + "2")
}

// givenAway: the name is given to another VPS while the old one has a snapshot.
func (h *host) givenAway(name string) {
	id := h.snapped(name, "shut off")
	old := h.virsh("dumpxml", "--inactive", "--security-info", name)
	h.virsh("undefine", name)
	if f := h.finds("vps_gone"); f.VPS != id || f.VPSName != name {
		h.t.Errorf("found %+v", f)
	}
	other, err := h.Lab.DefineDomain(h.t.Context(), lab.Spec{Name: name, Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 1 << 20, Path: filepath.Join(h.Lab.ImageDir(), "another.qcow2")}}})
	h.must(err)
	h.eventually("the name is refused", func() bool {
		_, err := h.Client.VPS(h.t.Context(), name)
		return client.CodeOf(err) == api.CodeVPSChanged
	})
	if f := h.finds("vps_redefined"); !strings.Contains(f.Detail, other) {
		h.t.Errorf("found %+v", f)
	}
	if v, err := h.Client.VPS(h.t.Context(), other); err != nil || v.Snapshot != nil {
		h.t.Errorf("the other VPS by its id: %+v, %v", v, err)
	}
	h.virsh("undefine", other)
	h.must(h.Lab.DefineXML(h.t.Context(), old))
	h.eventually("the VPS is back", func() bool { return h.has(name) })
	h.well()
	h.works(name)
}

// TestDoctorJudgesItsOwnFiles: what others can change is told while the daemon runs, no
// start and no check goes on with it, and the command that is printed cures it.
func TestDoctorJudgesItsOwnFiles(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	check := filepath.Join(binDir, "vpssnapd")
	for path, spoil := range map[string]func(string) error{
		h.ConfigFile():               func(path string) error { return os.Chmod(path, 0o666) },
		filepath.Dir(h.ConfigFile()): func(path string) error { return os.Chmod(path, 0o777) },
		h.StateDir():                 func(path string) error { return os.Chown(path, 65534, 65534) },
		h.Database():                 func(path string) error { return os.Chmod(path, 0o666) },
		h.Database() + "-wal":        func(path string) error { return os.Chown(path, 65534, 65534) },
	} {
		h.must(spoil(path))
		f := h.finds("wrong_mode_or_owner")
		out, err := exec.CommandContext(t.Context(), check, "config", "check", h.ConfigFile()).CombinedOutput()
		if f.Path != path || err == nil || !strings.Contains(string(out), f.Remedies[0].Commands[0]) {
			t.Errorf("%s: found %+v, and the check says %s", path, f, out)
		}
		if !strings.HasSuffix(path, "-wal") { // which a stop removes
			h.must(h.StopDaemon())
			if err := h.StartDaemon(t.Context()); err == nil || !strings.Contains(err.Error(), f.Remedies[0].Commands[0]) {
				t.Errorf("%s: it starts: %v", path, err)
			}
			h.paste(f.Remedies[0])
			h.must(h.StartDaemon(t.Context()))
		}
		h.paste(f.Remedies[0])
		h.well()
	}
}

// TestRebuild loses the record, and then damages it, on a host with VPSes in
// every state: it is made again, and every snapshot restores byte for byte.
func TestRebuild(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	names := map[string]string{"run": "running", "pause": "paused", "off": "shut off"}
	for name, state := range names {
		h.snapped(name, state)
	}
	h.must(h.StopDaemon())
	database := filepath.Join(h.StateDir(), "vpssnapd.db")
	h.must(os.Remove(database))
	out := h.rebuild(0)
	for name := range names {
		if !strings.Contains(out, `"`+name+`": snapshot`) || !strings.Contains(out, "is available") {
			t.Errorf("of %s it says\n%s", name, out)
		}
	}
	h.must(h.StartDaemon(t.Context()))
	h.well()
	for name := range names {
		h.holds(name, 'b')
		h.restore(name)
		h.holds(name, 'a')
		h.fill(name, 'c')
	}
	h.rebuild(1) // a daemon is at work
	h.must(h.StopDaemon())
	h.rebuild(1) // the database is whole

	text, err := os.ReadFile(database)
	h.must(err)
	for i := 4096; i < len(text); i += 5 {
		text[i] ^= 0x55
	}
	h.must(os.WriteFile(database, text, 0o600))
	if err := h.StartDaemon(t.Context()); err == nil || !strings.Contains(err.Error(), "vpssnapd rebuild") {
		t.Fatalf("with a damaged database the daemon: %v", err)
	}
	out = h.rebuild(0)
	aside, err := filepath.Glob(database + ".damaged-*")
	h.must(err)
	if len(aside) == 0 || !strings.Contains(out, aside[0]) {
		t.Errorf("the damaged database is not kept: %v\n%s", aside, out)
	}
	h.must(h.StartDaemon(t.Context()))
	h.well()
	for name := range names {
		h.holds(name, 'c')
		h.done(h.Client.UndoRestore(t.Context(), name))
		h.holds(name, 'b')
		h.restore(name)
		h.holds(name, 'a')
		h.delete(name)
		h.holds(name, 'a')
	}
}

// rebuild runs vpssnapd rebuild and fails unless it ends with this code.
func (h *host) rebuild(want int) string {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), filepath.Join(binDir, "vpssnapd"), "rebuild", "-config", h.ConfigFile())
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != want {
		h.t.Fatalf("rebuild ended with %d (%v), want %d:\n%s", code, err, want, out)
	}
	return string(out)
}
