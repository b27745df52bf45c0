package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
)

// revoke ends the token with a name.
func (s *site) revoke(name string) {
	s.t.Helper()
	all := decode[api.TokenList](s.t, s.operator(http.MethodGet, "/v1/tokens", "")).Tokens
	id := all[slices.IndexFunc(all, func(k api.Token) bool { return k.Name == name })].ID
	if got := s.operator(http.MethodDelete, "/v1/tokens/"+id, ""); got.StatusCode != 204 {
		s.t.Fatalf("not revoked: %s %s", got.Status, got.body)
	}
}

// child is the secret of a token that the panel's token makes.
func (s *site) child(seconds int) string {
	s.t.Helper()
	body := fmt.Sprintf(`{"name":"browser","scopes":["read","snapshot"],"vps":["web3"],"expires_in_seconds":%d}`, seconds)
	return decode[api.NewToken](s.t, s.call("panel", http.MethodPost, "/v1/tokens", body)).Secret
}

// What a token has made ends with it, and with the token that made it: links, downloads
// that are under way, streams and waits, whether it was revoked or is over.
func TestWhatATokenMadeEndsWithIt(t *testing.T) {
	for _, c := range []struct {
		what  string
		token func(s *site) string
		ends  func(s *site)
		over  bool // the link has ended
	}{
		{"its own", func(*site) string { return "panel" }, func(s *site) { s.revoke("panel") }, true},
		{"a child's", func(s *site) string { return s.child(60) }, func(s *site) { s.revoke("panel/browser") }, true},
		{"the parent's", func(s *site) string { return s.child(60) }, func(s *site) { s.revoke("panel") }, true},
		{"a child is over", func(s *site) string { return s.child(60) }, func(s *site) { s.host.Pass(time.Minute) }, true},
		{"another's", func(*site) string { return "panel" }, func(s *site) { s.revoke("bound") }, false},
		{"a child goes", func(s *site) string { s.child(60); return "panel" }, func(s *site) { s.revoke("panel/browser") }, false},
		{"the operator's", func(*site) string { return "" }, func(s *site) { s.revoke("panel") }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newSite(t)
			token := c.token(s)
			make := s.call
			if token == "" {
				make = func(_, method, path, body string) answer { return s.operator(method, path, body) }
			}
			d := decode[api.Download](t, make(token, http.MethodPost, "/v1/vps/web3/snapshot/download", `{"format":"raw"}`))
			if got := s.call("", http.MethodHead, d.URL, ""); got.StatusCode != 200 {
				t.Fatalf("the link is not valid: %s", got.Status)
			}
			resp, err := http.Get("http://" + s.tcp + d.URL)
			check(t, err)
			defer resp.Body.Close()
			c.ends(s)
			n, err := io.Copy(io.Discard, resp.Body)
			// The clock of an expiry is the test's, by which nothing that runs is cut.
			if whole := err == nil && n == d.SizeBytes; whole == c.over && c.what != "a child is over" {
				t.Errorf("of the download that was under way %d bytes of %d came (%v)", n, d.SizeBytes, err)
			}
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				if got := s.call("", method, d.URL, ""); (got.StatusCode == 404) != c.over {
					t.Errorf("%s of the link: %s", method, got.Status)
				}
			}
		})
	}
}

// A link says when it ends: with its token, if that is before its own time.
func TestALinkEndsWithItsToken(t *testing.T) {
	s := newSite(t)
	token := s.child(600)
	d := decode[api.Download](t, s.call(token, http.MethodPost, "/v1/vps/web3/snapshot/download", ""))
	if life := d.ExpiresAt.Sub(d.CreatedAt); life > 10*time.Minute || life < 9*time.Minute {
		t.Errorf("the link of a token of 10 minutes is valid for %s", life)
	}
}

// A stream through which events run without a pause ends at once, too, and nothing that
// happens after the revocation is told.
func TestABusyStreamEndsWithItsToken(t *testing.T) {
	for _, revoked := range []string{"panel", "panel/browser"} {
		s := newSite(t) // whose heartbeat is of 15 s: far beyond the end of the test
		l := s.listen(s.child(600), "")
		l.frame()
		s.order("web3", "before")
		if e := l.next(); e.Option == nil && e.Message == nil {
			t.Fatalf("the stream tells %+v", e)
		}
		s.revoke(revoked)
		s.order("web3", "after")
		ended := make(chan error, 1)
		go func() {
			for {
				_, _, data, ok := l.frame()
				var e api.Event
				if data != "" && json.Unmarshal([]byte(data), &e) == nil && e.Option != nil && e.Option.OrderRef == "after" {
					ended <- fmt.Errorf("it was told %s", data)
					return
				}
				if !ok {
					ended <- nil
					return
				}
			}
		}()
		select {
		case err := <-ended:
			check(t, err)
		case <-time.After(10 * time.Second):
			t.Errorf("the stream goes on after %s was revoked", revoked)
		}
	}
}

// A wait that outlasts its token is not answered any more.
func TestAWaitEndsWithItsToken(t *testing.T) {
	s := newSite(t)
	reached, release := s.host.Hold(daemontest.InTake)
	s.ended(s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	op := decode[api.Operation](t, s.call("admin", http.MethodPost, "/v1/vps/web3/snapshot", ""))
	<-reached
	token := s.child(600)
	got := make(chan answer, 1)
	go func() { got <- s.call(token, http.MethodGet, "/v1/operations/"+op.ID+"?wait=1m", "") }()
	s.awaitLasting(1)
	s.revoke("panel/browser")
	release()
	if a := <-got; a.StatusCode != 401 {
		t.Errorf("the wait of a revoked token: %s %s", a.Status, a.body)
	}
}
