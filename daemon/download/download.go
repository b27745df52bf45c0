// Package download hands a frozen disk out as a file: links that are signed and can be
// revoked, and the image behind each, read from the disk as it is asked for.
package download

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/qcow2"
)

// Policy limits downloads.
type Policy struct {
	// Rate is how many bytes per second each may take; 0: unlimited.
	Rate int64
	// AtOnce is how many may run at the same time; 0: none.
	AtOnce int
}

// Downloads are the links to the disks of a host's snapshots.
type Downloads struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	integrity *integrity.Integrity
	images    *image.Images
	kinds     *operation.Kinds
	group     *work.Group
	policy    func() Policy
	logger    *slog.Logger
	sessions  *sessions
	sums      chan vps.Download // images to sum up
}

// New makes the downloads of a host. They are cut off when a snapshot turns out to be broken.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, in *integrity.Integrity, images *image.Images,
	kinds *operation.Kinds, group *work.Group, policy func() Policy, logger *slog.Logger,
) *Downloads {
	d := &Downloads{
		host:      host,
		inventory: inv,
		store:     db,
		integrity: in,
		images:    images,
		kinds:     kinds,
		group:     group,
		policy:    policy,
		logger:    logger,
		sessions:  newSessions(),
		sums:      make(chan vps.Download, 16),
	}
	in.OnBroken(func(vpsID, why string) { d.CutOff(vpsID, why) })
	return d
}

// Running counts the downloads that run.
func (d *Downloads) Running() int { return d.sessions.running() }

// Close cuts off everybody.
func (d *Downloads) Close() { d.sessions.cut(func(*session) bool { return true }, "the daemon stops") }

// Bounds that no setting changes: a link is a secret in a URL, and each one keeps its
// snapshot readable to whoever holds it.
const (
	// downloadValid is how long a link can be used.
	downloadValid = 24 * time.Hour
	// linksAtMost is how many valid ones a snapshot may have.
	linksAtMost = 50
	// mapWithin is how long a disk may take to be laid out as qcow2. QEMU 7.2 told the
	// 131,072 extents of a disk as fragmented as can be in 0.3 s (qcow2) and 0.5 s (raw).
	mapWithin = 2 * time.Minute
)

// MakeDownload makes a link to a disk of the snapshot. It ends with the token that asks
// for it.
//
// Codes: unauthenticated, not_found, invalid, operation_in_progress, vps_changed, rate_limited,
// hypervisor_unavailable.
func (d *Downloads) MakeDownload(
	ctx context.Context, ref string, r vps.DownloadRequest, actor vps.Actor,
) (vps.Download, error) {
	id, err := d.inventory.IDNow(ctx, ref)
	if err != nil {
		return vps.Download{}, err
	}
	name := d.inventory.Name(id)
	reading, snap, err := d.begin(ctx, id, "")
	if err != nil {
		return vps.Download{}, err
	}
	defer reading.end()
	disk, err := chosenDisk(name, snap, r.Disk)
	if err != nil {
		return vps.Download{}, err
	}
	if r.Format == "" {
		r.Format = vps.FormatQcow2
	}
	now := d.store.Now()
	link := vps.Download{
		ID: vps.NewDownloadID(), VPS: id, SnapshotID: snap.ID, Disk: disk.Target, Format: r.Format,
		CreatedAt: now, ExpiresAt: now.Add(downloadValid), FileName: fileName(name, snap, disk.Target, r.Format),
	}
	if r.By != nil {
		link.Token = r.By.ID
		if end := r.By.ExpiresAt; end != nil && end.Before(link.ExpiresAt) {
			link.ExpiresAt = *end
		}
	}
	if link.Image, err = d.imageOf(reading.ctx, name, snap, disk, r.Format); err != nil {
		return link, err
	}
	// The image was laid out before: that takes up to mapWithin and must not hold the
	// database.
	err = d.store.Write(ctx, func(tx *store.Tx) error { return d.add(ctx, tx, &link, name, actor) })
	if store.IsForeignKey(err) {
		return link, vps.Errorf(vps.CodeUnauthenticated, "the token was revoked meanwhile")
	}
	if err == nil {
		d.logger.Info(
			"download link made", "vps", name, "link", link.ID, "disk", link.Disk, "format", link.Format, "by",
			actor.Name,
		)
	}
	return link, err
}

