package site

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"vpssnapd/api"
)

// IsAstray reports whether an operation waits because libvirt, which died within a call, is
// wrong about its VPS (FAULTS row 44).
func IsAstray(op api.Operation) bool {
	return op.Status == api.OperationStatusNeedsAttention &&
		strings.Contains(op.Error.Detail, "libvirt takes "+op.VPSName+" for ")
}

// CureAstray does what doctor says of such a VPS, with nothing but its commands, on the lab's
// libvirt. The operation can be resumed then.
func (s *Site) CureAstray(ctx context.Context, name string) error {
	report, err := s.Client.Checks(ctx)
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		if f.Code != api.CheckCodeUnreachable || f.VPSName != name {
			continue
		}
		for _, line := range f.Remedies[0].Commands {
			if err := s.inLab(ctx, name, line); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("doctor finds nothing about %s: %+v", name, report.Findings)
}

// inLab does a command of doctor's on the lab, which is a host of its own.
func (s *Site) inLab(ctx context.Context, name, line string) error {
	if strings.HasPrefix(line, "systemctl try-restart ") {
		if err := s.Lab.EndLibvirtd(ctx); err != nil {
			return err
		}
		return s.Lab.StartLibvirtd(ctx)
	}
	line = strings.ReplaceAll(line, "/run/libvirt/qemu/"+name+".xml", s.Lab.StatusFile(name))
	if out, err := exec.CommandContext(ctx, "bash", "-c", line).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}
