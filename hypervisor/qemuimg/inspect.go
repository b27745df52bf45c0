package qemuimg

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// maxChain bounds how far a chain of backing files is followed; libvirt's own bound is 200.
const maxChain = 200

// info is what qemu-img info says, as far as it is used.
type info struct {
	Format        string            `json:"format"`
	VirtualSize   int64             `json:"virtual-size"`
	ActualSize    int64             `json:"actual-size"`
	Backing       string            `json:"backing-filename"`
	BackingFormat string            `json:"backing-filename-format"`
	Encrypted     bool              `json:"encrypted"`
	Dirty         bool              `json:"dirty-flag"`
	Snapshots     []json.RawMessage `json:"snapshots"`
	Specific      struct {
		Data struct {
			Corrupt  bool              `json:"corrupt"`
			DataFile string            `json:"data-file"`
			Bitmaps  []json.RawMessage `json:"bitmaps"`
			Encrypt  json.RawMessage   `json:"encrypt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// Inspect reads an image's own header, nothing below it.
func (i *Images) Inspect(ctx context.Context, path, format string) (hypervisor.Image, error) {
	what := fmt.Sprintf("cannot read the header of %q", path)
	if err := checkNames(path, format); err != nil {
		return hypervisor.Image{}, fmt.Errorf("%s: %w", what, err)
	}
	if err := i.checkKind(ctx, path); err != nil {
		return hypervisor.Image{}, fileError(what, err)
	}
	out := &limitedBuffer{limit: infoLimit}
	if err := i.short(ctx, []string{path}, out, "info", "--output=json", "-U", "-f", format, path); err != nil {
		return hypervisor.Image{}, fmt.Errorf("%s: %w", what, err)
	}
	if out.truncated {
		return hypervisor.Image{}, fmt.Errorf("%s: %w: it describes more than can be right", what, hypervisor.ErrUnsupported)
	}
	image, err := parseInfo(out.Bytes(), format)
	if err != nil {
		return hypervisor.Image{}, fmt.Errorf("%s: %w", what, err)
	}
	image.Path = path
	return image, nil
}

// Unused asks for the header without -U: QEMU then wants the lock that a writer has.
func (i *Images) Unused(ctx context.Context, path, format string) error {
	what := fmt.Sprintf("cannot find %q unused", path)
	if err := checkNames(path, format); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := i.checkKind(ctx, path); err != nil {
		return fileError(what, err)
	}
	if err := i.short(ctx, []string{path}, &limitedBuffer{}, "info", "-f", format, path); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// short runs qemu-img for work on the headers of paths.
func (i *Images) short(ctx context.Context, paths []string, read io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	_, err := change(ctx, &i.storage, paths, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, i.run(ctx, read, args...)
	})
	return err
}

// checkKind looks before anything opens: the open of a named pipe would wait for its
// other end (FAULTS row 41).
func (i *Images) checkKind(ctx context.Context, path string) error {
	file, err := look(ctx, &i.storage, path, func() (fs.FileInfo, error) { return os.Stat(path) })
	if err != nil {
		return err
	}
	if kind := pathname.KindOfMode(file.Mode()); kind != pathname.Regular && kind != pathname.BlockDevice {
		return fmt.Errorf("%w: it is a %s", hypervisor.ErrUnsupported, kind)
	}
	return nil
}

// parseInfo reads the answer of qemu-img info, and refuses one of another format than was
// stated.
func parseInfo(data []byte, format string) (hypervisor.Image, error) {
	var in info
	if err := json.Unmarshal(data, &in); err != nil {
		return hypervisor.Image{}, fmt.Errorf("qemu-img's answer: %w", err)
	}
	if in.Format != format || in.VirtualSize < 0 || in.ActualSize < 0 {
		return hypervisor.Image{}, fmt.Errorf(
			"%w: qemu-img's answer is of format %q and size %d", hypervisor.ErrUnsupported, in.Format, in.VirtualSize,
		)
	}
	specific := in.Specific.Data
	return hypervisor.Image{
		Format:            in.Format,
		VirtualSize:       in.VirtualSize,
		AllocatedSize:     in.ActualSize,
		Backing:           in.Backing,
		BackingFormat:     in.BackingFormat,
		DataFile:          specific.DataFile != "",
		Encrypted:         in.Encrypted || len(specific.Encrypt) > 0,
		InternalSnapshots: len(in.Snapshots),
		Bitmaps:           len(specific.Bitmaps),
		Corrupt:           specific.Corrupt,
		Dirty:             in.Dirty,
	}, nil
}

// checkNames checks a path and the format stated for it.
func checkNames(path, format string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	return checkFormat(format)
}

// checkChain follows the headers from an image down before a tool opens the
// whole chain: every layer must be a local file of stated format without a data
// file. A header is only data that a customer may have supplied, and a missing
// format would be probed. It returns the headers, as far as they are good.
func (i *Images) checkChain(ctx context.Context, path, format string) ([]hypervisor.Image, error) {
	var chain []hypervisor.Image
	for range maxChain {
		image, err := i.Inspect(ctx, path, format)
		if err != nil {
			return chain, err
		}
		if image.DataFile {
			return chain, fmt.Errorf("%w: %q keeps its data in another file", hypervisor.ErrUnsupported, path)
		}
		if chain = append(chain, image); image.Backing == "" {
			return chain, nil
		}
		if image.BackingFormat == "" {
			return chain, fmt.Errorf("%w: %q does not state the format of its backing file", hypervisor.ErrUnsupported, path)
		}
		below, local := image.Below()
		if !local {
			return chain, fmt.Errorf(
				"%w: the backing of %q is no local file: %q", hypervisor.ErrUnsupported, path, image.Backing,
			)
		}
		path, format = below, image.BackingFormat
	}
	return chain, fmt.Errorf("%w: more than %d layers", hypervisor.ErrUnsupported, maxChain)
}
