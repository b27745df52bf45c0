package site_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// vouched pastes the command that doctor prints for every finding of these codes (FAULTS
// row 39), and then expects all to be well and to work.
func (h *host) vouched(name string, codes ...api.CheckCode) {
	h.t.Helper()
	s, err := h.Client.Snapshot(h.t.Context(), name)
	h.must(err)
	h.refused("vps_changed", "disk v")(h.Client.Restore(h.t.Context(), name, api.RestoreRequest{Confirm: s.ID}))
	var vouch *api.Remedy
	for _, f := range h.doctor(nil, codes...).Findings {
		n := slices.IndexFunc(f.Remedies, offersVouch)
		if n < 0 {
			h.t.Fatalf("no vouch in %+v", f)
		}
		vouch = &f.Remedies[n]
	}
	h.noVouch(name, "", "confirmation_required", "not proven")
	h.paste(*vouch)
	h.well()
	_, errs, code := h.CLI(h.t.Context(), "vouch", name, "--yes")
	if code != 0 {
		h.t.Errorf("once more: exit code %d: %s", code, errs)
	}
}

func offersVouch(r api.Remedy) bool {
	return slices.ContainsFunc(r.Commands, func(c string) bool { return strings.HasPrefix(c, "vpssnap vouch ") })
}

// moveStorage moves the images to another directory and back as storage is moved.
func (h *host) moveStorage(name string) {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.Lab.ImageDir(), name+"*"))
	h.must(err)
	for _, file := range files {
		h.tool("cp", "-a", "--sparse=always", file, file+".copy")
	}
	for _, file := range files {
		h.must(os.Rename(file+".copy", file))
	}
}

// copied: the storage of a VPS that is off is moved with cp -a. Started since, it may still
// have another base open for all that can be told, and goes off once more for it.
func (h *host) copied(name, state string) {
	h.snapped(name, state)
	if state != "shut off" {
		h.virsh("destroy", name)
	}
	h.moveStorage(name)
	codes := []api.CheckCode{"replaced_base", "replaced_base", "replaced_overlay", "replaced_overlay"}
	if state != "shut off" {
		h.virsh("start", name)
		h.notOffered(name, "its base was replaced", codes...)
		h.virsh("destroy", name)
	}
	h.vouched(name, codes...)
	h.works(name)
}

// copiedUnder: overlays are copied under a running VPS, which goes on writing to the files
// that were there. Nobody can vouch for the copies.
func (h *host) copiedUnder(name string) {
	h.snapped(name, "running")
	overlays := []string{h.path(name, "vda"), h.path(name, "vdb")}
	for _, overlay := range overlays {
		h.must(os.Link(overlay, overlay+".kept"))
		h.tool("cp", "-a", overlay, overlay+".copy")
		h.must(os.Rename(overlay+".copy", overlay))
	}
	h.notOffered(name, "writes to another file", "replaced_overlay", "replaced_overlay")
	for _, overlay := range overlays {
		h.must(os.Rename(overlay+".kept", overlay))
	}
	h.well()
	h.works(name)
}

// notOffered fails if doctor, which finds these codes, prints the command, or it works.
func (h *host) notOffered(name, why string, codes ...api.CheckCode) {
	h.t.Helper()
	for _, f := range h.doctor(nil, codes...).Findings {
		if slices.ContainsFunc(f.Remedies, offersVouch) {
			h.t.Errorf("doctor prints it: %+v", f)
		}
	}
	s, err := h.Client.Snapshot(h.t.Context(), name)
	h.must(err)
	h.noVouch(name, s.ID, "vps_changed", why)
}

func (h *host) noVouch(name, confirm string, code api.Code, why string) {
	h.t.Helper()
	s, err := h.Client.Vouch(h.t.Context(), name, api.VouchRequest{Confirm: confirm})
	if client.CodeOf(err) != code || !strings.Contains(err.Error(), why) {
		h.t.Errorf("got %+v, %v; want %s with %q", s, err, code, why)
	}
}

// touched: a raw base is made sparse, then touched, while the VPS runs.
func (h *host) touched(name string) {
	h.snapped(name, "running")
	base, _, _ := strings.Cut(h.path(name, "vdb"), ".vpssnap-")
	h.tool("fallocate", "-d", base)
	h.tool("touch", base)
	h.vouched(name, "base_written")
	h.works(name)
}
