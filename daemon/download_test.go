package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// frozen makes a VPS with a snapshot and returns what its disk held then.
func (w *world) frozen(name string, state hypervisor.State) (id string, want []byte) {
	w.t.Helper()
	id = w.vps(name, state)
	w.write(id, "vda", 64<<10, 'a')
	w.write(id, "vda", 3*mib, 'b')
	want, err := w.host.Read(id, "vda", 0, 8*mib)
	w.must(err)
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 3*mib, 'c')
	return id, want
}

func (w *world) link(id string, f vps.ImageFormat) vps.Download {
	w.t.Helper()
	d, err := w.daemon.Downloads.MakeDownload(context.Background(), id, vps.DownloadRequest{Format: f}, operator)
	w.must(err)
	return d
}

// download opens a link; it is closed with the test.
func (w *world) download(link string) io.ReadSeekCloser {
	w.t.Helper()
	_, c, err := w.daemon.Downloads.OpenDownload(context.Background(), link)
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// all reads an image from some place to its end.
func (w *world) all(c io.ReadSeeker, from int64) []byte {
	w.t.Helper()
	_, err := c.Seek(from, io.SeekStart)
	w.must(err)
	data, err := io.ReadAll(c)
	w.must(err)
	return data
}

// TestDownload reads a frozen disk in both formats, cut off by the death of the
// daemon and by restores, while the guest writes.
func TestDownload(t *testing.T) {
	w := newWorld(t, nil)
	id, want := w.frozen("web1", hypervisor.Running)
	raw, qcow2 := w.link(id, vps.FormatRaw), w.link(id, "")
	if raw.Image.SizeBytes != 8*mib || qcow2.Format != vps.FormatQcow2 || qcow2.Image.SizeBytes >= mib || raw.Tag() == qcow2.Tag() ||
		!strings.HasPrefix(raw.FileName, "web1-vda-") || !strings.HasSuffix(raw.FileName, ".raw") ||
		raw.Image.SHA256 != nil {
		t.Errorf("the links are %+v and %+v", raw, qcow2)
	}
	c := w.download(raw.Link)
	half := make([]byte, 3*mib+100)
	_, err := io.ReadFull(c, half)
	w.must(err)
	image := w.all(w.download(qcow2.Link), 0)

	w.crash()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a download outlives the daemon")
	}
	w.open()
	w.eventually(
		"the daemon knows web1",
		func() bool { _, err := w.daemon.Overview.ShowVPS(context.Background(), id); return err == nil },
	)
	w.write(id, "vda", 64<<10, 'd')
	c = w.download(raw.Link)
	rest := w.all(c, int64(len(half)))
	w.restore(id)
	w.done(w.daemon.Snapshots.UndoRestore(context.Background(), id, operator))
	if !bytes.Equal(append(half, rest...), want) || !bytes.Equal(w.all(c, 0), want) {
		t.Error("the raw image is not what the disk held")
	}
	w.must(c.Close())
	again, err := w.daemon.Downloads.FindDownload(context.Background(), qcow2.Link)
	w.must(err)
	if !bytes.Equal(w.all(w.download(qcow2.Link), 0), image) || again.Tag() != qcow2.Tag() ||
		int64(len(image)) != qcow2.Image.SizeBytes {
		t.Error("the qcow2 image has other bytes after a restart")
	}
	for f, whole := range map[vps.ImageFormat][]byte{vps.FormatRaw: want, vps.FormatQcow2: image} {
		sum := sha256.Sum256(whole)
		w.eventually("the sum is known", func() bool { return w.link(id, f).Image.Sum() == hex.EncodeToString(sum[:]) })
	}
	if strings.Contains(w.log.String(), strings.Split(raw.Link, ".")[1]) {
		t.Error("the log shows a link")
	}
}

// TestSumOfWhatWasDownloadedInParts knows the sum although nobody read all at once.
func TestSumOfWhatWasDownloadedInParts(t *testing.T) {
	w := newWorld(t, nil)
	id, want := w.frozen("web1", hypervisor.Off)
	w.all(w.download(w.link(id, vps.FormatRaw).Link), 8*mib-5)
	sum := sha256.Sum256(want)
	w.eventually(
		"the sum is known", func() bool { return w.link(id, vps.FormatRaw).Image.Sum() == hex.EncodeToString(sum[:]) },
	)
}

