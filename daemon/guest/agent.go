package guest

import (
	"context"
	"fmt"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/hypervisor"
)

// agentPing is how long one question to the booting guest may take.
const agentPing = 2 * time.Second

// AwaitAgent waits, for a bounded time, until the agent of a guest that was started
// answers, and adds to the result of the operation whether it did. A guest without agent
// is not waited for, and one that never answers is no failure: the answer is for people.
func (g *Guests) AwaitAgent(ctx context.Context, r *operation.Run, within time.Duration) error {
	until := time.Now().Add(within)
	return g.inventory.Await(ctx, r.Op.VPS, time.Second, func() (bool, error) {
		dom, err := g.inventory.Read(ctx, r.Op.VPS)
		switch {
		case err != nil:
			return false, err
		case dom.Agent == hypervisor.AgentNone || dom.State != hypervisor.Running:
			return true, nil
		case dom.Agent == hypervisor.AgentConnected && g.host.PingAgent(ctx, dom.ID, agentPing) == nil:
			r.AddResult("the guest answers again")
			return true, nil
		case time.Now().After(until):
			r.AddResult(fmt.Sprintf("the guest agent has not answered within %s", within))
			return true, nil
		}
		return false, nil
	})
}
