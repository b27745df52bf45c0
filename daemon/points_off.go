//go:build !failpoints

package daemon

import "vpssnapd/hypervisor"

// withFailpoints returns h as it is in a release.
func withFailpoints(h hypervisor.Host) hypervisor.Host { return h }
