package client

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"vpssnapd/api"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// Client calls one vpssnapd. Every method returns *Error when the daemon
// refused, *UnreachableError when it could not be asked, or ctx's error. A ref
// is the id or the name of a VPS.
type Client struct {
	rest    *rest
	address string
}

// Unix returns a client that talks over a Unix socket, as an operator.
func Unix(socket string) (*Client, error) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	return newClient(socket, "http://vpssnapd", transport, "")
}

// HTTP returns a client that talks to server, as in https://host1:8443, with a
// token. c says which certificates are trusted and which is shown; nil: those that
// the system trusts, and none.
func HTTP(server, token string, c *tls.Config) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is no http or https URL", server)
	}
	transport := http.DefaultTransport
	if c != nil {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: c}
	}
	return newClient(server, server, transport, token)
}

func newClient(address, server string, transport http.RoundTripper, token string) (*Client, error) {
	web := &http.Client{
		Transport: transport,
		// The API never redirects. A token must not follow one that it was lured into.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r, err := NewClient(server, WithHTTPClient(web), WithRequestEditorFn(func(_ context.Context, req *http.Request) error {
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot talk to %s: %w", address, err)
	}
	return &Client{rest: r, address: address}, nil
}

func (c *Client) ListVPS(ctx context.Context) ([]api.VPS, error) {
	list, err := read[api.VPSList](c)(c.rest.ListVPS(ctx, nil))
	return list.VPS, err
}

func (c *Client) VPS(ctx context.Context, ref string) (api.VPS, error) {
	return read[api.VPS](c)(c.rest.ShowVPS(ctx, ref, nil))
}

func (c *Client) Offers(ctx context.Context) ([]api.Offer, error) {
	list, err := read[api.OfferList](c)(c.rest.ListOffers(ctx))
	return list.Offers, err
}

func (c *Client) Option(ctx context.Context, ref string) (api.Option, error) {
	return read[api.Option](c)(c.rest.ShowOption(ctx, ref, nil))
}

// PutOption orders or activates the option. It may be repeated.
func (c *Client) PutOption(ctx context.Context, ref string, o api.OptionOrder) (api.Option, error) {
	return read[api.Option](c)(c.rest.PutOption(ctx, ref, nil, o))
}

// CancelOption puts the option into grace or, with now, releases it and
// deletes the snapshot at once.
func (c *Client) CancelOption(ctx context.Context, ref string, now bool) (api.Option, error) {
	return read[api.Option](c)(c.rest.CancelOption(ctx, ref, &api.CancelOptionParams{Now: &now}))
}

// OptionHistory reads one page of the changes of a VPS's options.
func (c *Client) OptionHistory(ctx context.Context, ref string, p api.ListOptionHistoryParams) (api.OptionHistory, error) {
	return read[api.OptionHistory](c)(c.rest.ListOptionHistory(ctx, ref, &p))
}

func (c *Client) Snapshot(ctx context.Context, ref string) (api.Snapshot, error) {
	return read[api.Snapshot](c)(c.rest.ShowSnapshot(ctx, ref, nil))
}

func (c *Client) Describe(ctx context.Context, ref, description string) (api.Snapshot, error) {
	return read[api.Snapshot](c)(c.rest.DescribeSnapshot(ctx, ref, nil, api.SnapshotPatch{Description: description}))
}

func (c *Client) Take(ctx context.Context, ref string, r api.TakeRequest) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.TakeSnapshot(ctx, ref, nil, r))
}

func (c *Client) Restore(ctx context.Context, ref string, r api.RestoreRequest) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.RestoreSnapshot(ctx, ref, nil, r))
}

func (c *Client) UndoRestore(ctx context.Context, ref string) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.UndoRestore(ctx, ref, nil))
}

func (c *Client) Delete(ctx context.Context, ref string) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.DeleteSnapshot(ctx, ref, nil))
}

// Vouch takes the files of the snapshot as they are. For operators.
func (c *Client) Vouch(ctx context.Context, ref string, r api.VouchRequest) (api.Snapshot, error) {
	return read[api.Snapshot](c)(c.rest.VouchForSnapshot(ctx, ref, nil, r))
}

// MakeDownload makes a link to a disk of the snapshot.
func (c *Client) MakeDownload(ctx context.Context, ref string, r api.DownloadRequest) (api.Download, error) {
	return read[api.Download](c)(c.rest.MakeDownload(ctx, ref, nil, r))
}

// Downloads returns what links there are to the snapshot.
func (c *Client) Downloads(ctx context.Context, ref string) ([]api.DownloadLink, error) {
	list, err := read[api.DownloadList](c)(c.rest.ListDownloads(ctx, ref, nil))
	return list.Downloads, err
}

// RevokeDownload ends a link, by its id.
func (c *Client) RevokeDownload(ctx context.Context, ref, id string) error {
	_, err := read[struct{}](c)(c.rest.RevokeDownload(ctx, ref, id, nil))
	return err
}

// Download reads the image that a link is for, from some place on. The reader gives
// io.ErrUnexpectedEOF when it was cut off; what came before is right.
func (c *Client) Download(ctx context.Context, d api.Download, from int64) (io.ReadCloser, error) {
	part := fmt.Sprintf("bytes=%d-", from)
	// The tag makes sure that it is the rest of the same image.
	resp, err := c.rest.Download(ctx, path.Base(d.URL), &api.DownloadParams{Range: &part, IfMatch: &d.Etag})
	if err != nil {
		return nil, c.unreachable(err)
	}
	begins := fmt.Sprintf("bytes %d-", from)
	if resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), begins) {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(err)
	}
	return nil, refusal(resp, body)
}

