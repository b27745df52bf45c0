package vps

import (
	"encoding/hex"
	"time"
)

// ImageFormat is what a disk can be downloaded as.
type ImageFormat string

const (
	// FormatQcow2 leaves out what was never written.
	FormatQcow2 ImageFormat = "qcow2"
	// FormatRaw is the bytes of the disk.
	FormatRaw ImageFormat = "raw"
)

// DownloadRequest asks for a link to a disk of the snapshot.
type DownloadRequest struct {
	Disk   string      // "": the only one
	Format ImageFormat // "": FormatQcow2
	// By is the token that asks, which the link does not outlive; nil for operators on
	// the host.
	By *Token
}

// Download is a link to a disk of a snapshot as one image.
type Download struct {
	ID         string
	VPS        string
	SnapshotID string
	Disk       string
	Format     ImageFormat
	Token      string // the id of the token that made it; "": an operator on the host
	CreatedAt  time.Time
	ExpiresAt  time.Time
	// Link is the id with its signature: who has it may read the disk.
	Link     string
	FileName string
	Image    Image
}

// Image is a disk of a snapshot in a format. It never changes.
type Image struct {
	SizeBytes int64
	// Map says where the disk holds data, in its packed form; nil for FormatRaw.
	Map []byte
	// MapName tells maps apart.
	MapName string
	// SHA256 is nil until it is known.
	SHA256 []byte
}

// Tag names the bytes of an image: the same tag, the same bytes.
func (d Download) Tag() string {
	tag := d.SnapshotID + "-" + d.Disk + "-" + string(d.Format)
	if d.Image.MapName != "" {
		tag += "-" + d.Image.MapName
	}
	return tag
}

// Sum is the SHA-256 in hexadecimal; "" when it is not known.
func (i Image) Sum() string { return hex.EncodeToString(i.SHA256) }
