package store

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

const (
	downloadColumns = `SELECT d.id, d.vps, d.snapshot, d.disk, d.format, d.file_name, coalesce(d.token, ''), d.created_at, d.expires_at, i.size_bytes, i.map_name, i.sha256, `
	downloadTables  = ` FROM download d JOIN image i ON i.snapshot = d.snapshot AND i.disk = d.disk AND i.format = d.format `
)

func scanDownload(row scanner) (vps.Download, error) {
	var d vps.Download
	err := row.Scan(&d.ID, &d.VPS, &d.SnapshotID, &d.Disk, &d.Format, &d.FileName, &d.Token, moment{&d.CreatedAt}, moment{&d.ExpiresAt},
		&d.Image.SizeBytes, &d.Image.MapName, &d.Image.SHA256, &d.Image.Map)
	return d, err
}

// Download returns a link with what is known of its image; sql.ErrNoRows when
// there is none.
func (s queries) Download(ctx context.Context, id string) (vps.Download, error) {
	return scanDownload(s.q.QueryRowContext(ctx, downloadColumns+`i.map`+downloadTables+`WHERE d.id = ?`, id))
}

// Downloads returns the links to a snapshot that are valid, oldest first, without the
// maps of their images.
func (s queries) Downloads(ctx context.Context, snapshot string, now time.Time) ([]vps.Download, error) {
	rows, err := s.q.QueryContext(
		ctx,
		downloadColumns+`NULL`+downloadTables+`WHERE d.snapshot = ? AND d.expires_at > ? ORDER BY d.created_at, d.id`,
		snapshot, micros(now),
	)
	return collect(rows, err, scanDownload)
}

// Image returns what is known of a disk of a snapshot as an image; sql.ErrNoRows
// when nothing is.
func (s queries) Image(ctx context.Context, snapshot, disk string, f vps.ImageFormat) (vps.Image, error) {
	var i vps.Image
	err := s.q.QueryRowContext(ctx, `SELECT size_bytes, map, map_name, sha256 FROM image WHERE snapshot = ? AND disk = ? AND format = ?`,
		snapshot, disk, f).
		Scan(&i.SizeBytes, &i.Map, &i.MapName, &i.SHA256)
	return i, err
}

// DownloadKey returns what links are signed with; sql.ErrNoRows before the first.
func (s queries) DownloadKey(ctx context.Context) (key []byte, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT key FROM download_key`).Scan(&key)
	return key, err
}

// AddDownloadKey records the key, unless there is one. Of two first links at once, both
// are signed with the same key.
func (t *Tx) AddDownloadKey(ctx context.Context, key []byte) error {
	return t.exec(ctx, `INSERT INTO download_key (one, key) VALUES (1, ?) ON CONFLICT DO NOTHING`, key)
}

// AddDownload records a link, and its image unless that is known, and forgets links
// that expired, and links and images of snapshots that are gone.
func (t *Tx) AddDownload(ctx context.Context, d vps.Download) error {
	if err := t.forgetDownloads(ctx, d.CreatedAt); err != nil {
		return err
	}
	err := t.exec(
		ctx,
		`INSERT INTO image (snapshot, disk, format, size_bytes, map, map_name) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		d.SnapshotID, d.Disk, d.Format, d.Image.SizeBytes, d.Image.Map, d.Image.MapName,
	)
	if err != nil {
		return err
	}
	return t.exec(
		ctx,
		`INSERT INTO download (id, vps, snapshot, disk, format, file_name, token, created_at, expires_at)
		VALUES (?,?,?,?,?,?,nullif(?, ''),?,?)`,
		d.ID, d.VPS, d.SnapshotID, d.Disk, d.Format, d.FileName, d.Token, micros(d.CreatedAt), micros(d.ExpiresAt),
	)
}

// forgetDownloads removes links that have expired, and links and images of snapshots
// that are gone.
func (t *Tx) forgetDownloads(ctx context.Context, now time.Time) error {
	err := t.exec(ctx, `DELETE FROM download WHERE expires_at < ?
		OR NOT EXISTS (SELECT 1 FROM snapshot s WHERE s.id = download.snapshot AND s.state <> 'gone')`, micros(now))
	if err != nil {
		return err
	}
	return t.exec(
		ctx,
		`DELETE FROM image WHERE NOT EXISTS (SELECT 1 FROM snapshot s WHERE s.id = image.snapshot AND s.state <> 'gone')`,
	)
}

// RemoveDownload revokes a link of a VPS; sql.ErrNoRows (wrapped) when it has none
// of that id.
func (t *Tx) RemoveDownload(ctx context.Context, vpsID, id string) error {
	return t.execOne(ctx, `DELETE FROM download WHERE vps = ? AND id = ?`, vpsID, id)
}

// SetImageSum records the SHA-256 of an image. By the map's name: another layout of the
// same disk has another sum.
func (t *Tx) SetImageSum(ctx context.Context, d vps.Download, sum []byte) error {
	return t.exec(ctx, `UPDATE image SET sha256 = ? WHERE snapshot = ? AND disk = ? AND format = ? AND map_name = ?`,
		sum, d.SnapshotID, d.Disk, d.Format, d.Image.MapName)
}
