package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func downloadCmd(a *app) *cobra.Command {
	var request api.DownloadRequest
	format := choice{value: "qcow2", of: []string{"qcow2", "raw"}}
	cmd := &cobra.Command{
		Use:   "download VPS [FILE]",
		Short: "Download a disk of the snapshot of a VPS",
		Long: `Download a disk of the snapshot of a VPS, as it was when the snapshot was taken,
into one file that needs no other. The VPS runs on. Without FILE the file is named
after the VPS, the disk and the time of the snapshot.

What was cut off goes on by itself, also when the daemon is restarted; after an
interruption the same command takes it up where it was. Until all is there the file
is called FILE.TAG.part. Its SHA-256 is compared if the daemon knows it.

A deletion of the snapshot ends the download.`,
		Example: `  vpssnap download web1
  vpssnap download web1 web1.img --format raw
  vpssnap download db1 --disk vdb`,
		SuggestFor: []string{"export", "get", "fetch"},
		Args:       cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault // file names
			}
			return a.completeVPS(cmd, args, typed)
		},
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			request.Format = api.DownloadRequestFormat(format.value)
			d := download{app: a, c: c, ref: args[0], request: request}
			if len(args) > 1 {
				d.path = args[1]
			}
			return d.run(ctx)
		}),
	}
	cmd.Flags().StringVar(&request.Disk, "disk", "", "which disk, as vda; needed when the snapshot has several")
	choose(
		cmd, cmd.Flags(), &format, "format", "",
		"what to make of it: qcow2, which leaves out what was never\nwritten, or raw",
	)
	return cmd
}

// download is one file on its way.
type download struct {
	*app
	c       *client.Client
	ref     string
	request api.DownloadRequest
	path    string
	link    api.Download
	file    *os.File
	have    int64 // bytes
	seen    func(api.Operation)
}

// downloaded is what is printed for programs.
type downloaded struct {
	File       string `json:"file"`
	SizeBytes  int64  `json:"size_bytes"`
	SHA256     string `json:"sha256"`
	Verified   bool   `json:"verified"`
	SnapshotID string `json:"snapshot_id"`
	Disk       string `json:"disk"`
	Format     string `json:"format"`
}

func (d *download) run(ctx context.Context) (err error) {
	if d.link, err = d.c.MakeDownload(ctx, d.ref, d.request); err != nil {
		return err
	}
	defer d.endLink(ctx)
	if d.path == "" {
		d.path = d.link.FileName
	}
	// Nothing is overwritten: it may be the only copy.
	if _, err := os.Lstat(d.path); !errors.Is(err, fs.ErrNotExist) {
		return usagef("%s is there already; remove it, or name another file", d.path)
	}
	// The name says of which image it is a part, so that it is never taken for
	// that of another.
	part := d.path + "." + strings.Trim(d.link.Etag, `"`) + ".part"
	if d.file, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("cannot keep the download: %w", err)
	}
	defer d.file.Close()
	if err := d.fetchAll(ctx); err != nil {
		return err
	}
	sum, verified, err := d.verify(ctx)
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	// Under its own name only when it is whole and on disk.
	if err := errors.Join(d.file.Sync(), os.Rename(part, d.path)); err != nil {
		return fmt.Errorf("cannot keep the download: %w", err)
	}
	return d.print(
		downloaded{
			File:       d.path,
			SizeBytes:  d.have,
			SHA256:     sum,
			Verified:   verified,
			SnapshotID: d.link.SnapshotID,
			Disk:       d.link.Disk,
			Format:     string(d.link.Format),
		},
		func() {
			how := "its SHA-256 is right"
			if !verified {
				how = "the daemon does not know its SHA-256 yet, which is " + sum
			}
			d.say("%s: disk %s is in %s, %s; %s", clean(d.ref), clean(d.link.Disk), clean(d.path), size(d.have), how)
		},
	)
}