// DownloadSum returns the SHA-256 of the image that a link is for; nil when the
// daemon does not know it yet.
func (c *Client) DownloadSum(ctx context.Context, d api.Download) ([]byte, error) {
	resp, err := c.rest.DescribeDownload(ctx, path.Base(d.URL), nil)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, nil)
	}
	text, ok := strings.CutPrefix(resp.Header.Get("Repr-Digest"), "sha-256=:")
	if !ok {
		return nil, nil
	}
	return base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":"))
}

// Messages reads one page of the journal of the VPS ref, or of all when ref is "".
func (c *Client) Messages(ctx context.Context, ref string, p api.ListMessagesParams) (api.MessageList, error) {
	if ref == "" {
		return read[api.MessageList](c)(c.rest.ListMessages(ctx, &p))
	}
	one := api.ListVPSMessagesParams(p)
	return read[api.MessageList](c)(c.rest.ListVPSMessages(ctx, ref, &one))
}

// Operations reads one page.
func (c *Client) Operations(ctx context.Context, p api.ListOperationsParams) (api.OperationList, error) {
	return read[api.OperationList](c)(c.rest.ListOperations(ctx, &p))
}

func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.ShowOperation(ctx, id, nil))
}

// WaitOperation returns the operation when it has ended, or after limit as it then is.
func (c *Client) WaitOperation(ctx context.Context, id string, limit time.Duration) (api.Operation, error) {
	wait := fmt.Sprintf("%dms", limit.Milliseconds())
	return read[api.Operation](c)(c.rest.ShowOperation(ctx, id, &api.ShowOperationParams{Wait: &wait}))
}

func (c *Client) CancelOperation(ctx context.Context, id string) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.CancelOperation(ctx, id, nil))
}

// ResumeOperation takes up an operation that was parked. For operators.
func (c *Client) ResumeOperation(ctx context.Context, id string) (api.Operation, error) {
	return read[api.Operation](c)(c.rest.ResumeOperation(ctx, id, nil))
}

// Tokens lists the access tokens. For operators.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	list, err := read[api.TokenList](c)(c.rest.ListTokens(ctx, nil))
	return list.Tokens, err
}

// CreateToken makes an access token. Its secret is in the answer, and nowhere else.
func (c *Client) CreateToken(ctx context.Context, r api.TokenRequest) (api.NewToken, error) {
	return read[api.NewToken](c)(c.rest.CreateToken(ctx, nil, r))
}

// RevokeToken ends a token, by its id. For operators.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := read[struct{}](c)(c.rest.RevokeToken(ctx, id, nil))
	return err
}

// Webhooks lists who is told of events. For operators.
func (c *Client) Webhooks(ctx context.Context) ([]api.Webhook, error) {
	list, err := read[api.WebhookList](c)(c.rest.ListWebhooks(ctx))
	return list.Webhooks, err
}

// CreateWebhook has a URL told of events. Its secret is in the answer, and nowhere else.
func (c *Client) CreateWebhook(ctx context.Context, r api.WebhookRequest) (api.NewWebhook, error) {
	return read[api.NewWebhook](c)(c.rest.CreateWebhook(ctx, nil, r))
}

// DeleteWebhook ends a webhook, by its id. For operators.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	_, err := read[struct{}](c)(c.rest.DeleteWebhook(ctx, id, nil))
	return err
}

// TestWebhook sends one message to a webhook now. For operators.
func (c *Client) TestWebhook(ctx context.Context, id string) (api.WebhookTest, error) {
	return read[api.WebhookTest](c)(c.rest.TestWebhook(ctx, id, nil))
}

func (c *Client) Host(ctx context.Context) (api.Host, error) {
	return read[api.Host](c)(c.rest.ShowHost(ctx))
}

// Checks compares the host's records with libvirt and the files. For operators.
func (c *Client) Checks(ctx context.Context) (api.Report, error) {
	return read[api.Report](c)(c.rest.CheckHost(ctx))
}

// Repair puts right what can be put right without any risk. It may be repeated.
func (c *Client) Repair(ctx context.Context) (api.Report, error) {
	return read[api.Report](c)(c.rest.RepairHost(ctx, nil))
}

// Ready returns nil when the daemon can work.
func (c *Client) Ready(ctx context.Context) error {
	_, err := read[api.Health](c)(c.rest.ShowReadiness(ctx))
	return err
}

// read returns a function that turns an answer into a T, or into an error.
func read[T any](c *Client) func(*http.Response, error) (T, error) {
	return func(resp *http.Response, err error) (out T, _ error) {
		if err != nil {
			return out, c.unreachable(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return out, c.unreachable(err)
		}
		if resp.StatusCode >= http.StatusMultipleChoices {
			return out, refusal(resp, body)
		}
		if resp.StatusCode == http.StatusNoContent {
			return out, nil
		}
		if err := json.Unmarshal(body, &out); err != nil {
			return out, fmt.Errorf("%s did not answer as vpssnapd does: %w", c.address, err)
		}
		return out, nil
	}
}

func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	// Leave out the URL and the address: the former is made up for a socket,
	// and the error names the latter already.
	if web, ok := errors.AsType[*url.Error](err); ok {
		err = web.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return &UnreachableError{Address: c.address, Err: err}
}

// refusal reads the problem document, or makes do with the status when
// something else, such as a proxy, has answered.
func refusal(resp *http.Response, body []byte) error {
	e := &Error{
		Code:      api.CodeForStatus(resp.StatusCode),
		Status:    resp.StatusCode,
		Detail:    "the answer was " + resp.Status,
		RequestID: resp.Header.Get("X-Request-Id"),
	}
	var p api.Problem
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == "application/problem+json" && json.Unmarshal(body, &p) == nil && p.Code != "" {
		e.Code, e.Detail, e.Remedy = p.Code, p.Detail, p.Remedy
	}
	return e
}
