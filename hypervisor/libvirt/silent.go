package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// libvirt 11.3 tells a domain's XML only when no other call to it is under way, for which it
// waits 30 s; 9.0 told it at once. One QEMU that hangs in a call would keep the list of all
// domains from everybody.

const (
	// hangsAfter is how long a QEMU may be at one call before it is no longer waited for.
	hangsAfter = time.Second
	// lookAgain is how soon one that is at a call is looked at again.
	lookAgain = 50 * time.Millisecond
)

// listed describes a domain of the list, without waiting for a QEMU that hangs.
func (h *Host) listed(d *libvirt.Domain, have groups, running qemus) (hypervisor.Domain, error) {
	f, err := have.facts(d)
	if err != nil {
		return hypervisor.Domain{}, err
	}
	if f.state != libvirt.DOMAIN_SHUTOFF && hangs(d) {
		return h.nextBoot(&f), nil
	}
	return h.describe(d, f, running)
}

// hangs reports whether the domain's QEMU has been at one call for long. This question
// waits for nobody.
func hangs(d *libvirt.Domain) bool {
	for begun := time.Now(); ; time.Sleep(lookAgain) {
		info, err := d.GetControlInfo(0)
		if err != nil || info.State != libvirt.DOMAIN_CONTROL_OCCUPIED {
			return false
		}
		if time.Duration(info.StateTime)*time.Millisecond >= hangsAfter {
			return true
		}
		if time.Since(begun) > 2*hangsAfter {
			return false // at one short call after the other
		}
	}
}

// nextBoot is a domain of which libvirt tells no XML: what its file says of the next boot is
// all there is.
func (h *Host) nextBoot(f *facts) hypervisor.Domain {
	next, err := h.savedDefinition(f)
	domain, parseErr := f.with(nil, next)
	if err == nil {
		err = parseErr
	}
	if err != nil {
		h.log.Warn("a QEMU hangs, and the definition of its domain cannot be read", "domain", f.name, "error", err)
		domain = hypervisor.Domain{ID: f.id, Name: f.name, Persistent: f.persistent}
	}
	domain.State, domain.PauseReason, domain.Agent, domain.Silent = hypervisor.Unknown, "", hypervisor.AgentNone, true
	return domain
}

// savedDefinition reads libvirt's own file of a persistent definition; nil for a transient domain.
func (h *Host) savedDefinition(f *facts) (*definition, error) {
	if !f.persistent {
		return nil, nil //nolint:nilnil // it has none
	}
	if f.name != filepath.Base(f.name) {
		return nil, fmt.Errorf("%q cannot be a file's name", f.name)
	}
	text, err := os.ReadFile(filepath.Join(h.configDir, f.name+".xml"))
	if err != nil {
		return nil, err
	}
	return parseDefinition(string(text))
}
