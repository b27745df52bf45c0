package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Definition is what libvirt says of a domain.
type Definition struct {
	State string // in virsh's words
	// Live is the running definition, or the persistent one of a domain that is
	// off; Inactive is the persistent one.
	Live, Inactive []DiskUse
}

// DiskUse is one disk of a definition.
type DiskUse struct {
	Target, Path, Format string
	// Backing are the images below, as far as the definition says.
	Backing []string
}

// backing is a chain as libvirt writes it.
type backing struct {
	Source struct {
		File string `xml:"file,attr"`
	} `xml:"source"`
	Next *backing `xml:"backingStore"`
}

// Definition reads both definitions and the state at once.
func (l *Lab) Definition(ctx context.Context, name string) (Definition, error) {
	var d Definition
	out, err := l.Virsh(ctx, fmt.Sprintf("dumpxml %[1]s; dumpxml --inactive %[1]s; domstate %[1]s", name))
	if err != nil {
		return d, err
	}
	in := xml.NewDecoder(strings.NewReader(out))
	for _, disks := range []*[]DiskUse{&d.Live, &d.Inactive} {
		if *disks, err = decodeDisks(in); err != nil {
			return d, fmt.Errorf("cannot read the definition of %s: %w", name, err)
		}
	}
	d.State = strings.TrimSpace(out[in.InputOffset():])
	return d, nil
}

func decodeDisks(in *xml.Decoder) ([]DiskUse, error) {
	var domain struct {
		Disks []struct {
			source
			Backing *backing `xml:"backingStore"`
		} `xml:"devices>disk"`
	}
	if err := in.Decode(&domain); err != nil {
		return nil, err
	}
	var uses []DiskUse
	for _, d := range domain.Disks {
		use := DiskUse{Target: d.Target.Name, Path: d.Source.File, Format: d.Driver.Format}
		for b := d.Backing; b != nil && b.Source.File != ""; b = b.Next {
			use.Backing = append(use.Backing, b.Source.File)
		}
		uses = append(uses, use)
	}
	return uses, nil
}

// PersistentFile is where libvirtd keeps the persistent definition.
func (l *Lab) PersistentFile(name string) string {
	return filepath.Join(l.ConfigDir(), "qemu", name+".xml")
}

// PersistentDisks reads the persistent definition from libvirtd's file, also
// when libvirtd is dead.
func (l *Lab) PersistentDisks(name string) ([]DiskUse, error) {
	text, err := os.ReadFile(l.PersistentFile(name))
	if err != nil {
		return nil, err
	}
	disks, err := decodeDisks(xml.NewDecoder(bytes.NewReader(text)))
	if err != nil {
		return nil, fmt.Errorf("cannot read the definition of %s: %w", name, err)
	}
	return disks, nil
}

// Backing is what a qcow2 image lies on by its own header; "" for nothing.
func (l *Lab) Backing(ctx context.Context, path string) (backing, format string, err error) {
	out, err := run(ctx, "qemu-img", "info", "--output=json", "-U", "-f", "qcow2", path)
	if err != nil {
		return "", "", err
	}
	var info struct {
		Backing string `json:"full-backing-filename"`
		Format  string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return "", "", fmt.Errorf("cannot read what qemu-img says of %s: %w", path, err)
	}
	return info.Backing, info.Format, nil
}
