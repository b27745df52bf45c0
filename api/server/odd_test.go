package server_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/hypervisor"
)

// A request whose end a proxy may see elsewhere is answered, and nothing that follows on its
// connection is taken for a request.
func TestConnectionsOfDoubtfulRequestsEnd(t *testing.T) {
	const next = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	s := newSite(t)
	auth := "Host: x\r\nAuthorization: Bearer " + s.secret("panel") + "\r\nContent-Type: application/json\r\n"
	body := `{"description":"x"}`
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for what, c := range map[string]struct {
		request string
		status  int
		closed  bool
	}{
		"both": {"PATCH /v1/vps/web3/snapshot HTTP/1.1\r\n" + auth + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" +
			chunks, 200, true},
		"the other way round": {"PATCH /v1/vps/web3/snapshot HTTP/1.1\r\n" + auth +
			"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunks, 200, true},
		"where no body is expected": {"GET /v1/vps HTTP/1.1\r\n" + auth +
			"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, true},
		"to nowhere": {"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			404, true},
		"without a token": {"POST /v1/vps/web3/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n" +
			"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 401, true},
		"HTTP/1.0 with chunks": {"POST /healthz HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
			405, true},
		"two lengths": {"PATCH /v1/vps/web3/snapshot HTTP/1.1\r\n" + auth + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
			400, true},
		"plain": {fmt.Sprintf("PATCH /v1/vps/web3/snapshot HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s", auth, len(body), body),
			200, false},
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.tcp)
			check(t, err)
			defer conn.Close()
			check(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
			_, err = io.WriteString(conn, c.request+next)
			check(t, err)
			in := bufio.NewReader(conn)
			resp, err := http.ReadResponse(in, nil)
			check(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			check(t, err)
			if resp.StatusCode != c.status {
				t.Errorf("it was answered %s, not %d", resp.Status, c.status)
			}
			if _, err := http.ReadResponse(in, nil); (err != nil) != c.closed {
				t.Errorf("what followed: %v", err)
			}
		})
	}
}

// A name is decoded once, in the path and in the query, whatever it looks like.
func TestNamesWithPercent(t *testing.T) {
	s := newSite(t)
	for i, name := range []string{"50%", "a%41", "%77eb1", "%2e%2e", "a%2fb", "100%25", "%", "a b", "é%20", "%zz", "a+b", "a?b#c", "a;b"} {
		id := fmt.Sprintf("44444444-4444-4444-8444-%012d", i)
		check(t, s.host.DefineAs(id, name, hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20}))
		for _, spelled := range []string{url.PathEscape(name), everyByte(name)} {
			got := s.call("admin", "GET", "/v1/vps/"+spelled, "")
			if got.StatusCode != 200 || decode[api.VPS](t, got).ID != id {
				t.Errorf("%s, sent as %s: %s %s", name, spelled, got.Status, got.body)
			}
			got = s.call("admin", "PUT", "/v1/vps/"+spelled+"/option", `{"state":"active"}`)
			if got.StatusCode != 200 || decode[api.Option](t, got).VPS != id {
				t.Errorf("the option of %s, sent as %s: %s %s", name, spelled, got.Status, got.body)
			}
		}
		if got := s.call("admin", "GET", "/v1/operations?vps="+url.QueryEscape(name), ""); got.StatusCode != 200 {
			t.Errorf("%s in the query: %s %s", name, got.Status, got.body)
		}
	}
	// Decoded twice, these would be another VPS, or the path of one.
	for _, path := range []string{"web%2531", "%2577eb2", "..%252f..%252fetc"} {
		if got := s.call("admin", "GET", "/v1/vps/"+path, ""); got.StatusCode != 404 {
			t.Errorf("%s: %s %s", path, got.Status, got.body)
		}
	}
}

// everyByte is a text in which every byte is encoded.
func everyByte(text string) string {
	var out strings.Builder
	for _, b := range []byte(text) {
		fmt.Fprintf(&out, "%%%02x", b)
	}
	return out.String()
}

// A cursor of a bound token tells nothing of others' entries, in whatever order they lie.
func TestCursorsTellNothingOfOthers(t *testing.T) {
	s := newSite(t)
	foreign := map[string]bool{}
	own := 0
	for range 3 {
		for _, ref := range []string{"web1", "web3"} {
			for _, call := range [][2]string{{"POST", `{"replace":true}`}, {"DELETE", ""}} {
				op := s.ended(s.call("admin", call[0], "/v1/vps/"+ref+"/snapshot", call[1]))
				if ref == "web3" {
					foreign[op.ID] = true
				} else {
					own++
				}
			}
		}
	}
	for _, list := range []string{"operations", "messages"} {
		read, path := 0, "/v1/"+list+"?limit=1"
		for range 200 {
			got := s.call("bound", "GET", path, "")
			if strings.Contains(got.body, daemontest.Web3) || strings.Contains(got.body, "web3") {
				t.Errorf("%s has another's: %s", list, got.body)
			}
			page := decode[struct {
				Operations, Messages []map[string]any
				Next                 string
			}](t, got)
			read += len(page.Operations)
			if page.Next == "" {
				break
			}
			inside, err := base64.RawURLEncoding.DecodeString(page.Next)
			check(t, err)
			for id := range foreign {
				if strings.Contains(page.Next, id) || strings.Contains(string(inside), id) {
					t.Fatalf("the cursor %s tells of %s", inside, id)
				}
			}
			path = "/v1/" + list + "?limit=1&cursor=" + page.Next
		}
		if list == "operations" && read != own {
			t.Errorf("%d operations of its own were read, of %d", read, own)
		}
	}
	for _, cursor := range []string{"1", "op-1", "AAAA", "bToxMg", "bTow", "bTotMQ"} {
		if got := s.call("admin", "GET", "/v1/operations?cursor="+cursor, ""); got.StatusCode != 400 {
			t.Errorf("a cursor %s that was not given out: %s", cursor, got.Status)
		}
	}
}

// If-Match is a list, in one header or in several; tags may hold commas; one that fits is
// enough, and a weak one never does.
func TestListsOfIfMatch(t *testing.T) {
	s := newSite(t)
	const path = "/v1/vps/web3/snapshot"
	for _, c := range []struct {
		name   string
		values []string
		status int
	}{
		{"in two headers, the second", []string{`"other"`, "TAG"}, 200},
		{"in two headers, the first", []string{"TAG", `"other"`}, 200},
		{"in one", []string{`"a", TAG ,"b"`}, 200},
		{"beside one with a comma", []string{`"a,b", TAG`}, 200},
		{"beside a weak one", []string{`W/"x", TAG`}, 200},
		{"many", []string{strings.Repeat(`"0123456789abcdef", `, 40) + "TAG"}, 200},
		{"any", []string{"*"}, 200},
		{"a starred tag", []string{`"*"`}, 412},
		{"none fits", []string{`"a"`, `"b,c"`}, 412},
		{"weak", []string{"W/TAG"}, 412},
		{"weak ones only", []string{"W/TAG", `W/"x"`}, 412},
		{"empty", []string{""}, 400},
		{"no quotes", []string{"TAG", "x"}, 400},
		{"an open quote", []string{`"x`}, 400},
		{"a comma at the end", []string{`TAG, "`}, 400},
		{"a weak star", []string{"W/*"}, 400},
	} {
		tag := s.call("read", "GET", path, "").Header.Get("ETag")
		var headers []string
		for _, v := range c.values {
			headers = append(headers, "If-Match", strings.ReplaceAll(v, "TAG", tag))
		}
		if got := s.with("panel", "PATCH", path, `{"description":"`+c.name+`"}`, headers...); got.StatusCode != c.status {
			t.Errorf("%s: %s %s, not %d", c.name, got.Status, got.body, c.status)
		}
	}
	d := decode[api.Download](t, s.call("panel", "POST", path+"/download", `{"format":"raw"}`))
	for name, headers := range map[string][]string{
		"If-None-Match": {"If-None-Match", `"x"`, "If-None-Match", d.Etag}, "If-Match": {"If-Match", `"x"`, "If-Match", d.Etag},
	} {
		if got := s.with("", "HEAD", d.URL, "", headers...); got.StatusCode >= 400 {
			t.Errorf("%s in two headers of a download: %s", name, got.Status)
		}
		got := s.with("", "GET", d.URL, "", append(headers, "Range", "bytes=0-0")...)
		if want := map[string]int{"If-None-Match": 304, "If-Match": 206}[name]; got.StatusCode != want {
			t.Errorf("%s in two headers of a download: %s", name, got.Status)
		}
	}
}
