package daemontest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// The VPSes of every host. Each has one disk of DiskBytes, and a guest agent.
const (
	// Web1 runs and has an active option, but no snapshot.
	Web1 = "11111111-1111-4111-8111-111111111111"
	// Web2 runs and has no option.
	Web2 = "22222222-2222-4222-8222-222222222222"
	// Web3 is off and has an active option and a snapshot. What is frozen is more than
	// the buffers between two ends of a connection hold.
	Web3 = "33333333-3333-4333-8333-333333333333"

	// DiskBytes is the size of a disk, WrittenBytes what Web3 has written since its snapshot.
	DiskBytes    = 16 << 20
	WrittenBytes = 3 << 20
)

var (
	shop  = vps.Actor{Name: "shop", Way: vps.WayOrder}
	panel = vps.Actor{Name: "panel", Way: vps.WayPanel}
)

// defineVPSes makes the VPSes, all of which run, and lets Web3 write to its disk.
func (h *Host) defineVPSes() error {
	host, err := fake.Open(h.hostDir())
	if err != nil {
		return err
	}
	for i, id := range []string{Web1, Web2, Web3} {
		err = errors.Join(
			err, host.DefineAs(id, fmt.Sprintf("web%d", i+1), hypervisor.Disk{Target: "vda", SizeBytes: DiskBytes}),
			host.SetAgent(id, fake.AgentAnswers), host.Start(context.Background(), id, false),
		)
	}
	const part = 1 << 20
	for at := int64(0); at < DiskBytes-part; at += part { // the end of the disk was never written
		err = errors.Join(err, host.Write(Web3, "vda", at, byte(at/part+1), part))
	}
	return errors.Join(err, host.Close())
}

// furnish orders the options, takes the snapshot of Web3, lets it write and shuts it
// down, and makes the tokens.
func (h *Host) furnish() error {
	if err := errors.Join(h.Order(Web1, "order-1"), h.Order(Web3, "order-1")); err != nil {
		return err
	}
	op, err := h.Take("web3", "before the upgrade")
	if err != nil {
		return err
	}
	if op, err = h.Ended(op.ID); err != nil {
		return err
	}
	if op.Status != vps.StatusSucceeded {
		return fmt.Errorf("the take of web3 is %s: %w", op.Status, op.Error)
	}
	if err := errors.Join(h.Write(Web3, "vda", 0, 'x', WrittenBytes), h.KillGuest(Web3)); err != nil {
		return err
	}
	// Read again at once, and not when the daemon has got round to its event.
	return errors.Join(h.Restart(nil), h.addTokens())
}

// addTokens makes a token for each scope, called like it: "panel" may read and
// snapshot, "bound" and "bound-to-3" are bound to Web1 and Web3.
func (h *Host) addTokens() error {
	all := []vps.TokenRequest{
		{Name: "panel", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot}},
		{Name: "bound", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption}, VPS: []string{Web1}},
		{Name: "bound-to-3", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption}, VPS: []string{Web3}},
	}
	for _, scope := range []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption, vps.ScopeAdmin} {
		all = append(all, vps.TokenRequest{Name: string(scope), Scopes: []vps.Scope{scope}})
	}
	for _, r := range all {
		if err := h.AddToken(r); err != nil {
			return err
		}
	}
	return nil
}

// AddToken makes a token, whose secret Secret tells then.
func (h *Host) AddToken(r vps.TokenRequest) error {
	_, secret, err := h.Daemon.Tokens.CreateToken(context.Background(), r, vps.Actor{Name: "test", Way: vps.WayOperator})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.secret[r.Name] = secret
	return err
}

// Secret is that of the token with this name, else the name itself, which is none.
func (h *Host) Secret(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if secret, ok := h.secret[name]; ok {
		return secret
	}
	return name
}

// Order makes the option of a VPS active. With another reference than before it is an
// event, and a message, each time.
func (h *Host) Order(ref, orderRef string) error {
	_, err := h.Daemon.Options.PutOption(
		context.Background(), ref, vps.OptionOrder{State: vps.OptionActive, OrderRef: orderRef}, shop,
	)
	return err
}

// Take begins to take the snapshot of a VPS, as a panel does.
func (h *Host) Take(ref, description string) (vps.Operation, error) {
	return h.Daemon.Snapshots.Take(context.Background(), ref, vps.TakeRequest{Description: description}, panel)
}

// Ended waits for the end of an operation, or until it waits for an operator.
func (h *Host) Ended(id string) (vps.Operation, error) {
	op, err := h.Daemon.Operations.WaitOperation(context.Background(), id, patience)
	if err == nil && !op.Status.Final() && op.Status != vps.StatusNeedsAttention {
		err = fmt.Errorf("%s of %s has not ended: it is at step %s", op.Kind, op.VPSName, op.Step)
	}
	return op, err
}

// Snapshot is that of a VPS.
func (h *Host) Snapshot(ref string) (vps.Snapshot, error) {
	return h.Daemon.Snapshots.Snapshot(context.Background(), ref)
}

// LastEvent is the id of the newest event, which whoever begins to listen comes behind.
func (h *Host) LastEvent() (last int64, err error) {
	ctx := context.Background()
	waited := Eventually("the newest event is read", func() bool {
		recorded, err1 := h.Daemon.Journal.Events(ctx, math.MaxInt64) // there is none with this id: so the record is asked
		read, err2 := h.Daemon.Journal.Events(ctx, vps.FromNow)
		last, err = read.After, errors.Join(err1, err2)
		return err != nil || read.After == recorded.After
	})
	return last, errors.Join(err, waited)
}

// patience is how long anything may take here.
const patience = 30 * time.Second

// Eventually waits until ok.
func Eventually(what string, ok func() bool) error {
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("not within %s: %s", patience, what)
		}
	}
	return nil
}
