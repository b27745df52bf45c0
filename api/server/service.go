package server

import (
	"context"
	"crypto/sha256"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"vpssnapd/daemon/vps"
)

// Service is what the API offers to the outside; *daemon.Daemon is one. A ref
// is the id or the name of a VPS. Errors that a caller may read are *vps.Error.
type Service interface {
	ListVPS(ctx context.Context) ([]vps.VPS, error)
	ShowVPS(ctx context.Context, ref string) (vps.VPS, error)
	// FindVPS returns the id of a VPS that t is bound to. Of all others it tells
	// nothing, not even whether they exist.
	FindVPS(ctx context.Context, ref string, t vps.Token) (string, error)

	Offers() []vps.Offer
	Option(ctx context.Context, ref string) (vps.Option, error)
	PutOption(ctx context.Context, ref string, o vps.OptionOrder, a vps.Actor) (vps.Option, error)
	CancelOption(ctx context.Context, ref string, now bool, a vps.Actor) (vps.Option, error)
	OptionHistory(ctx context.Context, q vps.OptionQuery) (vps.OptionHistory, error)

	Snapshot(ctx context.Context, ref string) (vps.Snapshot, error)
	DescribeSnapshot(ctx context.Context, ref, description string, a vps.Actor) (vps.Snapshot, error)
	Take(ctx context.Context, ref string, r vps.TakeRequest, a vps.Actor) (vps.Operation, error)
	Restore(ctx context.Context, ref string, r vps.RestoreRequest, a vps.Actor) (vps.Operation, error)
	UndoRestore(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)
	Delete(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)

	MakeDownload(ctx context.Context, ref string, r vps.DownloadRequest, a vps.Actor) (vps.Download, error)
	RevokeDownload(ctx context.Context, ref, id string, a vps.Actor) error
	// Downloads returns what links there are, but not the links; Download one with it.
	Downloads(ctx context.Context, ref string) ([]vps.Download, error)
	Download(ctx context.Context, id string) (vps.Download, error)
	// FindDownload returns what a link is for; OpenDownload its image, too, whose
	// reads fail when it is cut off.
	FindDownload(ctx context.Context, link string) (vps.Download, error)
	OpenDownload(ctx context.Context, link string) (vps.Download, io.ReadSeekCloser, error)

	Operation(ctx context.Context, id string) (vps.Operation, error)
	Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error)
	WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error)
	CancelOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)
	ResumeOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)

	Authenticate(ctx context.Context, secret string) (vps.Token, error)
	Tokens(ctx context.Context) ([]vps.Token, error)
	CreateToken(ctx context.Context, r vps.TokenRequest, a vps.Actor) (t vps.Token, secret string, err error)
	RenewSecret(ctx context.Context, id string) (secret string, err error)
	RevokeToken(ctx context.Context, id string, a vps.Actor) error

	Webhooks(ctx context.Context) ([]vps.Webhook, error)
	Webhook(ctx context.Context, id string) (vps.Webhook, error)
	CreateWebhook(ctx context.Context, url string, types []vps.EventType, a vps.Actor) (vps.Webhook, error)
	DeleteWebhook(ctx context.Context, id string, a vps.Actor) error
	TestWebhook(ctx context.Context, id string) (vps.WebhookTest, error)

	// Answered returns what was kept of an answer (vps.Call), and the call's sum.
	Answered(ctx context.Context, client, key string) (answer []byte, sum [sha256.Size]byte, err error)

	Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error)
	Events(ctx context.Context, after int64) (vps.EventPage, error)
	Host(ctx context.Context) (vps.Host, error)
	Checks(ctx context.Context) (vps.Report, error)
	Repair(ctx context.Context, a vps.Actor) (vps.Report, error)
	Ready(ctx context.Context) error
	Metrics() prometheus.Gatherer
}
