package lab

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// Where Debian's ovmf puts the firmware and the variables' template.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Spec is a guest to define.
type Spec struct {
	Name  string
	Disks []DiskSpec
	// MemoryMiB is 32, or 256 with OS, when it is 0.
	MemoryMiB int
	// OS boots the lab's Linux, with a guest agent and a console in
	// ConsoleFile. Without it the guest only holds its disks.
	OS bool
	// UEFI gives the guest firmware with variables in ImageDir()/<name>-nvram.fd.
	// Without OS such a guest keeps a processor busy: suspend it when that hurts.
	UEFI bool
	// Recorder boots a program of one sector that writes and acknowledges records
	// on every disk; the disks are at least RecorderDisk. guest/recorder.s has what
	// it prints in ConsoleFile.
	Recorder bool
	// Halt boots one sector that halts the processor for good, on the first disk: a
	// guest without OS whose firmware finds nothing to boot never quite rests.
	Halt bool
	// VNCPassword, when set, gives the guest a screen with this secret.
	VNCPassword string
	// Extra is XML put into <domain>, Devices into <devices>, both as they are.
	Extra   string
	Devices string
}

// DomainXML is the definition that DefineDomain uses, without making any image.
func (l *Lab) DomainXML(ctx context.Context, s Spec) (string, error) {
	if s.Name == "" || s.Name != filepath.Base(s.Name) {
		return "", fmt.Errorf("%q cannot be a guest's name", s.Name)
	}
	d := definition{Spec: s, Loader: ovmfCode, Template: ovmfVars, NVRAM: l.NVRAMFile(s.Name)}
	d.Disks = append([]DiskSpec(nil), s.Disks...)
	for i := range d.Disks {
		l.complete(s.Name, &d.Disks[i])
	}
	if d.MemoryMiB == 0 {
		d.MemoryMiB = 32
	}
	if s.Recorder {
		prepareRecorder(&d.Spec)
		d.Console = l.ConsoleFile(s.Name)
	}
	if s.OS {
		boot, err := Build(ctx, l.cacheDir)
		if err != nil {
			return "", err
		}
		d.Boot = boot
		d.Console = l.ConsoleFile(s.Name)
		if s.MemoryMiB == 0 {
			d.MemoryMiB = 256
		}
	}
	if s.VNCPassword != "" {
		d.VNC = filepath.Join(l.dir, "sock", s.Name+".vnc")
	}
	var text strings.Builder
	if err := domainTemplate.Execute(&text, d); err != nil {
		return "", fmt.Errorf("cannot describe %s: %w", s.Name, err)
	}
	return text.String(), nil
}

// DefineDomain makes the guest's images and defines it, switched off. It returns
// the domain's UUID.
func (l *Lab) DefineDomain(ctx context.Context, s Spec) (string, error) {
	text, err := l.DomainXML(ctx, s)
	if err != nil {
		return "", err
	}
	for i, d := range s.Disks {
		l.complete(s.Name, &d)
		if err := d.create(ctx); err != nil {
			return "", fmt.Errorf("cannot make disk %s of %s: %w", d.Target, s.Name, err)
		}
		if i > 0 {
			continue
		}
		if err := l.installSector(ctx, s, d); err != nil {
			return "", fmt.Errorf("cannot make %s bootable: %w", s.Name, err)
		}
	}
	if err := l.DefineXML(ctx, text); err != nil {
		return "", err
	}
	uuid, err := l.Virsh(ctx, "domuuid", s.Name)
	return strings.TrimSpace(uuid), err
}

// installSector puts onto a guest's first disk what it boots without OS, if anything.
func (l *Lab) installSector(ctx context.Context, s Spec, d DiskSpec) error {
	switch {
	case s.Recorder:
		return l.installRecorder(ctx, d)
	case s.Halt:
		return l.installHalt(ctx, d)
	}
	return nil
}

// DefineXML defines a domain from XML.
func (l *Lab) DefineXML(ctx context.Context, text string) error {
	file, err := os.CreateTemp(l.dir, "define-*.xml")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	_, err = l.Virsh(ctx, "define", file.Name())
	return err
}

