package merge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A job can stand still for ever: libvirt died when it began and lost track of it, somebody
// paused it or gave it no speed, or the storage swallowed a request. It is ended and begun
// again, a few times, and then left to an operator (FAULTS row 44).

const (
	// mostRestarts is how often the merges of one step are begun again.
	mostRestarts = 3
	// largestCopy is what QEMU copies at a time at most: with a limited speed nothing is
	// seen to move until then.
	largestCopy = 16 << 20
)

// headway watches the merge of one step.
type headway struct {
	m        *Merger
	r        *operation.Run
	last     state
	at       time.Time // when it was seen to move
	restarts int
}

// look ends the jobs of a merge that has not moved for too long; the next look at the
// merge begins them again.
func (w *headway) look(ctx context.Context, dom hypervisor.Domain, set Set, s state) error {
	moved := s.started > 0 || s.waiting != w.last.waiting || s.copied != w.last.copied || s.left != w.last.left
	if w.last = s; moved || w.at.IsZero() {
		w.at = time.Now()
	}
	limit := w.m.policy().StalledAfter
	if limit == 0 {
		return nil
	}
	if set.Bandwidth > 0 {
		limit += time.Duration(float64(largestCopy) / float64(set.Bandwidth) * float64(time.Second))
	}
	if time.Since(w.at) < limit {
		return nil
	}
	if w.restarts == mostRestarts {
		return errNoHeadway(dom, limit, nil)
	}
	w.restarts++
	w.at = time.Now()
	w.m.logger.Warn("merge makes no headway and is begun again", w.r.Op.LogAttr(), "after", limit, "left", s.left)
	return w.end(ctx, dom, set, limit)
}

// end ends the jobs that are waited for.
func (w *headway) end(ctx context.Context, dom hypervisor.Domain, set Set, limit time.Duration) error {
	for _, disk := range set.Snap.Disks {
		if set.Merged(dom, disk) {
			continue
		}
		job, err := w.m.host.MergeJob(ctx, dom.ID, disk.Target)
		switch {
		case err != nil:
			return err
		case job.Lost:
			return errNoHeadway(dom, limit, errors.New("libvirt died when it began the merge, and cannot end it"))
		case !job.Found || job.Ready && set.Active:
			continue
		}
		if err := w.m.host.AbortMerge(ctx, dom.ID, disk.Target); err != nil {
			return fmt.Errorf("merge of disk %s, which makes no headway, not ended: %w", disk.Target, err)
		}
	}
	return nil
}

// errNoHeadway leaves a merge that stands still to an operator.
func errNoHeadway(dom hypervisor.Domain, limit time.Duration, cause error) error {
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged,
			"the disks of %s are not merged: QEMU's job has made no headway for %s, each time it was begun", dom.Name, limit).
			WithRemedy("the VPS's disks are whole; look whether its storage answers (virsh domblkerror %s, the kernel's "+
				"log) and whether somebody holds the job (virsh blockjob), then resume the operation; with %s shut "+
				"down it is merged without QEMU", dom.Name, dom.Name).
			Because(cause),
	)
}
