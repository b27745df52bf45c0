package site_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// programsWithPoints builds the programs that can be told where to die, once.
var programsWithPoints = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(binDir, "points")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, site.Build(context.Background(), dir, "-tags", "failpoints")
})

// mortal is a host whose daemon dies at a failpoint.
type mortal struct {
	*host
	point *string
}

func newMortal(t *testing.T, o site.Options) mortal {
	t.Helper()
	dir, err := programsWithPoints()
	if err != nil {
		t.Fatal(err)
	}
	point := new(string)
	more := o.Env
	o.BinDir, o.Env = dir, func() []string {
		environment := []string{"VPSSNAP_FAILPOINT=" + *point}
		if more != nil {
			environment = append(environment, more()...)
		}
		return environment
	}
	return mortal{openHost(t, o), point}
}

// diesAt begins an operation with a daemon that dies at that point, and returns
// when it is dead.
func (h mortal) diesAt(point string, begin func() (api.Operation, error)) {
	h.t.Helper()
	*h.point = point
	h.restart()
	*h.point = ""
	_, _ = begin() // it may die before it answers
	select {
	case <-h.DaemonEnded():
	case <-time.After(bootWithin):
		h.t.Fatal("the daemon did not come to " + point)
	}
}

// last is the newest operation of a VPS when it has ended.
func (h mortal) last(name string) api.Operation {
	h.t.Helper()
	list, err := h.Client.Operations(h.t.Context(), api.ListOperationsParams{VPS: &name})
	h.must(err)
	return h.ended(list.Operations[0])
}

// pointCases are the rows that say what is to become of an operation in whose
// middle somebody dies. meanwhile is what else happens while the daemon is dead.
var pointCases = []struct {
	row       string
	operation string
	point     string
	meanwhile func(h mortal)
	want      string // the operation's status; "" when there is none
}{
	{row: "FAULTS row 1", operation: "take", point: "take/request/commit/before"},
	{row: "FAULTS row 2", operation: "take", point: "take/overlays/CreateOverlay/before", want: "failed"},
	{row: "FAULTS row 3", operation: "take", point: "take/switch/SwitchToOverlays/before", want: "failed"},
	{row: "FAULTS row 4", operation: "take", point: "take/switch/SwitchToOverlays/after", want: "succeeded"},
	{row: "FAULTS row 6", operation: "delete", point: "delete/merge/StartMerge/after", want: "succeeded"},
	{row: "FAULTS row 7", operation: "delete", point: "delete/merge/commit/before", want: "succeeded"},
	{row: "FAULTS row 8", operation: "delete", point: "delete/pivot/Suspend/after", want: "succeeded"},
	{row: "FAULTS row 9", operation: "delete", point: "delete/pivot/Pivot/after", want: "succeeded"},
	{row: "FAULTS row 10", operation: "delete", point: "delete/unlink/Remove/before", want: "succeeded"},
	{row: "FAULTS row 11", operation: "restore", point: "restore/exchange/Exchange/after", want: "succeeded"},
	{row: "FAULTS row 12", operation: "restore", point: "restore/start/Start/before", want: "succeeded"},
	{
		row:       "FAULTS row 15",
		operation: "delete",
		point:     "delete/merge/StartMerge/after",
		meanwhile: mortal.anotherLibvirtd,
		want:      "succeeded",
	},
	{
		row:       "FAULTS row 18",
		operation: "delete",
		point:     "delete/merge/commit/before",
		meanwhile: mortal.guestDies,
		want:      "succeeded",
	},
	{
		row:       "FAULTS row 19",
		operation: "delete",
		point:     "delete/settle/PointDisks/before",
		meanwhile: mortal.guestDies,
		want:      "succeeded",
	},
	{
		row:       "FAULTS row 22",
		operation: "delete",
		point:     "delete/pivot/Pivot/after",
		meanwhile: mortal.secondDiskFails,
		want:      "succeeded",
	},
}

const pointVPS = "web1"

func (h mortal) anotherLibvirtd() {
	h.must(h.Lab.KillLibvirtd())
	h.must(h.Lab.StartLibvirtd(h.t.Context()))
}

func (h mortal) guestDies() { h.must(h.Lab.KillQEMU(pointVPS)) }

// secondDiskFails: one disk has pivoted, and the merge of the other is lost.
func (h mortal) secondDiskFails() {
	overlays := strings.Count(h.virsh("domblklist", pointVPS), ".vpssnap-")
	if overlays != 1 {
		h.t.Fatalf("%d disks have not pivoted", overlays)
	}
	for _, target := range []string{"vda", "vdb"} {
		// Of the disk that has pivoted there is none.
		_, _ = h.Lab.Virsh(h.t.Context(), "blockjob", pointVPS, target, "--abort")
	}
}

