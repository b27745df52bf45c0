package daemon

import (
	"context"
	"fmt"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// say appends to the journal. What is said is kept both as a phrase, for every
// language, and as English text, for who reads the database.
func (d *Daemon) say(ctx context.Context, tx *store.Tx, m vps.Message) error {
	m.At = d.now()
	m.Text = m.In(vps.English)
	if m.VPSName == "" {
		if dom, ok := d.inventory.find(m.VPS); ok {
			m.VPSName = dom.Name
		}
	}
	return tx.AddMessage(ctx, m)
}

// journalKinds is what kind of message tells of each status; of the others none does.
var journalKinds = map[vps.Status]vps.MessageKind{
	vps.StatusPending:        vps.MessageOperationStarted,
	vps.StatusSucceeded:      vps.MessageOperationSucceeded,
	vps.StatusCancelled:      vps.MessageOperationCancelled,
	vps.StatusFailed:         vps.MessageOperationFailed,
	vps.StatusNeedsAttention: vps.MessageNeedsAttention,
}

// journalOperation writes the message of a change of status, and the mail about it,
// in the transaction of that change.
func (d *Daemon) journalOperation(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	kind, ok := journalKinds[op.Status]
	if !ok {
		return nil
	}
	err := d.say(ctx, tx, vps.Message{VPS: op.VPS, VPSName: op.VPSName, Kind: kind, Actor: op.Actor, Operation: op.ID,
		Phrase: vps.PhraseOf(op.Kind, op.Status), Params: map[string]string{"result": op.Result}, Detail: detailOf(op)})
	if err != nil {
		return err
	}
	return d.postOperation(ctx, tx, op)
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
