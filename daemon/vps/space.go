package vps

// SpaceLevel is how serious the lack of space on a file system is.
type SpaceLevel string

const (
	// SpaceOK: enough is free, and not filling up fast.
	SpaceOK SpaceLevel = "ok"
	// SpaceWarning: less than twice the headroom is free, or it will be full within a day.
	SpaceWarning SpaceLevel = "warning"
	// SpaceCritical: less than the headroom is free, so that takes are refused,
	// or it will be full within three hours.
	SpaceCritical SpaceLevel = "critical"
)
