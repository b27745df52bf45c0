package bus

import (
	_ "embed"
	"encoding/xml"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5/introspect"
	"github.com/godbus/dbus/v5/prop"
)

const (
	managerInterface    = name + ".Manager"
	vpsInterface        = name + ".VPS"
	operationInterface  = name + ".Operation"
	propertiesInterface = "org.freedesktop.DBus.Properties"
	introspectInterface = "org.freedesktop.DBus.Introspectable"
)

//go:embed org.vpssnapd1.xml
var contractText []byte

// contract is every interface that is served, by name. The XML is parsed once and is
// part of the program; a broken one is found by any test.
var contract = sync.OnceValue(func() map[string]introspect.Interface {
	var node introspect.Node
	if err := xml.Unmarshal(contractText, &node); err != nil {
		panic("the embedded org.vpssnapd1.xml is broken: " + err.Error())
	}
	all := map[string]introspect.Interface{}
	for _, i := range append(node.Interfaces, prop.IntrospectData, introspect.IntrospectData, introspect.PeerData) {
		all[i.Name] = i
	}
	return all
})

// signature is what a method takes, as in "sa{sv}".
func signature(m introspect.Method, direction string) string {
	var types strings.Builder
	for _, a := range m.Args {
		// By the D-Bus specification a method's argument without a direction goes in.
		if a.Direction == direction || a.Direction == "" && direction == "in" {
			types.WriteString(a.Type)
		}
	}
	return types.String()
}

// methodOf finds a method in the contract.
func methodOf(iface, method string) (introspect.Method, bool) {
	for _, m := range contract()[iface].Methods {
		if m.Name == method {
			return m, true
		}
	}
	return introspect.Method{}, false
}

// emitted are the properties of an interface whose changes are told.
func emitted(iface string) []string {
	var names []string
	for _, p := range contract()[iface].Properties {
		// What does not say so is told
		// (org.freedesktop.DBus.Property.EmitsChangedSignal).
		silent := false
		for _, a := range p.Annotations {
			silent = silent || a.Name == "org.freedesktop.DBus.Property.EmitsChangedSignal" && a.Value != "true"
		}
		if !silent {
			names = append(names, p.Name)
		}
	}
	return names
}
