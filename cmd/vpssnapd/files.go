package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"vpssnapd/daemon/store"
	"vpssnapd/hostfile"
)

// files are those that a daemon with this configuration believes, or keeps to itself, and
// its directories. path is the configuration's own.
func (c config) files(path string) map[string]hostfile.Guard {
	files := map[string]hostfile.Guard{
		path:                   hostfile.Trusted,
		c.StateDir:             hostfile.Trusted,
		filepath.Dir(c.Socket): hostfile.Trusted,
		c.TLS.Cert:             hostfile.Trusted,
		c.TLS.Key:              hostfile.Secret,
		c.TLS.ClientCA:         hostfile.Trusted,
		c.Mail.CA:              hostfile.Trusted,
		c.Mail.Templates:       hostfile.Trusted,
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		files[filepath.Join(c.StateDir, store.FileName)+suffix] = hostfile.Secret
	}
	if password, err := c.Mail.passwordPath(); err == nil {
		files[password] = hostfile.Secret
	}
	delete(files, "")
	return files
}

// judge returns what is wrong with those files that are there. What a start needs and does
// not find it says when it reads it. All are looked at side by side: of a mount that hangs
// each would take hostfile.Within.
func (c config) judge(ctx context.Context, path string) []error {
	files := c.files(path)
	names := slices.Sorted(maps.Keys(files))
	found := make([]error, len(names))
	var looking sync.WaitGroup
	for i, name := range names {
		looking.Go(func() { found[i] = hostfile.Judge(ctx, name, files[name]) })
	}
	looking.Wait()
	var wrong []error
	told := map[string]bool{} // one directory is on the way to many
	for _, err := range found {
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || told[err.Error()] {
			continue
		}
		told[err.Error()] = true
		wrong = append(wrong, err)
	}
	return wrong
}
