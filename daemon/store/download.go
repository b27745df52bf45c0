package store

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

// Download returns a link with what is known of its image; sql.ErrNoRows when
// there is none.
func (s queries) Download(ctx context.Context, id string) (vps.Download, error) {
	d := vps.Download{ID: id}
	err := s.q.QueryRowContext(ctx, `SELECT d.vps, d.snapshot, d.disk, d.format, d.file_name, d.created_at, d.expires_at,
		i.size_bytes, i.map, i.map_name, i.sha256 FROM download d
		JOIN image i ON i.snapshot = d.snapshot AND i.disk = d.disk AND i.format = d.format WHERE d.id = ?`, id).
		Scan(&d.VPS, &d.SnapshotID, &d.Disk, &d.Format, &d.FileName, moment{&d.CreatedAt}, moment{&d.ExpiresAt},
			&d.Image.SizeBytes, &d.Image.Map, &d.Image.MapName, &d.Image.SHA256)
	return d, err
}

// Image returns what is known of a disk of a snapshot as an image; sql.ErrNoRows
// when nothing is.
func (s queries) Image(ctx context.Context, snapshot, disk string, f vps.ImageFormat) (vps.Image, error) {
	var i vps.Image
	err := s.q.QueryRowContext(ctx, `SELECT size_bytes, map, map_name, sha256 FROM image WHERE snapshot = ? AND disk = ? AND format = ?`,
		snapshot, disk, f).Scan(&i.SizeBytes, &i.Map, &i.MapName, &i.SHA256)
	return i, err
}

// DownloadKey returns what links are signed with; sql.ErrNoRows before the first.
func (s queries) DownloadKey(ctx context.Context) (key []byte, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT key FROM download_key`).Scan(&key)
	return key, err
}

// AddDownloadKey records the key, unless there is one.
func (t *Tx) AddDownloadKey(ctx context.Context, key []byte) error {
	return t.exec(ctx, `INSERT INTO download_key (one, key) VALUES (1, ?) ON CONFLICT DO NOTHING`, key)
}

// AddDownload records a link, and its image unless that is known, and forgets
// links that expired and images of snapshots that are gone.
func (t *Tx) AddDownload(ctx context.Context, d vps.Download) error {
	if err := t.exec(ctx, `DELETE FROM download WHERE expires_at < ?`, micros(d.CreatedAt)); err != nil {
		return err
	}
	if err := t.exec(ctx, `DELETE FROM image WHERE snapshot NOT IN (SELECT id FROM snapshot WHERE state <> 'gone')`); err != nil {
		return err
	}
	err := t.exec(ctx, `INSERT INTO image (snapshot, disk, format, size_bytes, map, map_name) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		d.SnapshotID, d.Disk, d.Format, d.Image.SizeBytes, d.Image.Map, d.Image.MapName)
	if err != nil {
		return err
	}
	return t.exec(ctx, `INSERT INTO download (id, vps, snapshot, disk, format, file_name, created_at, expires_at) VALUES (?,?,?,?,?,?,?,?)`,
		d.ID, d.VPS, d.SnapshotID, d.Disk, d.Format, d.FileName, micros(d.CreatedAt), micros(d.ExpiresAt))
}

// CountDownloads counts the links of a VPS that are valid.
func (s queries) CountDownloads(ctx context.Context, vpsID string, now time.Time) (n int, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT count(*) FROM download WHERE vps = ? AND expires_at >= ?`, vpsID, micros(now)).Scan(&n)
	return n, err
}

// RemoveDownload revokes a link of a VPS; sql.ErrNoRows (wrapped) when it has none
// of that id.
func (t *Tx) RemoveDownload(ctx context.Context, vpsID, id string) error {
	return t.execOne(ctx, `DELETE FROM download WHERE vps = ? AND id = ?`, vpsID, id)
}

// SetImageSum records the SHA-256 of an image.
func (t *Tx) SetImageSum(ctx context.Context, d vps.Download, sum []byte) error {
	return t.exec(ctx, `UPDATE image SET sha256 = ? WHERE snapshot = ? AND disk = ? AND format = ? AND map_name = ?`,
		sum, d.SnapshotID, d.Disk, d.Format, d.Image.MapName)
}
