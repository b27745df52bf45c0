package vps

// Host is the KVM host that the daemon runs on.
type Host struct {
	Hostname          string
	Version           string // of vpssnapd
	LibvirtVersion    string
	HypervisorVersion string // of QEMU
	Connected         bool   // to libvirt
	VPSCount          int
	SnapshotCount     int
	ActiveOperations  int
	ParkedOperations  int
	Storage           []Storage
}

// Storage is a directory with images and the room left in it. Bytes.
type Storage struct {
	Path           string
	TotalBytes     int64
	FreeBytes      int64
	HeadroomBytes  int64 // takes are refused when less than this is free
	OverlayBytes   int64 // allocated by our overlays
	TakesPermitted bool
	Level          SpaceLevel
	// FullInSeconds is when it is full at the present rate; 0: it is not filling up.
	FullInSeconds int64
}