// TestDownloadsEndBeforeTheSnapshotChanges has a download, a layout and a sum in
// progress while the snapshot is deleted or replaced. No byte that is handed out
// is another than that of the snapshot, and the operation does not wait for anybody.
func TestDownloadsEndBeforeTheSnapshotChanges(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
		for name, change := range map[string]func(w *world, id string) (vps.Operation, error){
			"delete": func(w *world, id string) (vps.Operation, error) {
				return w.daemon.Snapshots.Delete(context.Background(), id, operator)
			},
			"replace": func(w *world, id string) (vps.Operation, error) {
				return w.daemon.Snapshots.Take(context.Background(), id, vps.TakeRequest{Replace: true}, operator)
			},
		} {
			t.Run(name+" "+string(state), func(t *testing.T) {
				w := newWorld(t, nil)
				id, want := w.frozen("web1", state)
				link := w.link(id, vps.FormatRaw)
				c := w.download(link.Link)
				got := make([]byte, 2*mib)
				_, err := io.ReadFull(c, got)
				w.must(err)
				var refused atomic.Value
				w.host.SetHook(func(ctx context.Context, at, _ string) error {
					if at == "StartMerge.before" || at == "MergeOffline.before" {
						_, _, err := w.daemon.Downloads.OpenDownload(context.Background(), link.Link)
						_, also := w.daemon.Downloads.MakeDownload(context.Background(), id, vps.DownloadRequest{}, operator)
						refused.CompareAndSwap(nil, [2]vps.Code{vps.CodeOf(err), vps.CodeOf(also)})
					}
					return nil
				})
				op := w.done(change(w, id))
				if !strings.Contains(op.Result, "downloads that were cut off: 1") {
					t.Errorf("the operation says %q", op.Result)
				}
				codes, _ := refused.Load().([2]vps.Code)
				if codes[0] != vps.CodeNotFound && codes[0] != vps.CodeOperationInProgress ||
					codes[1] != vps.CodeOperationInProgress {
					t.Errorf("when the merge began, downloads were refused with %q", codes)
				}
				rest, err := io.ReadAll(c)
				if got = append(got, rest...); err == nil || !bytes.Equal(got, want[:len(got)]) {
					t.Errorf(
						"the download ended with %v after %d bytes, which are those of the snapshot: %v", err, len(got),
						bytes.Equal(got, want[:len(got)]),
					)
				}
				_, _, err = w.daemon.Downloads.OpenDownload(context.Background(), link.Link)
				w.refuses(vps.CodeNotFound, err)
				page, err := w.daemon.Journal.Messages(
					context.Background(), vps.MessageQuery{VPS: id, Kind: vps.MessageDownload},
				)
				w.must(err)
				if len(page.Messages) != 2 || page.Messages[0].Operation != op.ID ||
					!strings.Contains(page.Messages[0].In(vps.French), "interrompus : 1") {
					t.Errorf("the journal says %+v", page.Messages)
				}
				if name == "replace" {
					if next := w.link(id, vps.FormatRaw); next.Tag() == link.Tag() {
						t.Error("another snapshot has the same tag")
					}
				}
			})
		}
	}
}

// TestLinksThatDoNotWork look all the same.
func TestLinksThatDoNotWork(t *testing.T) {
	w := newWorld(t, nil)
	id, _ := w.frozen("web1", hypervisor.Running)
	other, _ := w.frozen("web2", hypervisor.Running)
	mine, theirs := w.link(id, vps.FormatRaw), w.link(other, vps.FormatRaw)
	ctx := context.Background()
	signature := strings.Split(theirs.Link, ".")[1]
	revoked := w.link(id, vps.FormatRaw)
	reader := w.download(revoked.Link)
	_, err := reader.Read(make([]byte, 1))
	w.must(err)
	w.refuses(vps.CodeNotFound, w.daemon.Downloads.RevokeDownload(ctx, other, revoked.ID, operator))
	w.must(w.daemon.Downloads.RevokeDownload(ctx, id, revoked.ID, operator))
	w.refuses(vps.CodeNotFound, w.daemon.Downloads.RevokeDownload(ctx, id, revoked.ID, operator))
	if _, err := io.ReadAll(reader); err == nil {
		t.Error("a download goes on although its link was revoked")
	}
	said := ""
	for name, link := range map[string]string{
		"revoked": revoked.Link, "of another": mine.ID + "." + signature, "cut": mine.Link[:len(mine.Link)-1],
		"unsigned": mine.ID, "empty": "", "unknown": "dl-000000000000." + signature,
	} {
		_, err := w.daemon.Downloads.FindDownload(ctx, link)
		var e *vps.Error
		if !errors.As(err, &e) || e.Code != vps.CodeNotFound || said != "" && e.Error() != said {
			t.Errorf("%s: %v, and another says %s", name, err, said)
			continue
		}
		said = e.Error()
	}
	w.setClock(time.Now().Add(24*time.Hour + time.Minute))
	_, err = w.daemon.Downloads.FindDownload(ctx, mine.Link)
	w.refuses(vps.CodeNotFound, err)
}

