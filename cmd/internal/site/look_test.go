package site_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// look is what somebody sees of a VPS with virsh and qemu-img.
type look struct {
	blocks     string // domblklist
	definition string // dumpxml --inactive, with secrets
	images     string // of every image of every chain: name, format, size, backing
}

// look looks at a VPS.
func (h *host) look(name string) look {
	h.t.Helper()
	l := look{blocks: h.virsh("domblklist", name), definition: h.virsh("dumpxml", "--inactive", "--security-info", name)}
	// libvirt keeps the empty element when the last metadata is removed.
	l.definition = strings.Replace(l.definition, "  <metadata/>\n", "", 1)
	for _, d := range h.disks(name) {
		if d.Path != "" && d.Format == "qcow2" {
			l.images += fmt.Sprintln(d.Target, h.chain(d.Path))
		}
	}
	return l
}

// same fails when a VPS no longer looks as before.
func (h *host) same(what, name string, want look) {
	h.t.Helper()
	got := h.look(name)
	for _, c := range []struct{ of, got, want string }{
		{"domblklist", got.blocks, want.blocks},
		{"dumpxml --inactive", got.definition, want.definition},
		{"qemu-img info", got.images, want.images},
	} {
		if c.got != c.want {
			h.t.Errorf("%s: %s of %s is not as before (-) but (+):\n%s", what, c.of, name, cmp.Diff(c.want, c.got))
		}
	}
}

// disk is one disk of the definition that the next boot will use.
type disk struct {
	Target, Path, Format string
}

func (h *host) disks(name string) []disk {
	h.t.Helper()
	var domain struct {
		Disks []struct {
			Driver struct {
				Type string `xml:"type,attr"`
			} `xml:"driver"`
			Source struct {
				File string `xml:"file,attr"`
			} `xml:"source"`
			Target struct {
				Dev string `xml:"dev,attr"`
			} `xml:"target"`
		} `xml:"devices>disk"`
	}
	h.must(xml.Unmarshal([]byte(h.virsh("dumpxml", "--inactive", name)), &domain))
	var disks []disk
	for _, d := range domain.Disks {
		disks = append(disks, disk{d.Target.Dev, d.Source.File, d.Driver.Type})
	}
	return disks
}

// path is the image that the next boot of a VPS will use for a disk.
func (h *host) path(name, target string) string {
	h.t.Helper()
	for _, d := range h.disks(name) {
		if d.Target == target {
			return d.Path
		}
	}
	h.t.Fatalf("%s has no disk %s", name, target)
	return ""
}

// layer is one image of a chain, as qemu-img tells it.
type layer struct {
	Filename      string `json:"filename"`
	Format        string `json:"format"`
	VirtualSize   int64  `json:"virtual-size"`
	Backing       string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
}

// chain is a qcow2 image and what lies below it.
func (h *host) chain(path string) []layer {
	h.t.Helper()
	var chain []layer
	out := h.tool("qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", "qcow2", path)
	h.must(json.Unmarshal([]byte(out), &chain))
	return chain
}

// tool runs a program to its end and returns what it printed.
func (h *host) tool(program string, args ...string) string {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// sum is the hash of a file, byte for byte.
func (h *host) sum(path string) string {
	h.t.Helper()
	data, err := os.ReadFile(path)
	h.must(err)
	return fmt.Sprintf("%x", sha256.Sum256(data))
}
