package site_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestOtherNames (FAULTS row 33) gives a VPS its disk, and then its frozen base, by other
// names of the file. Its life is that of every other; a start on the base is refused by
// the hook without the daemon, and with it the definition is put right.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	dir := h.Lab.ImageDir()
	real := filepath.Join(dir, "real")
	h.must(os.MkdirAll(filepath.Join(dir, "else/where"), 0o711)) //nolint:gosec // QEMU looks into it
	h.must(os.Mkdir(real, 0o711))
	for name, to := range map[string]string{"lnk": "real", "deep": "else/where"} {
		h.must(os.Symlink(to, filepath.Join(dir, name)))
	}
	names := map[string]string{
		"slashes": dir + "//real//", "dots": dir + "/real/../real/./", "link": dir + "/lnk/", "over": dir + "/deep/../../real/",
	}
	for name, at := range names {
		image := filepath.Join(real, name)
		define := func(path string) {
			text, err := h.Lab.DomainXML(ctx, lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", Path: "/PATH"}}})
			h.must(err)
			uuid := ""
			if strings.Contains(h.virsh("list", "--all", "--name"), name) {
				uuid = "<uuid>" + strings.TrimSpace(h.virsh("domuuid", name)) + "</uuid>"
			}
			text = strings.Replace(text, "</name>", "</name>"+uuid, 1)
			h.must(h.Lab.DefineXML(ctx, strings.ReplaceAll(text, "/PATH", path)))
		}
		h.tool("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
		define(at + name)
		h.activate(name)
		for _, state := range []string{"shut off", "running"} {
			h.bring(name, state)
			h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'a', 1<<20))
			if v, err := h.Client.VPS(ctx, name); err != nil || !v.Actions.Take.Allowed {
				t.Errorf("%s, %s: show says %+v, %v", name, state, v.Actions.Take, err)
			}
			h.take(name, api.TakeRequest{})
			h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'b', 1<<20))
			h.restore(name)
			h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'a', 1<<20))
			h.done(h.Client.UndoRestore(ctx, name))
			h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', 1<<20))
			h.take(name, api.TakeRequest{Replace: true})
			h.delete(name)
			h.must(h.Lab.CheckDisk(ctx, name, "vda", 0, 'b', 1<<20))
			define(at + name) // as the panel has it, and not as a deletion writes it
		}
		h.bring(name, "shut off")

		define(image)
		h.take(name, api.TakeRequest{})
		before := h.sum(image)
		define(at + name)
		h.eventually("the definition names the overlay again", func() bool {
			return strings.Contains(h.path(name, "vda"), ".vpssnap-")
		})
		h.must(h.StopDaemon())
		hard := filepath.Join(dir, "hard-"+name)
		h.must(os.Link(image, hard))
		h.must(os.Symlink(image, filepath.Join(dir, "soft-"+name)))
		for _, path := range []string{at + name, hard, filepath.Join(dir, "soft-"+name)} {
			define(path)
			if _, err := h.Lab.Virsh(ctx, "start", name); err == nil || !strings.Contains(err.Error(), "frozen base of its snapshot") {
				t.Errorf("the start of %s on %s was not refused with the reason: %v", name, path, err)
			}
		}
		h.must(h.StartDaemon(ctx))
		h.eventually("the definition names the overlay again", func() bool {
			return strings.Contains(h.path(name, "vda"), ".vpssnap-")
		})
		if h.sum(image) != before {
			t.Errorf("the base of %s was written to", name)
		}
		h.well()
		h.delete(name)
		h.must(os.Remove(hard))
	}
}

// TestNoFile (FAULTS row 41): what is no regular file is refused by name, and nothing opens
// a named pipe: neither libvirt, asked by the daemon, nor a daemon that starts.
func TestNoFile(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	dir := h.Lab.ImageDir()
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket")
	h.must(unix.Mkfifo(pipe, 0o600))
	h.must(unix.Mknod(socket, unix.S_IFSOCK|0o600, 0))
	device := filepath.Join(dir, "device")
	h.must(unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	for name, c := range map[string]struct{ path, want string }{
		"fifo": {pipe, "a named pipe"}, "sock": {socket, "a socket"}, "block": {device, "a block device"},
		"dir": {dir, "a directory"}, "char": {"/dev/null", "a character device"},
	} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", Path: c.path, Format: "raw"}}}, "shut off")
		h.refused(api.CodeUnsupportedDisk, c.want)(h.Client.Take(t.Context(), name, api.TakeRequest{}))
		v, err := h.Client.VPS(t.Context(), name)
		if err != nil || v.Actions.Take.Allowed || !strings.Contains(v.Actions.Take.Reason, c.want) {
			t.Errorf("%s: show says %+v, %v", name, v.Actions.Take, err)
		}
	}
	h.restart()
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	h.take("web1", api.TakeRequest{})
	h.delete("web1")
	for _, name := range []string{"fifo", "sock", "block", "dir", "char"} {
		h.refused(api.CodeUnsupportedDisk, "the disk is of type file")(h.Client.Take(t.Context(), name, api.TakeRequest{}))
	}
}

