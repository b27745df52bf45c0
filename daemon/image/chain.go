package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"vpssnapd/hypervisor"
)

// maxChain is how many images a chain may have below a disk. It also ends a chain that
// lies on itself.
const maxChain = 16

var (
	errTooDeep = fmt.Errorf("the chain of backing files is longer than %d", maxChain)
	errRemote  = errors.New("a backing file is not a plain local file")
)

// walk shows what an image lies on, nearest first. read tells what one image lies on,
// with "" for nothing, which is the end. It ends early with an error of either.
func walk(
	path, format string, read func(path, format string) (hypervisor.Layer, error), see func(hypervisor.Layer) error,
) error {
	for range maxChain {
		below, err := read(path, format)
		switch {
		case err != nil || below.Path == "":
			return err
		case !isFile(below.Path):
			return errRemote
		case !filepath.IsAbs(below.Path): // then it is relative to the image
			below.Path = filepath.Join(filepath.Dir(path), below.Path)
		}
		if err := see(below); err != nil {
			return err
		}
		path, format = below.Path, below.Format
	}
	return errTooDeep
}

// isFile reports whether a header names a file, and no json:, nbd:, rbd: or the like.
func isFile(backing string) bool {
	// A colon behind the first slash is part of an ordinary name.
	first, _, _ := strings.Cut(backing, "/")
	return !strings.Contains(first, ":")
}

// Chain follows the backing files by the headers, nearest first. complete is false
// when the end was not reached.
func (i *Images) Chain(ctx context.Context, path, format string) (below []string, complete bool) {
	read := func(path, format string) (hypervisor.Layer, error) {
		img, err := i.host.Inspect(ctx, path, format)
		return hypervisor.Layer{Path: img.Backing, Format: img.BackingFormat}, err
	}
	err := walk(path, format, read, func(layer hypervisor.Layer) error {
		below = append(below, layer.Path)
		return nil
	})
	return below, err == nil
}

// below is Chain by headers that may be remembered, of the images of another VPS: one
// that cannot be read lies on nothing, since it cannot be started either. An error
// means that an image could not be asked now.
func (i *Images) below(ctx context.Context, path string) (paths []string, err error) {
	// A raw image has no header, and lies on nothing.
	read := func(path, format string) (hypervisor.Layer, error) {
		if format != "qcow2" {
			return hypervisor.Layer{}, nil
		}
		return i.backing(ctx, path)
	}
	err = walk(path, "qcow2", read, func(layer hypervisor.Layer) error {
		paths = append(paths, layer.Path)
		return nil
	})
	if errors.Is(err, errTooDeep) || errors.Is(err, errRemote) {
		err = nil
	}
	return paths, err
}
