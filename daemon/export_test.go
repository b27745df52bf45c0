package daemon

import "context"

// LookAtSpace looks at the file systems once, as watchSpace does by itself.
func (d *Daemon) LookAtSpace(ctx context.Context) { d.lookAtSpace(ctx) }
