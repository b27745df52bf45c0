package bus

import (
	"encoding/xml"
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/godbus/dbus/v5"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// The table of methods is what org.vpssnapd1.xml describes, both ways.
func TestMethodsAreThoseOfTheContract(t *testing.T) {
	for iface, described := range contract() {
		if iface == "org.freedesktop.DBus.Peer" {
			continue // the library's
		}
		for _, m := range described.Methods {
			if methods[iface][m.Name].run == nil {
				t.Errorf("%s.%s is described, but there is none", iface, m.Name)
			}
			for _, a := range m.Args {
				if _, err := dbus.ParseSignature(a.Type); err != nil || a.Name == "" && len(described.Properties) > 0 {
					t.Errorf("%s.%s: argument %+v: %v", iface, m.Name, a, err)
				}
			}
		}
	}
	for iface, of := range methods {
		for name := range of {
			if _, ok := methodOf(iface, name); !ok {
				t.Errorf("%s.%s is not described", iface, name)
			}
		}
	}
}

// full has every field set that leaves the process.
func full() vps.VPS {
	at := time.Unix(1, 0)
	o := vps.Option{
		ID:           "o",
		VPS:          "v",
		State:        vps.OptionActive,
		OrderRef:     "r",
		Price:        vps.Price{Amount: 1, Currency: "EUR", Period: vps.PeriodMonth},
		ContactEmail: "a@b",
		Locale:       "fr",
		OrderedAt:    at,
		ActivatedAt:  &at,
		EndsAt:       &at,
		CancelledAt:  &at,
		GraceUntil:   &at,
		ReleasedAt:   &at,
		UpdatedAt:    at,
	}
	s := vps.Snapshot{
		ID:          "s",
		VPS:         "v",
		State:       vps.SnapshotBroken,
		Reason:      "r",
		Description: "d",
		CreatedAt:   at,
		Consistency: vps.ConsistencyCrash,
		FreezeMS:    1,
		SizeBytes:   1,
		DeltaBytes:  1,
		RestoredAt:  &at,
		UndoUntil:   &at,
		UpdatedAt:   at,
	}
	return vps.VPS{
		ID:        "v",
		Name:      "web1\x00\xff",
		Disks:     []vps.Disk{{Target: "vda"}},
		Option:    &o,
		Snapshot:  &s,
		Operation: &vps.Operation{ID: "op-1"},
	}
}

// The properties have the types that the contract promises, and none is missing.
func TestPropertiesAreThoseOfTheContract(t *testing.T) {
	eta := int64(1)
	for iface, have := range map[string]dict{
		vpsInterface: vpsProperties(full()),
		operationInterface: operationProperties(vps.Operation{ID: "op-1", Progress: vps.Progress{ETASeconds: &eta},
			Error: vps.Errorf(vps.CodeInsufficientSpace, "full")}),
		managerInterface: {"Version": dbus.MakeVariant("1")},
	} {
		described := contract()[iface].Properties
		for _, p := range described {
			if got := have[p.Name].Signature().String(); got != p.Type || p.Access != "read" {
				t.Errorf("%s.%s has the type %s, and is described as %s (%s)", iface, p.Name, got, p.Type, p.Access)
			}
		}
		if len(have) != len(described) {
			t.Errorf("%s has %d properties, and %d are described", iface, len(have), len(described))
		}
	}
}

// What the methods return has the types of the contract.
func TestResultsAreThoseOfTheContract(t *testing.T) {
	for member, result := range map[string]any{
		"ListVPS": []listedVPS{}, "ListOperations": []listedOperation{}, "ListStorage": []listedStorage{},
	} {
		m, _ := methodOf(managerInterface, member)
		if got := dbus.SignatureOf(result).String(); got != signature(m, "out") {
			t.Errorf("%s returns %s, described as %s", member, got, signature(m, "out"))
		}
	}
}

// Dictionaries have the keys of the REST API, which documents them for both.
func TestDictionariesSpeakREST(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	if err != nil {
		t.Fatal(err)
	}
	v := full()
	for schema, d := range map[string]dict{"Option": optionDict(v.Option), "Snapshot": snapshotDict(v.Snapshot)} {
		for key := range spec.Components.Schemas[schema].Value.Properties {
			if _, ok := d[key]; !ok {
				t.Errorf("%s has %s in REST, and not here", schema, key)
			}
		}
		if got, want := len(d), len(spec.Components.Schemas[schema].Value.Properties); got != want {
			t.Errorf("%s has %d keys here, %d in REST", schema, got, want)
		}
	}
	// And the names of the errors are those of the codes.
	for _, code := range spec.Components.Schemas["Code"].Value.Enum {
		got := errorName(vps.Code(code.(string)))
		if !regexp.MustCompile(`^org\.vpssnapd1\.Error(\.[A-Z][A-Za-z]+)$`).MatchString(got) {
			t.Errorf("%s becomes %s", code, got)
		}
	}
	for code, want := range map[vps.Code]string{
		vps.CodeSnapshotExists: "SnapshotExists", vps.CodeVPSChanged: "VPSChanged", vps.CodeInternal: "Internal",
	} {
		if got := errorName(code); got != "org.vpssnapd1.Error."+want {
			t.Errorf("%s becomes %s", code, got)
		}
	}
}

// What is sent never has a string that makes the bus cut us off.
func TestTextFitsTheBus(t *testing.T) {
	if got := vpsProperties(full())["Name"].Value(); got != "web1\uFFFD\uFFFD" {
		t.Errorf("the name is sent as %q", got)
	}
	if got := busError(vps.Errorf(vps.CodeNotFound, "no \xff\x00")).Body[0]; got != "no \uFFFD\uFFFD" {
		t.Errorf("the error is sent as %q", got)
	}
}

// The actions that are asked for are those that polkit knows.
func TestActionsAreThoseOfThePolicy(t *testing.T) {
	text, err := os.ReadFile("../../packaging/polkit/org.vpssnapd1.policy")
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Actions []struct {
			ID       string `xml:"id,attr"`
			Message  string `xml:"message"`
			Defaults struct {
				Any      string `xml:"allow_any"`
				Inactive string `xml:"allow_inactive"`
				Active   string `xml:"allow_active"`
			} `xml:"defaults"`
		} `xml:"action"`
	}
	if err := xml.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	var known, asked []string
	for _, a := range policy.Actions {
		known = append(known, a.ID)
		if d := a.Defaults; a.Message == "" || d.Any != "auth_admin" || d.Inactive != "auth_admin" ||
			d.Active != "auth_admin_keep" {
			t.Errorf("%+v", a)
		}
	}
	for _, of := range methods {
		for _, m := range of {
			if m.action != open && !slices.Contains(asked, m.action) {
				asked = append(asked, m.action)
			}
		}
	}
	slices.Sort(known)
	slices.Sort(asked)
	if !reflect.DeepEqual(known, asked) {
		t.Errorf("polkit knows %q, and %q are asked for", known, asked)
	}
}
