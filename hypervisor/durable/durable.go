// Package durable makes files and directory entries outlive a power cut.
//
// A file is durable only when its directory is too: ext4 and XFS may forget the name of
// a file whose content they kept (fsync(2), "Notes").
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Sync makes the content of the file, or the entries of the directory, at path durable.
// Its errors are those of the os package.
func Sync(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// SyncEntry makes the name of path durable, or that the name is gone. The directory is
// the text before the name: to clean it would take "link/.." away, which leads elsewhere.
func SyncEntry(path string) error {
	dir, _ := filepath.Split(path)
	return Sync(dir + ".")
}