// The links of a snapshot are listed, without what makes them work, and counted. Those
// of snapshots that are gone count no more: nobody could revoke them to make room.
func TestLinksAreListedAndCounted(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	id, _ := w.frozen("web1", hypervisor.Running)
	for range 50 {
		w.link(id, vps.FormatRaw)
	}
	_, err := w.daemon.Downloads.MakeDownload(ctx, id, vps.DownloadRequest{}, operator)
	w.refuses(vps.CodeRateLimited, err)
	links, err := w.daemon.Downloads.Downloads(ctx, "web1")
	w.must(err)
	if len(links) != 50 || links[0].Link != "" || links[0].Image.SizeBytes != 8*mib || links[0].Disk != "vda" {
		t.Fatalf("%d links, as %+v", len(links), links[:1])
	}
	w.must(w.daemon.Downloads.RevokeDownload(ctx, id, links[7].ID, operator))
	kept := w.link(id, vps.FormatRaw)
	again, err := w.daemon.Downloads.Download(ctx, kept.ID)
	w.must(err)
	if again.Link != kept.Link {
		t.Errorf("the link %s is %s when it is asked for by its id", kept.Link, again.Link)
	}
	w.done(w.daemon.Snapshots.Delete(ctx, id, operator))
	_, err = w.daemon.Downloads.Download(ctx, kept.ID)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Downloads.Downloads(ctx, id)
	w.refuses(vps.CodeNotFound, err)
	w.take(id, vps.TakeRequest{})
	w.link(id, vps.FormatRaw)
	links, err = w.daemon.Downloads.Downloads(ctx, id)
	w.must(err)
	if len(links) != 1 {
		t.Errorf("the next snapshot has %d links", len(links))
	}
	w.setClock(time.Now().Add(24*time.Hour + time.Minute))
	links, err = w.daemon.Downloads.Downloads(ctx, id)
	w.must(err)
	if len(links) != 0 {
		t.Errorf("a day later there are still %d links", len(links))
	}
}

func TestWhoMayDownload(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Download.AtOnce = 3 })
	ctx := context.Background()
	none := w.vps("none", hypervisor.Running)
	_, err := w.daemon.Downloads.MakeDownload(ctx, none, vps.DownloadRequest{}, operator)
	w.refuses(vps.CodeNotFound, err)
	id, _ := w.frozen("web1", hypervisor.Running)
	for _, r := range []vps.DownloadRequest{{Disk: "vdz"}, {Disk: "../vda"}} {
		_, err = w.daemon.Downloads.MakeDownload(ctx, id, r, operator)
		w.refuses(vps.CodeInvalid, err)
	}
	two := w.vps(
		"two", hypervisor.Running, hypervisor.Disk{Target: "vda", SizeBytes: mib},
		hypervisor.Disk{Target: "vdb", SizeBytes: mib},
	)
	w.take(two, vps.TakeRequest{})
	_, err = w.daemon.Downloads.MakeDownload(ctx, two, vps.DownloadRequest{}, operator)
	w.refuses(vps.CodeInvalid, err)
	second, err := w.daemon.Downloads.MakeDownload(ctx, two, vps.DownloadRequest{Disk: "vdb"}, operator)
	w.must(err)

	link := w.link(id, vps.FormatRaw)
	first := w.download(link.Link)
	w.download(link.Link)
	if n, _ := w.measured("vpssnap_downloads"); n != 2 {
		t.Errorf("two downloads run, and /metrics says %v", n)
	}
	_, _, err = w.daemon.Downloads.OpenDownload(ctx, link.Link)
	w.refuses(vps.CodeRateLimited, err)
	w.download(second.Link)
	w.must(first.Close())
	first = w.download(link.Link)
	third, _ := w.frozen("web3", hypervisor.Running)
	_, _, err = w.daemon.Downloads.OpenDownload(ctx, w.link(third, "").Link)
	w.refuses(vps.CodeRateLimited, err)

	// A base that somebody has written to is no snapshot any more.
	snap := w.snapshot(id)
	w.must(os.Chtimes(snap.Disks[0].Base, time.Time{}, time.Now().Add(time.Second)))
	w.must(first.Close())
	_, opened, err := w.daemon.Downloads.OpenDownload(ctx, link.Link)
	if opened != nil { // FAULTS row 48: a reader that is none, and no nil
		t.Errorf("a download that was refused is %v", opened)
	}
	w.refuses(vps.CodeVPSChanged, err)
}
