package doctor

import (
	"testing"

	"vpssnapd/hypervisor"
)

// TestRightsAreJudgedByTheBase (FAULTS.md row 36). 64055 and 109 are Debian's libvirt-qemu
// and kvm.
func TestRightsAreJudgedByTheBase(t *testing.T) {
	const list = "u::rw-,u:4713:rw-,g::---,m::rw-,o::---"
	type file = hypervisor.File
	for _, c := range []struct {
		name       string
		base, file file
		undo       bool // not in use
		more, less bool
	}{
		{name: "the same", base: file{Mode: 0o600}, file: file{Mode: 0o600}},
		{name: "a base that everybody reads", base: file{Mode: 0o644}, file: file{Mode: 0o640}},
		{name: "an older overlay of such a base", base: file{Mode: 0o644}, file: file{Mode: 0o600}},
		{name: "everybody reads", base: file{Mode: 0o600}, file: file{Mode: 0o604}, more: true},
		{name: "everybody reads both", base: file{Mode: 0o644}, file: file{Mode: 0o644}, more: true},
		{name: "a group reads", base: file{Mode: 0o600}, file: file{Mode: 0o640}, more: true},
		{name: "root:kvm 0660, an older overlay", base: file{Mode: 0o660, GID: 109}, file: file{Mode: 0o600, GID: 109}, less: true},
		{name: "root:kvm 0660, an operator's copy", base: file{Mode: 0o660, GID: 109}, file: file{Mode: 0o660}, less: true},
		{name: "root:kvm 0660", base: file{Mode: 0o660, GID: 109}, file: file{Mode: 0o660, GID: 109}},
		{name: "root:kvm 0640, which no guest can write to", base: file{Mode: 0o640, GID: 109}, file: file{Mode: 0o600}},
		{name: "on, and made while off", base: file{Mode: 0o600, UID: 64055, GID: 109}, file: file{Mode: 0o600}, less: true},
		{name: "off, and made while on", base: file{Mode: 0o600}, file: file{Mode: 0o600, UID: 64055, GID: 109}},
		{name: "the undo of a VPS that is on", base: file{Mode: 0o600, UID: 64055, GID: 109}, file: file{Mode: 0o600}, undo: true},
		{name: "an older undo, root:kvm 0660", base: file{Mode: 0o660, GID: 109}, file: file{Mode: 0o600, GID: 109}, undo: true, less: true},
		{name: "a login user", base: file{Mode: 0o600}, file: file{Mode: 0o600, UID: 1000}, more: true},
		{name: "a panel's own user", base: file{Mode: 0o600, UID: 1000}, file: file{Mode: 0o600, UID: 1000}},
		{name: "a list", base: file{Mode: 0o660, ACL: list}, file: file{Mode: 0o660, ACL: list}},
		{name: "a list is missing", base: file{Mode: 0o660, ACL: list}, file: file{Mode: 0o660}, less: true},
		{name: "a list too many", base: file{Mode: 0o660}, file: file{Mode: 0o660, ACL: list}, more: true, less: true},
		{name: "its owner may not write", base: file{Mode: 0o600}, file: file{Mode: 0o400}, less: true},
	} {
		if more, less := grantsMore(c.file, c.base), grantsLess(c.file, c.base, !c.undo); more != c.more || less != c.less {
			t.Errorf("%s: more %t, less %t", c.name, more, less)
		}
	}
}
