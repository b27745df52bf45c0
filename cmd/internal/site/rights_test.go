package site_test

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// guestsAs opens a host whose guests are of Debian's user for them.
func guestsAs(t *testing.T, lines string) *host {
	t.Helper()
	images, err := os.MkdirTemp("", "images-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(images); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(images, 0o755); err != nil {
		t.Fatal(err)
	}
	return openHost(t, site.Options{Lab: lab.Options{
		ImageDir: images, Guests: "user = \"libvirt-qemu\"\ngroup = \"kvm\"\n" + lines,
	}})
}

// guestIDs are those of Debian's user and group of guests.
func guestIDs(t *testing.T) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup("libvirt-qemu")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return uid, gid
}

// TestGuestsWhoseFilesKeepTheirOwner (FAULTS row 36): with dynamic_ownership = 0 libvirt changes
// no owner, so that QEMU opens what is made beside an image only with the image's rights.
func TestGuestsWhoseFilesKeepTheirOwner(t *testing.T) {
	h := guestsAs(t, "dynamic_ownership = 0\n")
	uid, gid := guestIDs(t)
	for _, c := range []struct {
		name  string
		grant func(path string)
	}{
		{"group", func(path string) { h.must(os.Chown(path, 0, gid)); h.must(os.Chmod(path, 0o660)) }},
		{"owner", func(path string) { h.must(os.Chown(path, uid, 0)); h.must(os.Chmod(path, 0o600)) }},
		{"open", func(path string) { h.must(os.Chown(path, uid, gid)); h.must(os.Chmod(path, 0o666)) }},
		{"list", func(path string) {
			acl := []byte{2, 0, 0, 0}
			for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 6, uint32(uid)}, {4, 0, ^uint32(0)}, {0x10, 6, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
				acl = append(acl, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
			}
			h.must(unix.Setxattr(path, "system.posix_acl_access", acl, 0))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &host{h.Site, t}
			h.define(twoDisks(c.name), "shut off")
			h.fill(c.name, 'a')
			for _, target := range []string{"vda", "vdb"} {
				c.grant(h.path(c.name, target))
			}
			h.take(c.name, api.TakeRequest{})
			h.noneForOthers()
			h.well()
			h.virsh("start", c.name)
			h.fill(c.name, 'b')
			h.restore(c.name)
			h.holds(c.name, 'a')
			h.done(h.Client.UndoRestore(t.Context(), c.name))
			h.holds(c.name, 'b')
			h.take(c.name, api.TakeRequest{Replace: true})
			h.fill(c.name, 'c')
			h.noneForOthers()
			h.well()
			h.restore(c.name)
			h.holds(c.name, 'b')
			h.delete(c.name)
			h.virsh("destroy", c.name)
			h.virsh("start", c.name)
			h.holds(c.name, 'b')
			h.clean(c.name)
			h.remove(c.name)
		})
	}
	t.Run("an older overlay", func(t *testing.T) {
		h := &host{h.Site, t}
		h.define(twoDisks("old"), "shut off")
		for _, target := range []string{"vda", "vdb"} {
			path := h.path("old", target)
			h.must(os.Chown(path, 0, gid))
			h.must(os.Chmod(path, 0o660))
		}
		h.fill("old", 'a')
		h.take("old", api.TakeRequest{})
		h.fill("old", 'b')
		h.must(os.Chmod(h.path("old", "vdb"), 0o600))
		if _, err := h.Lab.Virsh(t.Context(), "start", "old"); err == nil {
			t.Fatal("it starts without a right to its disk")
		}
		h.paste(h.finds("wrong_mode_or_owner").Remedies[0])
		h.virsh("start", "old")
		h.works("old")
	})
}

// noneForOthers fails when everybody may do something with a file of a snapshot.
func (h *host) noneForOthers() {
	h.t.Helper()
	files, err := h.OurFiles()
	h.must(err)
	for _, name := range files {
		info, err := os.Stat(h.Lab.ImageDir() + "/" + name)
		h.must(err)
		if info.Mode()&0o007 != 0 {
			h.t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if len(files) == 0 {
		h.t.Error("there are no files of a snapshot")
	}
}

// TestGuestsWhoseFilesChangeTheirOwner is the same where libvirt changes owners, as it does
// unless it is told not to, also but for one disk (seclabel, relabel='no').
func TestGuestsWhoseFilesChangeTheirOwner(t *testing.T) {
	h := guestsAs(t, "")
	_, gid := guestIDs(t)
	for _, own := range []bool{false, true} {
		name := map[bool]string{false: "usual", true: "own"}[own]
		spec := twoDisks(name)
		h.define(spec, "shut off")
		if own {
			path := h.path(name, "vdb")
			h.must(os.Chown(path, 0, gid))
			h.must(os.Chmod(path, 0o660))
			label := exec.CommandContext(t.Context(), "sh", "-c", `virsh dumpxml --inactive "$1" |
				sed "s|<source file='$2'/>|<source file='$2'><seclabel model='dac' relabel='no'/></source>|" >"$3" &&
				virsh define "$3"`, "sh", name, path, t.TempDir()+"/xml")
			label.Env = append(os.Environ(), "LIBVIRT_DEFAULT_URI="+h.Lab.URI())
			if out, err := label.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		h.fill(name, 'a')
		h.take(name, api.TakeRequest{})
		h.virsh("start", name)
		h.fill(name, 'b')
		h.well()
		h.restore(name)
		h.holds(name, 'a')
		h.bring(name, "shut off")
		h.well()
		h.delete(name)
		h.virsh("start", name)
		h.take(name, api.TakeRequest{})
		h.well()
		h.fill(name, 'b')
		h.bring(name, "shut off")
		h.well()
		h.bring(name, "running")
		h.works(name)
	}
}