// add writes the link down, unless the snapshot has as many as it may have: each may be
// read at the same time as the others.
func (d *Downloads) add(ctx context.Context, tx *store.Tx, link *vps.Download, name string, actor vps.Actor) error {
	valid, err := tx.Downloads(ctx, link.SnapshotID, link.CreatedAt)
	if err != nil {
		return err
	}
	if len(valid) >= linksAtMost {
		return vps.Errorf(vps.CodeRateLimited, "the snapshot of %s has %d links already", name, len(valid)).
			WithRemedy("revoke those that are no longer needed: vpssnap downloads list, and revoke")
	}
	if err := tx.AddDownload(ctx, *link); err != nil {
		return err
	}
	// Another call may have recorded the image first; then its map counts.
	if *link, err = tx.Download(ctx, link.ID); err != nil {
		return err
	}
	if err := d.sign(ctx, tx, link); err != nil {
		return err
	}
	err = tx.AddMessage(
		ctx,
		vps.Message{VPS: link.VPS, VPSName: name, Kind: vps.MessageDownload, Actor: actor,
			Phrase: vps.PhraseDownloadMade,
			Params: map[string]string{"disk": link.Disk, "until": link.ExpiresAt.Format(time.RFC3339),
				"link": link.ID}},
	)
	if err != nil {
		return err
	}
	return tx.KeepAnswer(ctx, *link)
}

// Downloads returns the links to the snapshot of a VPS that are valid, oldest first,
// but not what makes them work: who made a link was shown it, once. Codes: not_found.
func (d *Downloads) Downloads(ctx context.Context, ref string) ([]vps.Download, error) {
	id, err := d.inventory.IDOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	snap, err := d.store.CurrentSnapshot(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot")
	}
	if err != nil {
		return nil, err
	}
	return d.store.Downloads(ctx, snap.ID, d.store.Now())
}

// Download returns a link that is valid by its id: for the repetition of the call
// that made it. Codes: not_found.
func (d *Downloads) Download(ctx context.Context, id string) (vps.Download, error) {
	found, err := d.store.Download(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return found, errNoLink()
	}
	if err == nil {
		err = d.sign(ctx, d.store, &found)
	}
	if err != nil {
		return found, err
	}
	return found, d.stillLeads(ctx, found)
}

// RevokeDownload ends a link, and cuts off who downloads with it. Codes: not_found.
func (d *Downloads) RevokeDownload(ctx context.Context, ref, id string, actor vps.Actor) error {
	vpsID, err := d.inventory.IDNow(ctx, ref)
	if err != nil {
		return err
	}
	name := d.inventory.Name(vpsID)
	err = d.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RemoveDownload(ctx, vpsID, id); err != nil {
			return err
		}
		err := tx.AddMessage(
			ctx,
			vps.Message{VPS: vpsID, VPSName: name, Kind: vps.MessageDownload, Actor: actor,
				Phrase: vps.PhraseDownloadRevoked,
				Params: map[string]string{"link": id}},
		)
		if err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, nil)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Errorf(vps.CodeNotFound, "%s has no such link", name)
	}
	if err == nil {
		// After the record: a download that begins now finds no link.
		d.sessions.cut(func(r *session) bool { return r.link == id }, "the link was revoked")
	}
	return err
}

// FindDownload returns what a link is for, as long as it is valid and its snapshot
// is there. Codes: not_found.
func (d *Downloads) FindDownload(ctx context.Context, link string) (vps.Download, error) {
	id, _, _ := strings.Cut(link, ".")
	found, err := d.store.Download(ctx, id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return found, err
	}
	known := err == nil
	right := vps.Download{
		ID:         id,
		SnapshotID: found.SnapshotID,
		Disk:       found.Disk,
		Format:     found.Format,
		ExpiresAt:  found.ExpiresAt,
	}
	// What is signed is read from the record, so only the id of the link is taken from
	// the caller.
	if err := d.sign(ctx, d.store, &right); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return found, err
	}
	// In constant time, and also when there is no such link.
	if !hmac.Equal([]byte(right.Link), []byte(link)) || !known {
		return found, errNoLink()
	}
	found.Link = link
	return found, d.stillLeads(ctx, found)
}

