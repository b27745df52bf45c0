// Package systemd holds the unit files and the code that talks to systemd.
package systemd

import "github.com/coreos/go-systemd/v22/daemon"

// Ready tells systemd that requests are answered now. Outside systemd it does nothing.
func Ready() { notify(daemon.SdNotifyReady) }

// Stopping tells systemd that no more requests are taken.
func Stopping() { notify(daemon.SdNotifyStopping) }

// notify sends a state. A failure changes nothing for us: systemd's own start
// timeout deals with a notification that was lost.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }
