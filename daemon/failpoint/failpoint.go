// Package failpoint names every moment around a durable write or an effect on
// the host, so that a test can kill the daemon there. A point's name is
//
//	<operation kind>/<step>/<effect>/<before|after>
//
// as in delete/pivot/Pivot/after; outside an operation the first two parts are
// "daemon" and what is being done there. The points come from the runner and
// from a wrapper around hypervisor.Host, so a new step or effect has its points
// without a line of its own.
//
// Without the build tag failpoints all of this compiles to nothing.
package failpoint

import "context"

// Variable names the environment variable that arms the points: "NAME" or
// "NAME:N" kills the process at the N-th visit of that point, "*:N" at the N-th
// visit of any. Where Variable+"_SOCKET" names a Unix socket that visit does not
// kill: it sends its name there, a line, and waits for the answer. The
// answer is the next arming, counted from then, or an empty line. Whoever listens
// may kill this process meanwhile, or something else.
const Variable = "VPSSNAP_FAILPOINT"

type placeKey struct{}

// place is where in the daemon's work a context belongs.
type place struct{ kind, step string }

// Within returns a context whose points belong to this operation kind and step.
func Within(ctx context.Context, kind, step string) context.Context {
	if !Enabled {
		return ctx
	}
	return context.WithValue(ctx, placeKey{}, place{kind, step})
}

// Name is a point's full name.
func Name(ctx context.Context, effect, when string) string {
	p, ok := ctx.Value(placeKey{}).(place)
	if !ok {
		p = place{"daemon", "work"}
	}
	return p.kind + "/" + p.step + "/" + effect + "/" + when
}
