package daemon_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"vpssnapd/daemon/vps"
)

// checkLimit is how long the search for an order of one history may take.
const checkLimit = time.Minute

// judge adds what only the record knows, and looks for an order.
func (h *history) judge() tally {
	sum := tally{rounds: 1, calls: h.calls, kills: len(h.kills)}
	for _, id := range h.vpses {
		ops := h.operations(id)
		sum.operations += len(ops)
		for _, op := range ops {
			if h.struckWithin(op) {
				sum.interrupted++
			}
			if op.Status == vps.StatusCancelled {
				sum.cancelled++
			}
			h.outcome(op)
		}
		h.order(id, h.complete(id, ops))
	}
	return sum
}

func (h *history) operations(id string) map[string]vps.Operation {
	all := map[string]vps.Operation{}
	q := vps.OperationQuery{VPS: id, Limit: 500}
	for {
		page, err := h.daemon.Operations.Operations(ctx, q)
		h.must(err)
		for _, op := range page.Operations {
			all[op.ID] = op
		}
		if q.Before = page.Next; page.Next == "" {
			return all
		}
	}
}

func (h *history) struckWithin(op vps.Operation) bool {
	return slices.ContainsFunc(h.kills, func(at time.Duration) bool {
		when := h.began.Add(at)
		return when.After(op.CreatedAt.Add(-20*time.Millisecond)) && when.Before(op.EndedAt.Add(20*time.Millisecond))
	})
}

// outcome holds the end of an operation against who wanted it cancelled.
func (h *history) outcome(op vps.Operation) {
	heard := slices.Contains(h.cancels[op.ID], true)
	wanted := heard || len(h.cancels[op.ID+" lost"]) > 0 || op.Actor.Way == vps.WayExpiry // an order cancels those
	switch op.Status {
	case vps.StatusSucceeded:
		if heard {
			h.t.Errorf("%s %s was cancelled, and then succeeded", op.Kind, op.ID)
		}
	case vps.StatusCancelled:
		if !wanted {
			h.t.Errorf("%s %s is cancelled, and nobody wanted that", op.Kind, op.ID)
		}
	default:
		if op.Status != vps.StatusFailed || !h.struckWithin(op) {
			h.t.Errorf("%s %s is %s at %s, with nothing wrong: %+v", op.Kind, op.ID, op.Status, op.Step, op.Error)
		}
	}
}

// complete turns acts into a history: what came of a call whose answer was lost,
// the record tells by the caller's name, which is used once only.
func (h *history) complete(id string, ops map[string]vps.Operation) []act {
	byActor := map[string]vps.Operation{}
	for _, op := range ops {
		byActor[op.Actor.Name] = op
	}
	ordered := h.authors(id)
	var all []act
	begun := map[string]bool{}
	for _, a := range h.acts[id] {
		switch {
		case !a.lost:
		case a.what == "order", a.what == "cancel-option":
			if !ordered[a.actor] {
				continue // and if it changed nothing, it does not matter
			}
			a.returned = h.since()
		default:
			op, happened := byActor[a.actor]
			if !happened {
				continue
			}
			a.operation, a.returned = op.ID, h.ended[op.ID]
		}
		if op, ok := ops[a.operation]; ok {
			begun[op.ID] = true
			if op.Kind == vps.KindTake {
				a.snapshot = op.SnapshotID
			}
			all = append(all, h.effects(op, a)...)
		}
		all = append(all, a)
	}
	for _, op := range ops {
		if begun[op.ID] {
			continue
		}
		if op.Actor.Way != vps.WayExpiry {
			h.t.Errorf("%s %s was asked for by nobody: %+v", op.Kind, op.ID, op.Actor)
		}
		a := act{step: step{what: string(op.Kind), operation: op.ID, expiry: true}, client: clients + 1,
			call: op.CreatedAt.Sub(h.began) - 10*time.Millisecond, returned: h.ended[op.ID]}
		all = append(append(all, a), h.effects(op, a)...)
	}
	return all
}

// authors are who changed the option of a VPS.
func (h *history) authors(id string) map[string]bool {
	names := map[string]bool{}
	q := vps.MessageQuery{VPS: id, Kind: vps.MessageOptionChanged, Limit: 500}
	for {
		page, err := h.daemon.Journal.Messages(ctx, q)
		h.must(err)
		for _, m := range page.Messages {
			names[m.Actor.Name] = true
		}
		if q.Before = page.Next; page.Next == 0 {
			return names
		}
	}
}

// effects are what follows an accepted request: between the request and the
// moment at which its end was seen, in this order.
func (h *history) effects(op vps.Operation, asked act) []act {
	a := act{client: asked.client, call: asked.call, returned: h.ended[op.ID]}
	a.step = step{what: "ended", operation: op.ID, succeeded: op.Status == vps.StatusSucceeded}
	ended := a
	a.what, a.snapshot = "turned", op.SnapshotID
	if !ended.succeeded || op.Kind == vps.KindDelete {
		return []act{ended}
	}
	return []act{a, ended}
}

// order fails unless the acts can have happened one after the other.
func (h *history) order(id string, acts []act) {
	var list []porcupine.Operation
	for _, a := range acts {
		list = append(
			list,
			porcupine.Operation{
				ClientId: a.client,
				Input:    a.step,
				Call:     int64(a.call),
				Return:   int64(max(a.call, a.returned)),
			},
		)
	}
	result, info := porcupine.CheckOperationsVerbose(model, list, checkLimit)
	switch result {
	case porcupine.Ok:
		return
	case porcupine.Unknown:
		h.t.Errorf("no order of the %d acts on %s was found within %s", len(list), id, checkLimit)
		return
	}
	h.t.Errorf("no order of the %d acts on %s is possible; %s", len(list), id, h.conflict(acts, info))
}

// conflict shows where the longest possible order ends.
func (h *history) conflict(acts []act, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	state := model.Init()
	done := map[string]int{}
	key := func(call int64, s step) string { return fmt.Sprint(call, s) }
	for _, op := range longest {
		_, state = model.Step(state, op.Input, nil)
		done[key(op.Call, op.Input.(step))]++
	}
	var rest []act
	for _, a := range acts {
		if k := key(int64(a.call), a.step); done[k] > 0 {
			done[k]--
			continue
		}
		rest = append(rest, a)
	}
	slices.SortFunc(rest, func(a, b act) int { return int(a.returned - b.returned) })
	var text strings.Builder
	fmt.Fprintf(&text, "%d can be ordered, which leads to\n  %s\nlast of them\n", len(longest), model.DescribeState(state))
	for _, op := range longest[max(0, len(longest)-12):] {
		fmt.Fprintf(&text, "  %v–%v client %d: %s\n", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, op.Input)
	}
	text.WriteString("and then none of\n")
	for _, a := range rest[:min(12, len(rest))] {
		fmt.Fprintf(&text, "  %v–%v client %d: %s\n", a.call, a.returned, a.client, a.step)
	}
	return text.String()
}
