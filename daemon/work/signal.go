package work

// Signal tells one listener that there is something to do. It does not count: what
// is told twice before the listener looks is told once.
type Signal chan struct{}

// NewSignal makes a signal that was not given.
func NewSignal() Signal { return make(Signal, 1) }

// Wake gives the signal. It never waits.
func (s Signal) Wake() {
	select {
	case s <- struct{}{}:
	default:
	}
}
