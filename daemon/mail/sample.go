package mail

import (
	"time"

	"vpssnapd/daemon/vps"
)

// samples are what every template is tried with: with as little as there can be,
// and with every outcome.
var samples = func() []Letter {
	at := time.Date(2026, 11, 22, 10, 15, 0, 0, time.UTC)
	ends, kept := at.Add(72*time.Hour), at.Add(240*time.Hour)
	full := Letter{At: at, VPS: "web1", OrderRef: "A-2026-001",
		Price: &vps.Price{
			Amount:   299,
			Currency: "EUR",
			Period:   vps.PeriodMonth,
		}, EndsAt: &ends, KeptUntil: &kept, UndoUntil: &ends,
		TakenAt: &at, Description: "before the upgrade", Way: vps.WayPanel, Result: "the VPS was off"}
	all := []Letter{{At: at, VPS: "web1"}}
	for _, operation := range []vps.Kind{vps.KindTake, vps.KindRestore, vps.KindUndoRestore, vps.KindDelete} {
		for _, status := range []vps.Status{vps.StatusSucceeded, vps.StatusFailed, vps.StatusNeedsAttention} {
			l := full
			l.Operation, l.Status = operation, status
			if status != vps.StatusSucceeded {
				l.Code = vps.CodeInsufficientSpace
			}
			all = append(all, l)
		}
	}
	return all
}()
