package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// rest calls the API over the socket as curl would, which need not be installed;
// it shows the answer and expects its status.
func (p *play) rest(status int, method, path, body string) string {
	if p.err != nil {
		return ""
	}
	line := "curl --unix-socket $VPSSNAP_SOCKET http://vpssnapd" + path
	if method == http.MethodPost {
		line += " --json '" + body + "'"
	}
	p.prompt("$ ", line)
	got, answer, err := p.call(method, path, body)
	if err != nil {
		p.check(err)
		return ""
	}
	var pretty bytes.Buffer
	p.check(json.Indent(&pretty, bytes.TrimSpace(answer), "", "  "))
	fmt.Fprintf(p.out, "HTTP %d %s\n%s\n", got, http.StatusText(got), &pretty)
	p.expect(got == status, "%s %s was answered with %d, expected %d", method, path, got, status)
	return pretty.String()
}

func (p *play) call(method, path, body string) (int, []byte, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.site.Socket())
	}
	web := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(p.ctx, method, "http://vpssnapd"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := web.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}
