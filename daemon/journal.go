package daemon

import (
	"context"
	"fmt"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// say appends to the journal.
func (d *Daemon) say(ctx context.Context, tx *store.Tx, m vps.Message) error {
	m.At = d.now()
	if m.VPSName == "" {
		if dom, ok := d.inventory.find(m.VPS); ok {
			m.VPSName = dom.Name
		}
	}
	return tx.AddMessage(ctx, m)
}

// deeds names what each kind of operation does, for the journal.
var deeds = map[vps.Kind]struct{ begin, done, not string }{
	vps.KindTake:        {"A snapshot was asked for.", "The snapshot was taken", "The snapshot could not be taken"},
	vps.KindRestore:     {"A restore of the snapshot was asked for.", "The VPS was put back to its snapshot", "The VPS could not be put back to its snapshot"},
	vps.KindUndoRestore: {"The undo of the last restore was asked for.", "The last restore was undone", "The last restore could not be undone"},
	vps.KindDelete:      {"The deletion of the snapshot was asked for.", "The snapshot was deleted", "The snapshot could not be deleted"},
}

// journalOperation writes the message of a change of status, in the transaction of that change.
func (d *Daemon) journalOperation(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	m := vps.Message{VPS: op.VPS, VPSName: op.VPSName, Actor: op.Actor, Operation: op.ID}
	deed := deeds[op.Kind]
	switch op.Status {
	case vps.StatusPending:
		m.Kind, m.Text = vps.MessageOperationStarted, deed.begin
	case vps.StatusSucceeded:
		m.Kind, m.Text = vps.MessageOperationSucceeded, sentence(deed.done, op.Result)
	case vps.StatusCancelled:
		m.Kind, m.Text = vps.MessageOperationCancelled, deed.not+": it was cancelled. Nothing was changed."
	case vps.StatusFailed:
		m.Kind, m.Text, m.Detail = vps.MessageOperationFailed, deed.not+".", detailOf(op)
	case vps.StatusNeedsAttention:
		m.Kind, m.Text, m.Detail = vps.MessageNeedsAttention, deed.not+" yet; an operator of the host has to look at it.", detailOf(op)
	default:
		return nil
	}
	return d.say(ctx, tx, m)
}

func sentence(what, result string) string {
	if result == "" {
		return what + "."
	}
	return what + ": " + result + "."
}

func detailOf(op vps.Operation) string {
	if op.Error == nil {
		return ""
	}
	text := fmt.Sprintf("step %s: %s: %s; %s", op.Step, op.Error.Code, op.Error.Detail, op.Error.Remedy)
	if op.Error.Err != nil {
		text += fmt.Sprintf(" (%v)", op.Error.Err)
	}
	return text
}

// Messages returns one page of the journal.
func (d *Daemon) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	q.Limit = pageLimit(q.Limit)
	if q.VPS != "" {
		id, err := d.idOf(ctx, q.VPS)
		if err != nil {
			return vps.MessagePage{}, err
		}
		q.VPS = id
	}
	return d.store.Messages(ctx, q)
}

// pageLimit is how many rows a page has: 100 unless asked otherwise, 500 at most.
func pageLimit(n int) int {
	if n <= 0 {
		return 100
	}
	return min(n, 500)
}