// stillLeads reports whether a link has not expired and its snapshot is there.
func (d *Downloads) stillLeads(ctx context.Context, link vps.Download) error {
	if !d.store.Now().Before(link.ExpiresAt) {
		return errNoLink()
	}
	snap, err := d.store.CurrentSnapshot(ctx, link.VPS)
	if errors.Is(err, sql.ErrNoRows) || err == nil &&
		(snap.ID != link.SnapshotID || snap.State == vps.SnapshotDeleting) {
		return errNoLink()
	}
	return err
}

// CutRevoked cuts off who downloads with a link that is there no more, as when its token
// was revoked.
func (d *Downloads) CutRevoked(ctx context.Context) {
	for _, id := range d.sessions.links() {
		if _, err := d.store.Download(ctx, id); errors.Is(err, sql.ErrNoRows) {
			d.sessions.cut(func(r *session) bool { return r.link == id }, "the token of the link was revoked")
		}
	}
}

// errNoLink is the same whatever is wrong with a link.
func errNoLink() error {
	return vps.Errorf(vps.CodeNotFound, "there is nothing to download here").
		WithRemedy("the link may be over, or its snapshot deleted; ask for another one")
}

// keyReader is the store or a transaction.
type keyReader interface {
	DownloadKey(ctx context.Context) ([]byte, error)
}

// sign makes the link of a download. A transaction makes the key if there is none. The
// key lives in the database, so links stay valid over a restart and end with a rebuild.
func (d *Downloads) sign(ctx context.Context, from keyReader, link *vps.Download) error {
	key, err := from.DownloadKey(ctx)
	if tx, may := from.(*store.Tx); may && errors.Is(err, sql.ErrNoRows) {
		key = make([]byte, sha256.Size)
		rand.Read(key) //nolint:errcheck // crypto/rand.Read never fails
		err = tx.AddDownloadKey(ctx, key)
	}
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%q %q %q %q %d", link.ID, link.SnapshotID, link.Disk, link.Format, link.ExpiresAt.UnixMicro())
	link.Link = link.ID + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	return nil
}

// chosenDisk is the disk that was asked for.
func chosenDisk(name string, snap vps.Snapshot, target string) (vps.SnapshotDisk, error) {
	if target == "" && len(snap.Disks) == 1 {
		return snap.Disks[0], nil
	}
	var have []string
	for _, disk := range snap.Disks {
		if disk.Target == target {
			return disk, nil
		}
		have = append(have, disk.Target)
	}
	choose := strings.Join(have, ", ")
	if target == "" {
		return vps.SnapshotDisk{}, vps.Errorf(vps.CodeInvalid, "the snapshot of %s has %d disks", name, len(have)).
			WithRemedy("choose one of %s", choose)
	}
	return vps.SnapshotDisk{}, vps.Errorf(vps.CodeInvalid, "the snapshot of %s has no disk %s", name, target).
		WithRemedy("choose one of %s", choose)
}

// notInFileName is what cannot be in a file's name everywhere.
var notInFileName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// fileName names VPS, disk and moment, so that two downloads never overwrite each other. The
// name of the VPS is cut and cleaned: it ends up in an HTTP header.
func fileName(name string, snap vps.Snapshot, target string, f vps.ImageFormat) string {
	name = strings.Trim(notInFileName.ReplaceAllString(name, "-"), ".-")
	return fmt.Sprintf("%s-%s-%s.%s", name[:min(len(name), 80)], target,
		snap.CreatedAt.UTC().Format("20060102T150405Z"), f)
}

