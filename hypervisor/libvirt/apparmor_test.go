package libvirt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/hypervisor"
)

// sure stops the test at an error.
func sure(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const guardedID = "4b295e9b-169e-4a8c-aa1a-3e5a22891d0c"

// guarded is the definition of a guest that AppArmor confines, with two disks
// below which a base lies; the second is reached through a symbolic link.
func guarded(t *testing.T) (text string, bases []string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	sure(t, err)
	sure(t, os.Symlink(dir, filepath.Join(dir, "pool")))
	var disks strings.Builder
	for i, where := range []string{dir, filepath.Join(dir, "pool")} {
		base, top := filepath.Join(where, fmt.Sprintf("base%d", i)), filepath.Join(where, fmt.Sprintf("top%d", i))
		for _, file := range []string{base, top} {
			sure(t, os.WriteFile(file, nil, 0o600))
		}
		fmt.Fprintf(&disks, `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
  <backingStore type='file'><format type='raw'/><source file='%s'/><backingStore/></backingStore>
  <target dev='vd%c' bus='virtio'/></disk>`, top, base, 'a'+i)
		bases = append(bases, base)
	}
	return fmt.Sprintf(`<domain type='qemu' id='3'><name>web1</name><uuid>%s</uuid><memory>1024</memory>
<os><type arch='x86_64'>hvm</type></os><devices>%s</devices>
<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>
<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-%[1]s</label><imagelabel>libvirt-%[1]s</imagelabel></seclabel>
</domain>`, guardedID, &disks), bases
}

// profileOf is the list of files that libvirt itself would put into the profile.
func profileOf(t *testing.T, text string) string {
	t.Helper()
	cmd := exec.CommandContext(
		t.Context(), "/usr/lib/libvirt/virt-aa-helper", "--dryrun", "--replace", "--uuid", "libvirt-"+guardedID,
	)
	cmd.Stdin = strings.NewReader(text)
	var printed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &printed
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, &printed)
	}
	return printed.String()
}

// TestDeniedBases: of what libvirt's own helper writes, exactly the rules go that
// forbid the merges which are about to begin.
func TestDeniedBases(t *testing.T) {
	text, bases := guarded(t)
	written := profileOf(t, text)
	list := filepath.Join(t.TempDir(), "profile.files")
	sure(t, os.WriteFile(list, []byte(written), 0o644))
	for i, base := range bases {
		real, err := filepath.EvalSymlinks(base)
		sure(t, err)
		rule := `  deny "` + real + "\" w,\n"
		if !strings.Contains(written, rule) {
			t.Fatalf("libvirt does not deny writes to %s any more:\n%s", real, written)
		}
		written = strings.Replace(written, rule, "", 1)
		if changed, err := allowWrites(list, bases[i:i+1]); err != nil || !changed {
			t.Fatalf("not changed: %v", err)
		}
		if got, err := os.ReadFile(list); err != nil || string(got) != written {
			t.Errorf("the profile is %q (%v), want %q", got, err, written)
		}
	}
	if changed, err := allowWrites(list, bases); err != nil || changed {
		t.Errorf("changed again: %v", err)
	}
	if changed, err := allowWrites(list+".none", bases); err != nil || changed {
		t.Errorf("changed what is not there: %v", err)
	}
}

func TestProfileThatCannotBeChanged(t *testing.T) {
	_, err := allowWrites(t.TempDir(), []string{"/base"})
	if !errors.Is(err, hypervisor.ErrDenied) {
		t.Errorf("got %v", err)
	}
}

// TestWhoIsConfined: only a profile that libvirt writes by itself is ours to change.
func TestWhoIsConfined(t *testing.T) {
	text, _ := guarded(t)
	label := "<label>libvirt-" + guardedID + "</label>"
	for want, text := range map[string]string{
		"libvirt-" + guardedID: text,
		"":                     strings.ReplaceAll(text, label, "<label>my-own-profile</label>"),
		" ":                    strings.ReplaceAll(text, "model='apparmor'", "model='selinux'"),
		"  ":                   strings.ReplaceAll(text, label, "<label>../../../etc/passwd</label>"),
	} {
		if got := parse(t, text).appArmor(); got != strings.TrimSpace(want) {
			t.Errorf("the profile is %q, want %q", got, want)
		}
	}
}
