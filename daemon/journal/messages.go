package journal

import (
	"context"

	"vpssnapd/daemon/vps"
)

// Messages returns one page of the messages. Codes: not_found.
func (j *Journal) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	q.Limit = vps.PageLimit(q.Limit)
	if q.VPS != "" {
		id, err := j.inventory.IDOf(ctx, q.VPS)
		if err != nil {
			return vps.MessagePage{}, err
		}
		q.VPS = id
	}
	return j.store.Messages(ctx, q)
}
