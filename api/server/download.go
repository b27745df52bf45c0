package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Downloads hands frozen disks out.
type Downloads interface {
	MakeDownload(ctx context.Context, ref string, r vps.DownloadRequest, a vps.Actor) (vps.Download, error)
	RevokeDownload(ctx context.Context, ref, id string, a vps.Actor) error
	// Downloads returns what links there are, but not the links; Download one with it.
	Downloads(ctx context.Context, ref string) ([]vps.Download, error)
	Download(ctx context.Context, id string) (vps.Download, error)
	// FindDownload returns what a link is for; OpenDownload its image, too, whose
	// reads fail when it is cut off.
	FindDownload(ctx context.Context, link string) (vps.Download, error)
	OpenDownload(ctx context.Context, link string) (vps.Download, io.ReadSeekCloser, error)
}

// linkPath is where links point to. What follows must not be logged.
const linkPath = "/v1/downloads/"

const (
	// Who downloads must take slowBytes within slowDownload.
	slowBytes    = 256 << 10
	slowDownload = 30 * time.Second
)

// A body may be left out: then the only disk is meant, as qcow2.
func (h *handlers) MakeDownload(ctx context.Context, r MakeDownloadRequestObject) (MakeDownloadResponseObject, error) {
	var b api.DownloadRequest
	if r.Body != nil {
		b = *r.Body
	}
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	who, wish := callerOf(ctx), vps.DownloadRequest{Disk: b.Disk, Format: vps.ImageFormat(b.Format)}
	if who.token.ID != "" {
		wish.By = &who.token
	}
	d, err := h.services.Downloads.MakeDownload(ctx, id, wish, who.actor)
	if err != nil {
		return nil, err
	}
	return MakeDownload201JSONResponse(wireDownload(d)), nil
}

func (h *handlers) ListDownloads(ctx context.Context, r ListDownloadsRequestObject) (ListDownloadsResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	all, err := h.services.Downloads.Downloads(ctx, id)
	if err != nil {
		return nil, err
	}
	return ListDownloads200JSONResponse{Downloads: each(all, wireDownloadLink)}, nil
}

func (h *handlers) RevokeDownload(ctx context.Context, r RevokeDownloadRequestObject) (RevokeDownloadResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	if err := h.services.Downloads.RevokeDownload(ctx, id, r.Download, callerOf(ctx).actor); err != nil {
		return nil, err
	}
	return RevokeDownload204Response{}, nil
}

func wireDownload(d vps.Download) api.Download {
	return api.Download{
		ID:         d.ID,
		URL:        linkPath + d.Link,
		VPS:        d.VPS,
		SnapshotID: d.SnapshotID,
		Disk:       d.Disk,
		Format:     api.ImageFormat(d.Format),
		FileName:   d.FileName,
		SizeBytes:  d.Image.SizeBytes,
		Sha256:     d.Image.Sum(),
		Etag:       etag(d.Tag()),
		CreatedAt:  d.CreatedAt.UTC(),
		ExpiresAt:  d.ExpiresAt.UTC(),
	}
}

// wireDownloadLink leaves out what makes the link work: it was told once, to whoever
// made it.
func wireDownloadLink(d vps.Download) api.DownloadLink {
	return api.DownloadLink{ID: d.ID, SnapshotID: d.SnapshotID, Disk: d.Disk, Format: api.ImageFormat(d.Format),
		SizeBytes: d.Image.SizeBytes, CreatedAt: d.CreatedAt.UTC(), ExpiresAt: d.ExpiresAt.UTC()}
}

// It opens no disk, so it costs nothing and takes no place among the downloads.
func (h *handlers) DescribeDownload(
	ctx context.Context, r DescribeDownloadRequestObject,
) (DescribeDownloadResponseObject, error) {
	d, err := h.services.Downloads.FindDownload(ctx, r.Link)
	if err != nil {
		return nil, err
	}
	return &transfer{h: h, of: d, asked: &http.Request{Method: http.MethodHead, Header: http.Header{}},
		image: nopCloser{io.NewSectionReader(nil, 0, d.Image.SizeBytes)}}, nil
}

// nopCloser is an image of which only the size is read.
type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

