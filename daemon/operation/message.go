package operation

import (
	"context"
	"fmt"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// messageKinds is what kind of message tells of each status; of the others none does.
var messageKinds = map[vps.Status]vps.MessageKind{
	vps.StatusPending:        vps.MessageOperationStarted,
	vps.StatusSucceeded:      vps.MessageOperationSucceeded,
	vps.StatusCancelled:      vps.MessageOperationCancelled,
	vps.StatusFailed:         vps.MessageOperationFailed,
	vps.StatusNeedsAttention: vps.MessageNeedsAttention,
}

// addMessage writes the message of a change of status, in the transaction of that change.
func addMessage(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	kind, told := messageKinds[op.Status]
	if !told {
		return nil
	}
	phrase, params := vps.PhraseOf(op.Kind, op.Status), map[string]string{"result": op.Result}
	if phrase.Generic() {
		params["kind"] = string(op.Kind)
	}
	return tx.AddMessage(ctx, vps.Message{VPS: op.VPS, VPSName: op.VPSName, Kind: kind, Actor: op.Actor, Operation: op.ID,
		Phrase: phrase, Params: params, Detail: detailOf(op)})
}

// detailOf is what operators read of an operation's error.
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
