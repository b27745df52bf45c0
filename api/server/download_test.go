package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

// TestDownloadOverHTTP asks for parts and on conditions, without a token.
func TestDownloadOverHTTP(t *testing.T) {
	w := newWholeSite(t)
	check(t, w.host.Write(w.web1, "vda", 512<<10, 'x', 100_000))
	w.ended(w.call(w.panel, "POST", "/v1/vps/web1/snapshot", ""))
	browser := w.token(
		vps.TokenRequest{Name: "browser", Scopes: []vps.Scope{vps.ScopeSnapshot}, VPS: []string{"web1"}, Expire: 48 * time.Hour},
	)
	d := decode[api.Download](t, w.call(browser, "POST", "/v1/vps/web1/snapshot/download", `{"disk":"vda","format":"raw"}`))
	want, err := w.host.Read(w.web1, "vda", 0, 1<<20)
	check(t, err)
	if d.SizeBytes != 1<<20 || d.Disk != "vda" || d.ExpiresAt.Sub(d.CreatedAt) != 24*time.Hour ||
		!strings.HasPrefix(d.URL, "/v1/downloads/"+d.ID) ||
		d.Sha256 != "" {
		t.Errorf("the link is %+v", d)
	}
	whole := w.call("", "GET", d.URL, "")
	if whole.StatusCode != 200 || whole.body != string(want) || whole.Header.Get("ETag") != d.Etag ||
		whole.Header.Get("Accept-Ranges") != "bytes" ||
		whole.Header.Get("Content-Disposition") != "attachment; filename="+d.FileName ||
		whole.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the whole: %s %v", whole.Status, whole.Header)
	}
	again := decode[api.Download](t, w.call(w.panel, "POST", "/v1/vps/web1/snapshot/download", `{"format":"raw"}`))
	head := w.call("", "HEAD", d.URL, "")
	sum, err := hex.DecodeString(again.Sha256)
	check(t, err)
	if head.StatusCode != 200 || head.ContentLength != 1<<20 ||
		head.Header.Get("Repr-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":" {
		t.Errorf("its headers: %s %v", head.Status, head.Header)
	}
	for name, c := range map[string]struct {
		headers []string
		status  int
		body    []byte
	}{
		"the rest":                {[]string{"Range", "bytes=600000-", "If-Range", d.Etag}, 206, want[600000:]},
		"a part":                  {[]string{"Range", "bytes=524287-524289"}, 206, want[524287:524290]},
		"the end":                 {[]string{"Range", "bytes=-5"}, 206, want[len(want)-5:]},
		"the rest of another":     {[]string{"Range", "bytes=600000-", "If-Range", `"another"`}, 200, want},
		"beyond the end":          {[]string{"Range", "bytes=1048576-"}, 416, nil},
		"no range":                {[]string{"Range", "bytes=5-1"}, 416, nil},
		"the last 0 bytes":        {[]string{"Range", "bytes=-0"}, 416, nil},
		"that and a part":         {[]string{"Range", "bytes=0-1,-0"}, 206, want[:2]},
		"in another unit":         {[]string{"Range", "items=0-1"}, 200, want},
		"what one has":            {[]string{"If-None-Match", d.Etag}, 304, nil},
		"only if it is another's": {[]string{"If-Match", `"another"`}, 412, nil},
		"only if it is this":      {[]string{"If-Match", d.Etag, "Range", "bytes=0-0"}, 206, want[:1]},
	} {
		got := w.with("", "GET", d.URL, "", c.headers...)
		if got.StatusCode != c.status || c.body != nil && got.body != string(c.body) {
			t.Errorf("%s: %s, %d bytes", name, got.Status, len(got.body))
		}
	}
	unknown := w.call("", "GET", "/v1/downloads/dl-000000000000.x", "")
	forged := w.call("", "GET", d.URL[:len(d.URL)-2]+"AA", "")
	if unknown.StatusCode != 404 || forged.StatusCode != 404 || unknown.body != forged.body {
		t.Errorf("unknown: %s %s\nforged: %s %s", unknown.Status, unknown.body, forged.Status, forged.body)
	}
	_, signature, _ := strings.Cut(d.URL, ".")
	if strings.Contains(w.log.String(), signature) {
		t.Error("the log shows the link")
	}
}

// TestManyDownloads are refused, and told when to come back.
func TestManyDownloads(t *testing.T) {
	w := newWholeSite(t)
	w.ended(w.call(w.panel, "POST", "/v1/vps/web1/snapshot", ""))
	d := decode[api.Download](t, w.call(w.panel, "POST", "/v1/vps/web1/snapshot/download", `{"format":"raw"}`))
	for range 2 {
		_, image, err := w.daemon.Downloads.OpenDownload(t.Context(), strings.TrimPrefix(d.URL, "/v1/downloads/"))
		check(t, err)
		defer image.Close()
	}
	got := w.call("", "GET", d.URL, "")
	if got.StatusCode != 429 || got.Header.Get("Retry-After") == "" || got.problem(t).Code != api.CodeRateLimited {
		t.Errorf("a third at once: %s %v", got.Status, got.Header)
	}
}

// TestDownloadThatIsCutOff is no whole one for its reader.
func TestDownloadThatIsCutOff(t *testing.T) {
	s := newSite(t)
	d := decode[api.Download](t, s.call("panel", "POST", "/v1/vps/web3/snapshot/download", `{"format":"raw"}`))
	whole, err := s.host.ReadImage(s.snapshot().Disks[0].Base, "qcow2", 0, daemontest.DiskBytes)
	check(t, err)
	resp, err := http.Get("http://" + s.tcp + d.URL)
	check(t, err)
	defer resp.Body.Close()
	if got := s.call("panel", "DELETE", "/v1/vps/web3/snapshot/download/"+d.ID, ""); got.StatusCode != 204 {
		t.Fatalf("the link is not revoked: %s %s", got.Status, got.body)
	}
	got, err := io.ReadAll(resp.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) == 0 || len(got) >= len(whole) || !bytes.HasPrefix(whole, got) {
		t.Errorf("%d bytes of %d, then %v", len(got), resp.ContentLength, err)
	}
}

// TestLongDownload lasts longer than an answer may, and one that nobody takes does not.
func TestLongDownload(t *testing.T) {
	s := newSite(t)
	s.server.SetDownloadPace(300 * time.Millisecond)
	web := httptest.NewUnstartedServer(s.server.Handler())
	web.Config.WriteTimeout = 300 * time.Millisecond
	web.Start()
	defer web.Close()
	d := decode[api.Download](t, s.operator("POST", "/v1/vps/web3/snapshot/download", ""))
	resp, err := http.Get(web.URL + d.URL)
	check(t, err)
	defer resp.Body.Close()
	n := 0
	for part := make([]byte, 1_000_000); ; time.Sleep(60 * time.Millisecond) {
		got, err := io.ReadFull(resp.Body, part)
		if n += got; err != nil {
			break
		}
	}
	if n < daemontest.DiskBytes*9/10 || int64(n) != d.SizeBytes {
		t.Errorf("a slow one got %d bytes of %d", n, d.SizeBytes)
	}
	conn, err := net.Dial("tcp", web.Listener.Addr().String())
	check(t, err)
	defer conn.Close()
	check(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	_, err = io.WriteString(conn, "GET "+d.URL+" HTTP/1.1\r\nHost: x\r\n\r\n")
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !strings.Contains(s.log.String(), "is too slow and was cut off") {
		select {
		case <-ctx.Done():
			t.Fatal("who takes nothing is not cut off")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