// TestHiddenBackingFile: a customer's image names a file of the host, which the definition
// does not state. It is refused by name, and a snapshot that lies on such a file gives none
// of it away.
func TestHiddenBackingFile(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	secret := filepath.Join(t.TempDir(), "secret")
	h.must(os.WriteFile(secret, []byte(strings.Repeat("only root may read this\n", 1<<15)), 0o600))
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	h.define(lab.Spec{Name: "web2", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "shut off")
	image, dir := h.path("web1", "vda"), h.Lab.ImageDir()
	h.must(os.Symlink(secret, filepath.Join(dir, "out")))
	middle := filepath.Join(dir, "middle.qcow2")
	h.tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", secret, "-F", "raw", middle, "1M")
	for what, c := range map[string]struct{ backing, format, want string }{
		"elsewhere": {secret, "raw", "directory for templates"}, "by a link": {filepath.Join(dir, "out"), "raw", "directory for templates"},
		"two steps": {middle, "qcow2", "directory for templates"}, "device": {"/dev/zero", "raw", "not a regular file"},
		"relative": {"out", "raw", "directory for templates"}, "up": {"../../../../../../../../etc/passwd", "raw", "directory for templates"},
		"of another VPS": {h.path("web2", "vda"), "qcow2", "another VPS"},
	} {
		h.must(os.Remove(image))
		h.tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", c.backing, "-F", c.format, image, "1M")
		for _, state := range []string{"shut off", "running"} {
			if _, err := h.Lab.Virsh(ctx, "domstate", "web1"); err != nil || state == "running" && c.format == "raw" && what == "device" {
				continue // QEMU does not open it either
			}
			if state == "running" {
				if _, err := h.Lab.Virsh(ctx, "start", "web1"); err != nil {
					continue // nor may it be started on every one
				}
			}
			_, err := h.Client.Take(ctx, "web1", api.TakeRequest{})
			h.refused(api.CodeUnsupportedDisk, c.want)(api.Operation{}, err)
			if v, err := h.Client.VPS(ctx, "web1"); err != nil || v.Actions.Take.Allowed {
				t.Errorf("%s, %s: show says %+v, %v", what, state, v.Actions.Take, err)
			}
			if state == "running" {
				h.virsh("destroy", "web1")
			}
		}
	}

	// A snapshot from before: its base comes to lie on the file.
	h.must(os.Remove(image))
	h.tool("qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
	h.take("web1", api.TakeRequest{})
	link, err := h.Client.MakeDownload(ctx, "web1", api.DownloadRequest{Format: "raw"})
	h.must(err)
	info, err := os.Stat(image)
	h.must(err)
	h.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", secret, "-F", "raw", image)
	h.must(os.Chtimes(image, info.ModTime(), info.ModTime()))
	for _, format := range []api.DownloadRequestFormat{"raw", "qcow2"} {
		if d, err := h.Client.MakeDownload(ctx, "web1", api.DownloadRequest{Format: format}); client.CodeOf(err) != api.CodeVPSChanged {
			t.Errorf("a link to a disk that lies on the secret: %+v, %v", d, err)
		}
	}
	if _, err := h.Client.Download(ctx, link, 0); client.CodeOf(err) != api.CodeVPSChanged {
		t.Errorf("the link from before leads to the secret: %v", err)
	}
	snap, err := h.Client.Snapshot(ctx, "web1")
	h.must(err)
	_, err = h.Client.Restore(ctx, "web1", api.RestoreRequest{Confirm: snap.ID})
	h.refused(api.CodeVPSChanged, "directory for templates")(api.Operation{}, err)
}

// TestOverlayCutShort: overlays truncated by hand make a snapshot that is broken, and a
// deletion that says so.
func TestOverlayCutShort(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	for name, size := range map[string]int64{"none": 0, "header": 512, "tables": 300 << 10, "data": 10 << 20} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "shut off")
		h.take(name, api.TakeRequest{})
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 12<<20, 'b', 1<<20))
		h.must(os.Truncate(h.path(name, "vda"), size))
		op, err := h.Client.Delete(ctx, name)
		if err == nil {
			op = h.ended(op)
		}
		if op.Error == nil || op.Error.Code == api.CodeInternal || !strings.Contains(op.Error.Detail, "truncated") {
			t.Errorf("%s: the deletion is %s: %+v, %v", name, op.Status, op.Error, err)
		}
	}
	h.restart()
	for _, name := range []string{"none", "header", "tables", "data"} {
		h.eventually("the snapshot of "+name+" is broken", func() bool {
			s, err := h.Client.Snapshot(ctx, name)
			return err == nil && s.State == api.SnapshotStateBroken
		})
	}
}

// TestRawOfOddLength: a raw image ends within a sector. Its life is that of every other,
// and the bytes of its last sector stay.
func TestRawOfOddLength(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	for name, odd := range map[string]int64{"odd1": 1, "odd100": 100, "odd511": 511} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20, Format: "raw"}}}, "shut off")
		image := h.path(name, "vda")
		f, err := os.OpenFile(image, os.O_WRONLY, 0)
		h.must(err)
		_, err = f.WriteAt([]byte(strings.Repeat("e", int(odd))), 1<<20)
		h.must(err)
		h.must(f.Close())
		before, err := os.ReadFile(image)
		h.must(err)
		for _, state := range []string{"shut off", "running"} {
			h.bring(name, state)
			h.take(name, api.TakeRequest{})
			h.must(h.Lab.WriteDisk(ctx, name, "vda", 512<<10, 'b', 4096))
			h.restore(name)
			h.take(name, api.TakeRequest{Replace: true})
			h.must(h.Lab.WriteDisk(ctx, name, "vda", 256<<10, 'c', 4096))
			h.delete(name)
			h.clean(name)
			h.bring(name, "shut off")
			after, err := os.ReadFile(image)
			h.must(err)
			if len(after) < len(before) || string(after[1<<20:1<<20+odd]) != string(before[1<<20:]) ||
				strings.Trim(string(after[len(before):]), "\x00") != "" {
				t.Errorf("%s, %s: the end of the disk has changed (%d bytes, before %d)", name, state, len(after), len(before))
			}
		}
	}
}
