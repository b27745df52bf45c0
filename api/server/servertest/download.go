package servertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"vpssnapd/daemon/vps"
)

// Content is the disk of every snapshot, in any format. It is more than the
// buffers between two ends of a connection hold.
var Content = bytes.Repeat([]byte("a frozen disk, "), 1_000_000)

// MakeDownload and the methods below it are those of the daemon. The link of dl-N
// is dl-N.signed.
func (s *Service) MakeDownload(_ context.Context, ref string, r vps.DownloadRequest, a vps.Actor) (vps.Download, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.Download{}, err
	}
	if v.Snapshot == nil {
		return vps.Download{}, vps.Errorf(vps.CodeNotFound, "%s has no snapshot", v.Name)
	}
	if r.Format == "" {
		r.Format = vps.FormatQcow2
	}
	if r.Disk == "" {
		r.Disk = "vda"
	}
	s.called("make-download", v.Name, a)
	sum := sha256.Sum256(Content)
	id := fmt.Sprintf("dl-%012x", len(s.downloads)+1)
	d := vps.Download{
		ID: id, VPS: v.ID, SnapshotID: v.Snapshot.ID, Disk: r.Disk, Format: r.Format, CreatedAt: Epoch, ExpiresAt: Epoch.Add(24 * time.Hour),
		Link: id + ".signed", FileName: v.Name + "." + string(r.Format), Image: vps.Image{SizeBytes: int64(len(Content)), SHA256: sum[:]},
	}
	s.downloads = append(s.downloads, d)
	return d, nil
}

func (s *Service) RevokeDownload(_ context.Context, ref, id string, a vps.Actor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return err
	}
	for i, d := range s.downloads {
		if d.ID == id && d.VPS == v.ID && d.Link != "" {
			s.called("revoke-download", v.Name, a)
			s.downloads[i].Link = ""
			return nil
		}
	}
	return vps.Errorf(vps.CodeNotFound, "%s has no such link", v.Name)
}

// Downloads leaves out those that were revoked.
func (s *Service) Downloads(_ context.Context, ref string) ([]vps.Download, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	var valid []vps.Download
	for _, d := range s.downloads {
		if d.VPS == v.ID && d.Link != "" {
			valid = append(valid, d)
		}
	}
	return valid, nil
}

func (s *Service) Download(ctx context.Context, id string) (vps.Download, error) {
	return s.FindDownload(ctx, id+".signed")
}

func (s *Service) FindDownload(_ context.Context, link string) (vps.Download, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.downloads {
		if d.Link == link {
			return d, s.Err
		}
	}
	return vps.Download{}, vps.Errorf(vps.CodeNotFound, "there is nothing to download here")
}

func (s *Service) OpenDownload(ctx context.Context, link string) (vps.Download, io.ReadSeekCloser, error) {
	d, err := s.FindDownload(ctx, link)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return d, nil, err
	}
	image := &image{Reader: bytes.NewReader(Content), cut: len(Content)}
	if s.CutDownloads > 0 {
		s.CutDownloads--
		image.cut = len(Content) / 3
	}
	return d, image, nil
}

// image fails when so many bytes were read.
type image struct {
	*bytes.Reader
	cut int
}

func (i *image) Read(p []byte) (int, error) {
	if i.cut <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := i.Reader.Read(p[:min(len(p), i.cut)])
	i.cut -= n
	return n, err
}

func (i *image) Close() error { return nil }
