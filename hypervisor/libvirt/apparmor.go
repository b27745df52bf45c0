package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// profileDir is where libvirt keeps a profile of AppArmor for each guest that is on.
const profileDir = "/etc/apparmor.d/libvirt"

// reloadWithin bounds how long the parser may take.
const reloadWithin = 10 * time.Second

// AllowMerge takes those rules out of the guest's AppArmor profile that deny it to
// write to the bases. libvirt writes one for every image below the first when a
// guest starts, and a denial outweighs what it allows itself before a merge; so
// does every version before 12.1. A pivot makes it write the profile again.
func (h *Host) AllowMerge(ctx context.Context, id string, bases []string) error {
	return do(ctx, h, ordinary, "allow merges of", id, func(d *libvirt.Domain) error {
		// Off, there is no profile: libvirt writes it at the start.
		if active, err := d.IsActive(); err != nil || !active {
			return err
		}
		live, err := readDefinition(d, 0)
		if err != nil {
			return err
		}
		label := live.appArmor()
		if label == "" {
			return nil
		}
		// The profile includes this list; only the list names files.
		allowed, err := allowWrites(filepath.Join(h.profiles, label+".files"), bases)
		if err != nil || !allowed {
			return err
		}
		h.log.Info(
			"AppArmor denied writes to a base; the rule was removed until libvirt writes the profile anew", "domain",
			id, "bases", bases,
		)
		// libvirt loads the profile again itself when a merge begins, so this matters
		// for merges that run already.
		if err := reloadProfile(ctx, filepath.Join(h.profiles, label)); err != nil {
			h.log.Warn("the profile was not loaded anew", "domain", id, "error", err)
		}
		return nil
	})
}

// appArmor is the profile that libvirt made for the running guest; "" when AppArmor
// does not confine it, or by a profile that is not libvirt's to write.
func (d *definition) appArmor() string {
	uuid := d.domain.SelectElement("uuid")
	for _, e := range d.domain.SelectElements("seclabel") {
		label := e.SelectElement("label")
		if e.SelectAttrValue("model", "") == "apparmor" && uuid != nil && label != nil &&
			label.Text() == "libvirt-"+uuid.Text() {
			return label.Text()
		}
	}
	return ""
}

// allowWrites removes the rules in a profile's list of files that deny writes to exactly
// those files, and reports whether there were any. An error is ErrDenied.
func allowWrites(list string, files []string) (bool, error) {
	text, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, denied(err)
	}
	var rules []string
	for _, file := range files {
		// It is the real path that is written into a profile.
		if real, err := filepath.EvalSymlinks(file); err == nil {
			file = real
		}
		rules = append(rules, `deny "`+file+`" w,`)
	}
	var kept bytes.Buffer
	for line := range strings.Lines(string(text)) {
		// Only rules with exactly this text are libvirt's; one that an operator wrote
		// stays.
		if !slices.Contains(rules, strings.TrimSpace(line)) {
			kept.WriteString(line)
		}
	}
	if kept.Len() == len(text) {
		return false, nil
	}
	// Renamed into place, because libvirt may read it at any time.
	fresh := list + ".vpssnapd"
	if err := os.WriteFile(fresh, kept.Bytes(), 0o644); err != nil { //nolint:gosec // as libvirt's own
		return false, denied(err)
	}
	return true, denied(os.Rename(fresh, list))
}

// denied is ErrDenied, for a host that does not let us write its profile.
func denied(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: AppArmor forbids merges, and its profile cannot be changed: %w", hypervisor.ErrDenied, err)
}

// reloadProfile has the kernel use what a profile says now.
func reloadProfile(ctx context.Context, profile string) error {
	ctx, cancel := context.WithTimeout(ctx, reloadWithin)
	defer cancel()
	// An absolute path and an environment of our own: nothing of the caller's is
	// believed.
	cmd := exec.CommandContext(ctx, "/sbin/apparmor_parser", "-r", profile)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser -r %s: %w: %s", profile, err, bytes.TrimSpace(out))
	}
	return nil
}
