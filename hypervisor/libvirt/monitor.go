package libvirt

import (
	"encoding/json"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// QEMU itself is asked past libvirt only where libvirt died within a call, and what it had
// written down until then contradicts itself or what we know: libvirt marks the domain as
// tainted then ("custom-monitor"), until it ends.

// ask has a domain's QEMU do a command. It decodes what that returns, unless result is nil.
func ask(d *libvirt.Domain, command string, arguments, result any) error {
	message := map[string]any{"execute": command}
	if arguments != nil {
		message["arguments"] = arguments
	}
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	said, err := d.QemuMonitorCommand(string(text), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	if err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Description string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(said), &answer); err != nil {
		return fmt.Errorf("QEMU's answer to %s cannot be read: %w", command, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("QEMU refuses %s: %s", command, answer.Error.Description)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Return, result)
}

// graph is what a QEMU does with images at some moment.
type graph struct {
	nodes   []blockNode
	devices []blockDevice
	jobs    []blockJob
}

// blockNode is one image that is open: libvirt opens a file with a node called
// libvirt-N-storage, and what the file holds with one on top called libvirt-N-format, which
// a raw image need not have.
type blockNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
}

// blockDevice is a disk as the guest sees it.
type blockDevice struct {
	Path     string `json:"qdev"` // in QEMU's tree of objects
	Inserted struct {
		Node string `json:"node-name"`
	} `json:"inserted"`
}

type blockJob struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Done   int64  `json:"current-progress"`
	Total  int64  `json:"total-progress"`
}

// ready reports whether the job can be completed, by QEMU's own word.
func (j blockJob) ready() bool { return j.Status == "ready" }

func readGraph(d *libvirt.Domain) (g graph, err error) {
	if err = ask(d, "query-named-block-nodes", map[string]any{"flat": true}, &g.nodes); err == nil {
		err = ask(d, "query-block", nil, &g.devices)
	}
	if err == nil {
		err = ask(d, "query-jobs", nil, &g.jobs)
	}
	return g, err
}

// open finds the nodes through which a file is open; "" when it is not.
func (g graph) open(path string) (format, storage string) {
	for _, n := range g.nodes {
		if n.Driver == "file" && n.File == path {
			storage = n.Name
		}
	}
	above := strings.TrimSuffix(storage, "-storage") + "-format"
	for _, n := range g.nodes {
		if n.Name == above {
			return above, storage
		}
	}
	return storage, storage
}

// uses is the node that the disk with this alias reads from and writes to.
func (g graph) uses(alias string) string {
	for _, device := range g.devices {
		// A virtio disk is a child of the device that libvirt named, others are that device.
		path, _, _ := strings.Cut(strings.TrimPrefix(device.Path, "/machine/peripheral/"), "/")
		if alias != "" && path == alias {
			return device.Inserted.Node
		}
	}
	return ""
}

// job finds a job by the beginning of its name.
func (g graph) job(prefix string) (blockJob, bool) {
	for _, j := range g.jobs {
		if strings.HasPrefix(j.ID, prefix) {
			return j, true
		}
	}
	return blockJob{}, false
}

// lostMerge finds the merge of a disk by the name that libvirt gives it. libvirt that died
// when it had just begun one knows of the job afterwards, but not that it ends in a pivot.
func lostMerge(d *libvirt.Domain, target string) (blockJob, error) {
	var g graph
	if err := ask(d, "query-jobs", nil, &g.jobs); err != nil {
		return blockJob{}, err
	}
	job, found := g.job("commit-" + target + "-")
	if !found {
		return blockJob{}, hypervisor.ErrNotReady
	}
	return job, nil
}

// followQEMU corrects what libvirt says of a disk whose merge it believes in although there
// is none any more: it died when QEMU had pivoted, or had given the merge up.
func followQEMU(d *libvirt.Domain, disk *hypervisor.Disk) error {
	live, err := readDefinition(d, 0)
	if err != nil {
		return err
	}
	element := live.disk(disk.Target)
	if element == nil || element.SelectElement("mirror") == nil {
		return nil // libvirt knows meanwhile; the next look sees it
	}
	mirror := element.SelectElement("mirror")
	g, err := readGraph(d)
	if err != nil {
		return err
	}
	disk.JobLost = true
	base := filePath(mirror)
	if node, _ := g.open(base); node == "" || node != g.uses(attr(element, "alias", "name")) {
		return nil
	}
	disk.Path, disk.Format = base, attr(mirror, "format", "type")
	for i, below := range disk.Chain {
		if pathname.Same(below.Path, base) {
			disk.Chain = disk.Chain[i+1:]
			break
		}
	}
	return nil
}