// endLink revokes the link: nobody else has it, and it would open the disk for
// another day. Where that fails, it does so.
func (d *download) endLink(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeWithin)
	defer cancel()
	_ = d.c.RevokeDownload(ctx, d.ref, d.link.ID)
}

const (
	// revokeWithin is how long a user waits for the end of the link.
	revokeWithin = 5 * time.Second
	// patience is how long a download is tried without getting a byte.
	patience = 2 * time.Minute
	// tryAgain is how long a try waits.
	tryAgain = time.Second
)

// fetchAll fetches what is not there yet, in as many tries as that takes.
func (d *download) fetchAll(ctx context.Context) error {
	// What an earlier call has left is gone on with.
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	d.have = min(info.Size(), d.link.SizeBytes)
	seen, _, stop := d.watch(d.progress(0))
	defer stop()
	d.seen = seen
	for moved := time.Now(); d.have < d.link.SizeBytes; {
		before := d.have
		err := d.fetch(ctx)
		if d.have > before {
			moved = time.Now()
		}
		switch {
		case d.have == d.link.SizeBytes:
		case !d.passing(ctx, err) || time.Since(moved) > patience:
			return err
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(tryAgain):
			}
		}
	}
	return nil
}

// passing reports whether what ended a try may be over at the next one. A link that is
// over is replaced.
func (d *download) passing(ctx context.Context, err error) bool {
	var refused *client.Error
	var local *fs.PathError
	switch {
	case ctx.Err() != nil, errors.As(err, &local):
		return false
	case !errors.As(err, &refused):
		return true // the network, or the daemon is being restarted
	case refused.Code == api.CodeNotFound:
		link, err := d.c.MakeDownload(ctx, d.ref, d.request)
		// Another image: what is in the file is no part of it.
		if err != nil || link.Etag != d.link.Etag {
			return false
		}
		d.link = link
		return true
	}
	return refused.Code == api.CodeRateLimited || refused.Code == api.CodeHypervisorUnavailable
}

// fetch is one try.
func (d *download) fetch(ctx context.Context) error {
	body, err := d.c.Download(ctx, d.link, d.have)
	if err != nil {
		return err
	}
	defer body.Close()
	began, from := time.Now(), d.have
	for buffer := make([]byte, 1<<20); ; {
		n, err := io.ReadFull(body, buffer)
		// Kept even when the read failed after it.
		if n > 0 {
			if _, err := d.file.WriteAt(buffer[:n], d.have); err != nil {
				return err
			}
			d.have += int64(n)
			d.seen(d.progress(float64(d.have-from) / time.Since(began).Seconds()))
		}
		if err != nil {
			return fmt.Errorf("the download was cut off after %s: %w", size(d.have), err)
		}
	}
}

// progress tells how far it is in the words of an operation.
func (d *download) progress(perSecond float64) api.Operation {
	p := api.Progress{DoneBytes: d.have, TotalBytes: d.link.SizeBytes, Percent: int(100 * d.have / max(1, d.link.SizeBytes))}
	if perSecond > 0 {
		left := int64(float64(d.link.SizeBytes-d.have) / perSecond)
		p.ETASeconds = &left
	}
	return api.Operation{VPSName: d.ref, Status: api.OperationStatusRunning, Step: "downloading", Progress: p}
}

// verify compares the sum of the file with what the daemon knows. An older daemon, or
// one that did not come to it yet, knows none.
func (d *download) verify(ctx context.Context) (sum string, verified bool, err error) {
	want, err := d.c.DownloadSum(ctx, d.link)
	if err != nil {
		want = nil // the snapshot may be gone by now; what has arrived is whole
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d.file, 0, d.link.SizeBytes)); err != nil {
		return "", false, fmt.Errorf("cannot read what was downloaded: %w", err)
	}
	sum = hex.EncodeToString(h.Sum(nil))
	if want != nil && hex.EncodeToString(want) != sum {
		return sum, false, fmt.Errorf(
			"what has arrived is not what was sent: its SHA-256 is %s instead of %x; it was removed, download it again",
			sum, want,
		)
	}
	return sum, want != nil, nil
}
