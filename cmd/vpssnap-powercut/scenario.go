package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

const (
	siteConfig  = "[snapshot]\nheadroom = \"1 MiB\"\nagent_wait = \"1s\"\n"
	finishLimit = time.Minute
	pollEvery   = 2 * time.Millisecond
)

// scenario does what is recorded.
type scenario struct {
	site    *site.Site
	now     func() (int64, error)
	victims []*victim
	random  interface{ IntN(int) int }
}

// openSite starts libvirtd and the daemon on what lies on the stage.
func openSite(ctx context.Context, s *stage, bin string) (*site.Site, error) {
	return site.Open(ctx, site.Options{
		BinDir: bin, StateDir: s.stateDir(), Config: siteConfig,
		Lab: lab.Options{ImageDir: s.imageDir(), ConfigDir: s.configDir()},
	})
}

// populate makes the VPSes. One runs and one is off: their operations take different
// ways through libvirt and QEMU.
func (s *scenario) populate(ctx context.Context) error {
	s.victims = []*victim{
		{name: "web1", targets: []string{"vda", "vdb"}, formats: []string{"qcow2", "raw"}, state: "running"},
		{name: "web2", targets: []string{"vda"}, formats: []string{"qcow2"}, state: "shut off"},
	}
	for _, v := range s.victims {
		spec := lab.Spec{Name: v.name}
		for i, t := range v.targets {
			spec.Disks = append(spec.Disks, lab.DiskSpec{Target: t, Format: v.formats[i], SizeBytes: blocks * blockSize})
		}
		if _, err := s.site.Lab.DefineDomain(ctx, spec); err != nil {
			return err
		}
		if v.state == "running" {
			if _, err := s.site.Lab.Virsh(ctx, "start", v.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// play does to every VPS what a customer does. The first delete follows a restore, whose
// undo it has to end first.
func (s *scenario) play(ctx context.Context) error {
	for _, v := range s.victims {
		if err := s.order(ctx, v); err != nil {
			return err
		}
		for _, kind := range []string{"take", "restore", "delete", "take", "delete"} {
			if err := s.writeSome(ctx, v); err != nil {
				return err
			}
			if err := s.operate(ctx, v, kind); err != nil {
				return err
			}
		}
		if err := s.writeSome(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// begin notes that something begins. It is noted before the act, so that a cut in
// between finds it begun.
func (s *scenario) begin(v *victim, a *act) (*act, error) {
	var err error
	a.vps = v.name
	a.began, err = s.now()
	v.acts = append(v.acts, a)
	return a, err
}

// order activates the option as soon as the daemon knows the VPS. Its end is noted after
// the answer: from there on it is acknowledged.
func (s *scenario) order(ctx context.Context, v *victim) error {
	var err error
	for end := time.Now().Add(finishLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err = s.site.Client.VPS(ctx, v.name); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	a, err := s.begin(v, &act{kind: "option"})
	if err != nil {
		return err
	}
	if _, err := s.site.Client.PutOption(ctx, v.name, api.OptionOrder{State: "active", OrderRef: "powercut"}); err != nil {
		return err
	}
	a.ended, err = s.now()
	return err
}

// writeSome lets the guest write a few blocks.
func (s *scenario) writeSome(ctx context.Context, v *victim) error {
	for range 2 {
		for i := range v.targets {
			if err := s.write(ctx, v, i, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// write lets the guest write and flush one block.
func (s *scenario) write(ctx context.Context, v *victim, disk int, during bool) error {
	a, err := s.begin(v, &act{
		kind: "write", target: v.targets[disk], block: s.random.IntN(blocks), value: byte(1 + s.random.IntN(255)), during: during,
	})
	if err != nil {
		return err
	}
	offset := int64(a.block) * blockSize
	if v.state == "shut off" {
		err = s.site.Lab.WriteDisk(ctx, v.name, a.target, offset, a.value, blockSize)
	} else {
		// lab.WriteDisk does the same with more care, and is too slow to meet a take.
		_, err = s.site.Lab.HMP(ctx, v.name, fmt.Sprintf(
			"qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend \"write -f -P %d %d %d\"", disk, a.value, offset, blockSize))
	}
	if err != nil {
		return err
	}
	a.ended, err = s.now()
	return err
}

// operate does one operation, notes its steps, and insists on its success. The
// guest of a VPS that is on writes during a take.
func (s *scenario) operate(ctx context.Context, v *victim, kind string) error {
	a, err := s.begin(v, &act{kind: kind})
	if err != nil {
		return err
	}
	op, err := s.ask(ctx, v, kind)
	if err != nil {
		return err
	}
	a.op = op.ID
	if a.accepted, err = s.now(); err != nil {
		return err
	}
	var writing sync.WaitGroup
	var writeErr error
	done := make(chan struct{})
	if kind == "take" && v.state == "running" {
		writing.Go(func() { writeErr = s.writeUntil(ctx, v, done) })
	}
	op, err = s.follow(ctx, a, op)
	close(done)
	writing.Wait()
	switch {
	case err != nil:
		return err
	case writeErr != nil:
		return writeErr
	case op.Status != api.OperationStatusSucceeded:
		return fmt.Errorf("%s of %s ended as %s: %+v", kind, v.name, op.Status, op.Error)
	}
	return nil
}

func (s *scenario) writeUntil(ctx context.Context, v *victim, done <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-done:
			return nil
		default:
		}
		if err := s.write(ctx, v, i%len(v.targets), true); err != nil {
			return err
		}
	}
}

// follow waits for the end and notes each step when it is first seen.
func (s *scenario) follow(ctx context.Context, a *act, op api.Operation) (api.Operation, error) {
	for end := time.Now().Add(finishLimit); ; time.Sleep(pollEvery) {
		at, err := s.now()
		if err != nil {
			return op, err
		}
		if n := len(a.steps); op.Step != "" && (n == 0 || a.steps[n-1].name != op.Step) {
			a.steps = append(a.steps, stepSeen{at, op.Step})
		}
		if client.Ended(op) {
			a.ended = at
			return op, nil
		}
		if time.Now().After(end) {
			return op, fmt.Errorf("%s does not end, it is at %s", a.kind, op.Step)
		}
		if op, err = s.site.Client.Operation(ctx, op.ID); err != nil {
			return op, err
		}
	}
}

func (s *scenario) ask(ctx context.Context, v *victim, kind string) (api.Operation, error) {
	switch kind {
	case "take":
		return s.site.Client.Take(ctx, v.name, api.TakeRequest{})
	case "delete":
		return s.site.Client.Delete(ctx, v.name)
	}
	return restore(ctx, s.site, v.name, "")
}

func restore(ctx context.Context, s *site.Site, name string, power api.RestoreRequestPowerAfter) (api.Operation, error) {
	snapshot, err := s.Client.Snapshot(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	return s.Client.Restore(ctx, name, api.RestoreRequest{Confirm: snapshot.ID, PowerAfter: power})
}

// ours are the snapshot files of one VPS.
func ours(files []string, v *victim) []string {
	return slices.DeleteFunc(slices.Clone(files), func(f string) bool { return !strings.HasPrefix(f, v.name+"-") })
}