// TestKilledAtPoints kills a real daemon at one point of an operation per row,
// and looks at what the next one makes of it: old or new, whole, nothing left,
// no guest suspended, the secrets of its definition kept.
func TestKilledAtPoints(t *testing.T) {
	t.Parallel()
	h := newMortal(t, site.Options{})
	spec := twoDisks(pointVPS)
	spec.VNCPassword = "s3cret"
	h.define(spec, "running")
	before := h.look(pointVPS)
	for _, c := range pointCases {
		if !t.Run(c.row, func(t *testing.T) {
			h := mortal{&host{h.Site, t}, h.point}
			h.fill(pointVPS, 'a')
			if c.operation != "take" {
				h.take(pointVPS, api.TakeRequest{})
				h.fill(pointVPS, 'b')
			}
			h.diesAt(c.point, h.beginner(c.operation))
			if c.meanwhile != nil {
				c.meanwhile(h)
			}
			h.must(h.StartDaemon(t.Context()))
			h.guestRunsOn(c.operation, c.meanwhile != nil)
			h.outcome(c.operation, c.want)
			h.bring(pointVPS, "running")
			h.same("afterwards", pointVPS, before)
			h.clean(pointVPS)
		}) {
			return
		}
	}
}

func (h mortal) beginner(operation string) func() (api.Operation, error) {
	ctx := h.t.Context()
	return map[string]func() (api.Operation, error){
		"take":   func() (api.Operation, error) { return h.Client.Take(ctx, pointVPS, api.TakeRequest{}) },
		"delete": func() (api.Operation, error) { return h.Client.Delete(ctx, pointVPS) },
		"restore": func() (api.Operation, error) {
			s, err := h.Client.Snapshot(ctx, pointVPS)
			h.must(err)
			return h.Client.Restore(ctx, pointVPS, api.RestoreRequest{Confirm: s.ID})
		},
	}[operation]
}

// guestRunsOn waits until a guest runs that the daemon may have left suspended.
func (h mortal) guestRunsOn(operation string, killed bool) {
	h.t.Helper()
	if operation == "delete" && !killed {
		h.eventually("the guest runs", func() bool { return h.state(pointVPS) == "running" })
	}
}

// outcome checks the end of an operation, and ends with a VPS without snapshot.
func (h mortal) outcome(operation, want string) {
	h.t.Helper()
	if want != "" {
		if op := h.last(pointVPS); string(op.Status) != want {
			h.t.Errorf("the %s ended as %s: %+v", operation, op.Status, op.Error)
		}
	}
	switch {
	case operation == "take" && want == "succeeded", operation == "restore":
		if h.state(pointVPS) != "running" {
			h.t.Errorf("the VPS is %s", h.state(pointVPS))
		}
		h.holds(pointVPS, 'a')
		h.fill(pointVPS, 'c')
		h.restore(pointVPS)
		h.holds(pointVPS, 'a')
		h.delete(pointVPS)
	case operation == "take":
		h.holds(pointVPS, 'a')
		if h.has(pointVPS) {
			h.t.Error("there is a snapshot")
		}
		h.clean(pointVPS)
		h.take(pointVPS, api.TakeRequest{}) // a retry works
		h.delete(pointVPS)
	default:
		if h.has(pointVPS) {
			h.t.Error("the snapshot is still there")
		}
		h.holds(pointVPS, 'b')
	}
}

// TestDefinitionCannotBeSaved has no room where libvirt keeps its definitions when
// a merge ends: the guest, which was suspended for the pivot, runs on, an operator
// is asked, and nothing is lost.
func TestDefinitionCannotBeSaved(t *testing.T) {
	t.Parallel()
	definitions := newVolume(t, "tmpfs", t.TempDir(), 4)
	h := newMortal(t, site.Options{Lab: lab.Options{ConfigDir: definitions.dir}})
	ctx := t.Context()
	h.define(twoDisks(pointVPS), "running")
	before := h.look(pointVPS)
	h.take(pointVPS, api.TakeRequest{})
	h.fill(pointVPS, 'b')
	h.diesAt("delete/pivot/Suspend/before", h.beginner("delete"))
	definitions.fill(0)
	h.must(h.StartDaemon(ctx))
	list, err := h.Client.Operations(ctx, api.ListOperationsParams{})
	h.must(err)
	op := h.at(list.Operations[0], "settle")
	h.eventually("the guest runs", func() bool { return h.state(pointVPS) == "running" })
	if op, err = h.Client.Operation(ctx, op.ID); err != nil || op.Status != "running" {
		t.Errorf("the guest runs only now that the operation is %s, %v", op.Status, err)
	}
	h.eventually("an operator is asked", func() bool {
		op, err = h.Client.Operation(ctx, op.ID)
		return err == nil && op.Status == "needs_attention"
	})
	if op.Error == nil || !strings.Contains(op.Error.Remedy, "full") || h.state(pointVPS) != "running" {
		t.Errorf("the operator reads %+v, and the VPS is %s", op.Error, h.state(pointVPS))
	}
	definitions.empty()
	h.done(h.Client.ResumeOperation(ctx, op.ID))
	h.holds(pointVPS, 'b')
	h.same("after delete", pointVPS, before)
	h.clean(pointVPS)
}
