package doctor

import (
	"context"
	"errors"

	"vpssnapd/daemon/vps"
	"vpssnapd/hostfile"
)

// checkOwn judges the daemon's own files: the configuration and what it names, and the
// record.
func (d *Doctor) checkOwn(ctx context.Context) []vps.Finding {
	if d.judge == nil {
		return nil
	}
	var findings []vps.Finding
	for _, err := range d.judge(ctx) {
		f := vps.Finding{Code: vps.CheckUnreachable, Detail: err.Error(), Remedies: []vps.Remedy{
			remedy("put a regular file there that can be read at once; the daemon would not start with this one")}}
		if unsafe, ok := errors.AsType[*hostfile.Unsafe](err); ok {
			f.Code, f.Path = vps.CheckWrongModeOrOwner, unsafe.Path
			f.Detail = unsafe.Path + " is not safe: " + unsafe.Why + "; the daemon would not start with it"
			f.Remedies = []vps.Remedy{remedy("take the rights away from others", unsafe.Cure)}
		}
		findings = append(findings, f)
	}
	return findings
}
