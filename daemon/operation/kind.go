package operation

import (
	"fmt"
	"maps"
	"slices"

	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/vps"
)

// Kind is a kind of operation. The package that knows how to do one registers it
// (Kinds.Add); nobody else knows any kind by its name.
type Kind struct {
	// Name is stored, and shown in the API.
	Name vps.Kind
	// Verb completes "cannot … of web1", as in "take the snapshot".
	Verb string
	// Plan returns the steps of one operation.
	Plan func(op vps.Operation) (Plan, error)
	// ChangesBase: what a snapshot consists of may change, so nobody may read it meanwhile.
	ChangesBase bool
	// StopsGuest: the guest may be suspended on purpose from one step to the next, so
	// recovery leaves it to the operation when the guest runs again.
	StopsGuest bool
	// DoneMail tells the customer of its success; "": nothing does.
	DoneMail mail.Kind
}

// Kinds are the kinds of operations that this program knows.
type Kinds struct{ known map[vps.Kind]Kind }

// NewKinds knows none yet.
func NewKinds() *Kinds { return &Kinds{known: map[vps.Kind]Kind{}} }

// Add registers kinds, before the first operation is begun or taken up.
func (k *Kinds) Add(kinds ...Kind) {
	for _, kind := range kinds {
		if _, twice := k.known[kind.Name]; twice {
			panic("two packages register the kind of operation " + string(kind.Name))
		}
		k.known[kind.Name] = kind
	}
}

// Of returns a kind. Of one that this program does not know all but the name is zero.
func (k *Kinds) Of(name vps.Kind) Kind {
	if kind, known := k.known[name]; known {
		return kind
	}
	return Kind{Name: name, Verb: "finish the operation " + string(name)}
}

// Names lists the kinds.
func (k *Kinds) Names() []vps.Kind { return slices.Sorted(maps.Keys(k.known)) }

// plan returns the steps of an operation.
func (k *Kinds) plan(op vps.Operation) (Plan, error) {
	kind, known := k.known[op.Kind]
	if !known {
		return nil, fmt.Errorf("operations of kind %q are unknown to this version", op.Kind)
	}
	return kind.Plan(op)
}