func (h *handlers) Download(ctx context.Context, r DownloadRequestObject) (DownloadResponseObject, error) {
	d, image, err := h.services.Downloads.OpenDownload(ctx, r.Link)
	if err != nil {
		return nil, err
	}
	// A request of our own: ServeContent must see no header that was not checked.
	asked := &http.Request{Method: http.MethodGet, Header: http.Header{}}
	if part := wantedPart(value(r.Params.Range), d.Image.SizeBytes); part != "" {
		asked.Header.Set("Range", part)
	}
	for name, value := range map[string]*string{
		"If-Range": r.Params.IfRange, headerMatch: r.Params.IfMatch, "If-None-Match": r.Params.IfNoneMatch,
	} {
		if value != nil {
			asked.Header.Set(name, *value)
		}
	}
	return &transfer{h: h, of: d, asked: asked, image: image}, nil
}

// wantedPart is a Range header for ServeContent. What counts in other units than bytes
// is to be ignored (RFC 9110), and the last 0 bytes are no part of an image.
func wantedPart(header string, size int64) string {
	list, bytes := strings.CutPrefix(strings.TrimSpace(header), "bytes=")
	if !bytes {
		return ""
	}
	parts := strings.Split(list, ",")
	some := slices.DeleteFunc(slices.Clone(parts), func(part string) bool {
		last, suffix := strings.CutPrefix(strings.TrimSpace(part), "-")
		return suffix && last != "" && strings.Trim(last, "0") == ""
	})
	if len(some) == 0 {
		some = []string{strconv.FormatInt(size, 10) + "-"}
	}
	return "bytes=" + strings.Join(some, ",")
}

// transfer sends an image, or the part of it that was asked for.
type transfer struct {
	h     *handlers
	of    vps.Download
	asked *http.Request
	image io.ReadSeekCloser
}

func (t *transfer) VisitDescribeDownloadResponse(w http.ResponseWriter) error {
	return t.VisitDownloadResponse(w)
}

// VisitDownloadResponse sends it. An image that cannot be read on leaves the
// transfer shorter than its Content-Length; net/http then closes the connection,
// so that it cannot be taken for a whole one.
func (t *transfer) VisitDownloadResponse(w http.ResponseWriter) error {
	defer t.image.Close()
	// A shutdown cuts the read; the client goes on where it was with the next daemon.
	stop := context.AfterFunc(t.h.closing, func() { t.image.Close() })
	defer stop()
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": t.of.FileName}))
	header.Set(headerETag, etag(t.of.Tag()))
	// RFC 9530: of the whole image, whatever part is sent.
	if sum := t.of.Image.SHA256; sum != nil {
		header.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	}
	from, to := &watched{ReadSeeker: t.image}, &pacedWriter{ResponseWriter: w, limit: t.h.slowDownload}
	http.ServeContent(to, t.asked, "", time.Time{}, from)
	switch {
	case from.err != nil:
		return fmt.Errorf("the download %s was cut off: %w", t.of.ID, from.err)
	case errors.Is(to.err, os.ErrDeadlineExceeded):
		return fmt.Errorf("who downloads %s is too slow and was cut off: %w", t.of.ID, to.err)
	}
	return nil
}

// watched keeps the error that ServeContent does not tell.
type watched struct {
	io.ReadSeeker
	err error
}

func (r *watched) Read(p []byte) (int, error) {
	n, err := r.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// pacedWriter gives each slowBytes a time within which they must be taken. The
// server's own limit is for a whole answer, and a download has none.
type pacedWriter struct {
	http.ResponseWriter
	limit time.Duration
	left  int           // to be taken before the time begins again
	spent time.Duration // by who downloads; not what we took to read the disk
	err   error
}

// The deadline is set again for each piece, so that it bounds the speed and not the
// length.
func (w *pacedWriter) Write(p []byte) (int, error) {
	if w.left <= 0 {
		w.left, w.spent = slowBytes, 0
	}
	began := time.Now()
	deadline := began.Add(w.limit - w.spent)
	if w.err = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(deadline); w.err != nil {
		return 0, w.err
	}
	n, err := w.ResponseWriter.Write(p)
	w.spent += time.Since(began)
	w.left -= n
	w.err = err
	return n, err
}
