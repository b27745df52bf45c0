package bus

import (
	"context"
	"encoding/xml"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	"vpssnapd/daemon/vps"
)

const (
	managerPath    = "/org/vpssnapd1"
	vpsRoot        = managerPath + "/vps"
	operationRoot  = managerPath + "/operation"
	nowhere        = dbus.ObjectPath("/")
	listedChildren = 100
)

// A path holds letters, digits and _ only. They are what vpsPath and operationPath make,
// and nothing else: a path that could not be ours is no object.
var (
	vpsElement       = regexp.MustCompile(`^[0-9a-f]{8}(_[0-9a-f]{4}){3}_[0-9a-f]{12}$`)
	operationElement = regexp.MustCompile(`^op_[0-9a-f]{1,40}$`)
)

func vpsPath(id string) dbus.ObjectPath {
	return dbus.ObjectPath(vpsRoot + "/" + strings.ReplaceAll(id, "-", "_"))
}

func operationPath(id string) dbus.ObjectPath {
	return dbus.ObjectPath(operationRoot + "/" + strings.ReplaceAll(id, "-", "_"))
}

// object is one path that is served. iface is "" for a mere node of the tree. Whether
// there is such a VPS or operation is found out by the daemon, after polkit was asked.
type object struct {
	objects *objects
	path    string
	iface   string
	id      string
}

// objects are all of them. They are never registered: a path says what it is about.
type objects struct {
	server *server
	conn   atomic.Pointer[dbus.Conn]
}

var _ dbus.Handler = (*objects)(nil)

// LookupObject makes an object for any path that could be one. Whether there is such a
// VPS or operation the call itself finds out. No lookup is made before polkit was asked,
// so that nobody finds out which VPSes there are.
func (o *objects) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	one := &object{objects: o, path: string(path)}
	// Ids are in lower case and hold "-", which a path may not: "_" stands for it.
	parent, last, _ := cutLast(string(path))
	switch {
	case path == managerPath:
		one.iface = managerInterface
	case parent == vpsRoot && vpsElement.MatchString(last):
		one.iface, one.id = vpsInterface, strings.ReplaceAll(last, "_", "-")
	case parent == operationRoot && operationElement.MatchString(last):
		one.iface, one.id = operationInterface, strings.ReplaceAll(last, "_", "-")
	case path != nowhere && path != "/org" && path != vpsRoot && path != operationRoot:
		return nil, false
	}
	return one, true
}

func cutLast(path string) (parent, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// interfaces are those of the object, its own first.
func (o *object) interfaces() []string {
	if o.iface == "" {
		return []string{introspectInterface}
	}
	return []string{o.iface, propertiesInterface, introspectInterface}
}

func (o *object) LookupInterface(name string) (dbus.Interface, bool) {
	return &face{object: o, name: name}, slices.Contains(o.interfaces(), name)
}

// face is one interface of an object.
type face struct {
	object *object
	name   string
}

func (f *face) LookupMethod(name string) (dbus.Method, bool) {
	m, ok := methods[f.name][name]
	return &bound{object: f.object, iface: f.name, name: name, method: m}, ok
}

// introspect describes the object. What is below it is told to those only who may
// look, and are not asked for a password.
func (o *object) introspect(ctx context.Context, mayLook func() bool) (string, error) {
	node := introspect.Node{}
	for _, i := range append(o.interfaces(), introspect.PeerData.Name) {
		node.Interfaces = append(node.Interfaces, contract()[i])
	}
	for _, child := range o.children(ctx, mayLook) {
		node.Children = append(node.Children, introspect.Node{Name: child})
	}
	text, err := xml.MarshalIndent(node, "", "  ")
	return strings.TrimSpace(introspect.IntrospectDeclarationString) + "\n" + string(text), err
}

// children are the names below the object; those of VPSes and operations only if mayLook.
func (o *object) children(ctx context.Context, mayLook func() bool) []string {
	switch o.path {
	case "/":
		return []string{"org"}
	case "/org":
		return []string{"vpssnapd1"}
	case managerPath:
		return []string{"vps", "operation"}
	}
	if o.iface != "" || !mayLook() {
		return nil
	}
	var paths []dbus.ObjectPath
	if o.path == vpsRoot {
		list, _ := o.objects.server.Services.Overview.ListVPS(ctx) // none while libvirt is away
		for _, v := range list {
			paths = append(paths, vpsPath(v.ID))
		}
	} else {
		page, _ := o.objects.server.Services.Operations.Operations(ctx, vps.OperationQuery{Limit: listedChildren})
		for _, op := range page.Operations {
			paths = append(paths, operationPath(op.ID))
		}
	}
	var names []string
	for _, p := range paths {
		_, last, _ := cutLast(string(p))
		names = append(names, last)
	}
	return names
}