// imageOf is a disk of a snapshot as an image, laid out the first time.
func (d *Downloads) imageOf(
	ctx context.Context, name string, snap vps.Snapshot, disk vps.SnapshotDisk, f vps.ImageFormat,
) (vps.Image, error) {
	if err := d.checkReadable(ctx, name, snap, disk); err != nil {
		return vps.Image{}, err
	}
	known, err := d.store.Image(ctx, snap.ID, disk.Target, f)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return known, err
	}
	if f == vps.FormatRaw {
		return vps.Image{SizeBytes: disk.SizeBytes}, nil
	}
	m, err := qcow2.NewMap(disk.SizeBytes)
	if err != nil {
		return known, vps.Errorf(vps.CodeInvalid, "disk %s of %s cannot be downloaded as qcow2", disk.Target, name).
			WithRemedy("ask for raw").
			Because(err)
	}
	ctx, cancel := context.WithTimeout(ctx, mapWithin)
	defer cancel()
	// Only the map is made now; the data is read when it is asked for.
	if err := d.host.Extents(ctx, disk.Base, disk.BaseFormat, m.Add); err != nil {
		return known, errUnreadable(name, disk, "").Because(err)
	}
	return vps.Image{SizeBytes: qcow2.NewImage(m).Size(), Map: m.Pack(), MapName: m.Name()}, nil
}

// checkReadable makes sure that a disk's files are those on record, and that the disk lies on
// nothing that its customer must not read. It is asked again each time that the disk is
// opened: what lies below may have changed since.
func (d *Downloads) checkReadable(ctx context.Context, name string, snap vps.Snapshot, disk vps.SnapshotDisk) error {
	if why, err := d.integrity.Damage(ctx, disk); why != "" || err != nil {
		return errUnreadable(name, disk, why).Because(err)
	}
	err := d.images.CheckChain(ctx, snap.VPS, disk.Target, disk.Base, disk.BaseFormat)
	if why, ok := errors.AsType[*image.Unfit](err); ok {
		detail := vps.Say("disk %s of the snapshot of %s cannot be read: %s", disk.Target, name, why.Why)
		return vps.Refuse(vps.CodeVPSChanged, detail, why.Remedy).Because(why)
	}
	if err != nil {
		return errUnreadable(name, disk, "").Because(err)
	}
	return nil
}

// errUnreadable tells a damaged image, of which the customer is to ask the provider, from a
// host that cannot read just now.
func errUnreadable(name string, disk vps.SnapshotDisk, why string) *vps.Error {
	if why != "" {
		return vps.Errorf(vps.CodeVPSChanged, "disk %s of the snapshot of %s cannot be read: %s", disk.Target, name,
			why)
	}
	return vps.Errorf(vps.CodeHypervisorUnavailable,
		"disk %s of the snapshot of %s cannot be read just now", disk.Target, name).
		WithRemedy("try again in a while; the daemon's log says why")
}

// begin registers somebody who is about to read a VPS's snapshot, and then
// makes sure that nothing is about to change it. In this order: what begins to
// change it has recorded its operation before it cuts off the readers (CutOff),
// so that either it finds this one, or this one finds the operation.
//
// With a link it is a download, which counts.
func (d *Downloads) begin(ctx context.Context, vpsID, link string) (*session, vps.Snapshot, error) {
	// Registered with the group too: the daemon's stop ends the read.
	r, err := d.sessions.begin(ctx, d.group.Context(), vpsID, link, d.policy().AtOnce)
	if err != nil {
		return nil, vps.Snapshot{}, err
	}
	rec, err := d.store.Record(ctx, vpsID)
	if err == nil {
		err = d.readable(vpsID, rec)
	}
	if err != nil {
		r.end()
		return nil, vps.Snapshot{}, err
	}
	return r, *rec.Snapshot, nil
}

// readable refuses what has no snapshot whose data stays as it is. A restore
// leaves it alone.
func (d *Downloads) readable(vpsID string, rec store.Record) error {
	name := d.inventory.Name(vpsID)
	whole := []vps.SnapshotState{vps.SnapshotAvailable, vps.SnapshotRestoring}
	switch {
	case rec.Snapshot == nil:
		return vps.Errorf(vps.CodeNotFound, "%s has no snapshot", name)
	case rec.Operation != nil && d.kinds.Of(rec.Operation.Kind).ChangesBase:
		return vps.Errorf(vps.CodeOperationInProgress, "the snapshot of %s is about to change (%s, %s)", name,
			rec.Operation.Kind, rec.Operation.ID).
			WithRemedy("wait for the operation to end (GET /v1/operations), then ask again")
	case !slices.Contains(whole, rec.Snapshot.State):
		return vps.Errorf(vps.CodeVPSChanged, "the snapshot of %s is %s and cannot be downloaded",
			name, rec.Snapshot.State)
	}
	return nil
}