// ConsoleFile is what a guest with OS printed on its serial console.
func (l *Lab) ConsoleFile(name string) string { return filepath.Join(l.consoleDir(), name) }

// NVRAMFile holds the UEFI variables of a guest with UEFI; it appears at the first start.
func (l *Lab) NVRAMFile(name string) string { return filepath.Join(l.imageDir, name+"-nvram.fd") }

// complete fills in what follows from the lab and the guest's name.
func (l *Lab) complete(name string, d *DiskSpec) {
	if d.Device == "" {
		d.Device = "disk"
	}
	if d.Format == "" {
		d.Format = "qcow2"
	}
	if d.Path == "" && d.SizeBytes > 0 {
		d.Path = filepath.Join(l.imageDir, name+"-"+d.Target+"."+d.Format)
	}
	d.direct = allowsDirect(filepath.Dir(d.Path))
}

// State is the domain's state in virsh's words: running, paused, shut off, ...
func (l *Lab) State(ctx context.Context, name string) (string, error) {
	state, err := l.Virsh(ctx, "domstate", name)
	return strings.TrimSpace(state), err
}

// definition is what the template below needs.
type definition struct {
	Spec
	Boot             Boot
	Console          string
	Loader, Template string
	NVRAM            string
	VNC              string
}

var domainTemplate = template.Must(template.New("domain").Funcs(template.FuncMap{
	"x": escapeXML,
}).Parse(`<domain type='qemu'>
  <name>{{x .Name}}</name>
  <memory unit='MiB'>{{.MemoryMiB}}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{{if .UEFI}}q35{{else}}pc{{end}}'>hvm</type>
{{- if .UEFI}}
    <loader readonly='yes' type='pflash'>{{x .Loader}}</loader>
    <nvram template='{{x .Template}}'>{{x .NVRAM}}</nvram>
{{- end}}
{{- if .OS}}
    <kernel>{{x .Boot.Kernel}}</kernel>
    <initrd>{{x .Boot.Initramfs}}</initrd>
    <cmdline>{{x .Boot.Arguments}}</cmdline>
{{- end}}
  </os>
  <features><acpi/></features>
  {{.Extra}}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{{- range .Disks}}
    <disk type='file' device='{{x .Device}}'>
      <driver name='qemu' type='{{x .Format}}'{{if .Cache}} cache='{{.Cache}}'{{end}} discard='unmap'/>
{{- if .Path}}
      <source file='{{x .Path}}'/>
{{- end}}
      <target dev='{{x .Target}}' bus='{{.Bus}}'/>
      {{if .ReadOnly}}<readonly/>{{end}}{{if .Shareable}}<shareable/>{{end}}{{.Extra}}
    </disk>
{{- end}}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
{{- if .Console}}
    <serial type='file'><source path='{{x .Console}}' append='on'/><target port='0'/></serial>
{{- end}}
{{- if .OS}}
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
{{- end}}
{{- if .VNC}}
    <graphics type='vnc' socket='{{x .VNC}}' passwd='{{x .VNCPassword}}'/>
    <video><model type='cirrus'/></video>
{{- end}}
    {{.Devices}}
  </devices>
</domain>
`))

func escapeXML(s string) (string, error) {
	var b strings.Builder
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

// source is one disk of a domain's definition.
type source struct {
	Driver struct {
		Format string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File string `xml:"file,attr"`
	} `xml:"source"`
	Target struct {
		Name string `xml:"dev,attr"`
	} `xml:"target"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
}

// source reads one disk from the live (when active) or the persistent definition.
func (l *Lab) source(ctx context.Context, name, target string, inactive bool) (source, error) {
	args := []string{"dumpxml", name}
	if inactive {
		args = append(args, "--inactive")
	}
	text, err := l.Virsh(ctx, args...)
	if err != nil {
		return source{}, err
	}
	var domain struct {
		Disks []source `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(text), &domain); err != nil {
		return source{}, fmt.Errorf("cannot read the definition of %s: %w", name, err)
	}
	for _, d := range domain.Disks {
		if d.Target.Name == target {
			return d, nil
		}
	}
	return source{}, fmt.Errorf("%s has no disk %s: %w", name, target, fs.ErrNotExist)
}
