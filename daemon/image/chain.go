package image

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// maxChain is how many images a chain may have below a disk. It also ends a chain that
// lies on itself.
const maxChain = 16

var (
	errTooDeep = fmt.Errorf("the chain of backing files is longer than %d", maxChain)
	errRemote  = errors.New("a template is not a plain local file")
)

// reader reads what one image says of itself.
type reader func(path, format string) (hypervisor.Image, error)

// walk shows what an image lies on, nearest first. It ends early with an error of read or
// of see, which is shown a layer before that is read.
func walk(path, format string, read reader, see func(hypervisor.Layer) error) error {
	for range maxChain {
		img, err := read(path, format)
		if err != nil {
			return err
		}
		below, local := img.Below()
		switch {
		case !local:
			return errRemote
		case below == "":
			return nil
		}
		layer := hypervisor.Layer{Path: below, Format: img.BackingFormat}
		if err := see(layer); err != nil {
			return err
		}
		path, format = layer.Path, layer.Format
	}
	return errTooDeep
}

// Chain follows the backing files by the headers, nearest first. complete is false
// when the end was not reached.
func (i *Images) Chain(ctx context.Context, path, format string) (below []string, complete bool) {
	read := func(path, format string) (hypervisor.Image, error) { return i.host.Inspect(ctx, path, format) }
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
	err = walk(path, "qcow2", i.remembered(ctx), func(layer hypervisor.Layer) error {
		paths = append(paths, layer.Path)
		return nil
	})
	if errors.Is(err, errTooDeep) || errors.Is(err, errRemote) {
		err = nil
	}
	return paths, err
}

// remembered reads headers that may be remembered.
func (i *Images) remembered(ctx context.Context) reader {
	return func(path, format string) (hypervisor.Image, error) {
		if format != "qcow2" {
			return hypervisor.Image{Path: path, Format: format}, nil
		}
		return i.header(ctx, path)
	}
}

// Unfit is why a VPS must not lie on what its image lies on.
type Unfit struct {
	Why, Remedy vps.Words
	cause       error // for the log: it names files of the host
}

func (u *Unfit) Error() string {
	if u.cause != nil {
		return u.Why.String() + ": " + u.cause.Error()
	}
	return u.Why.String()
}

func (u *Unfit) Unwrap() error { return u.cause }

func unfit(cause error, format string, args ...any) *Unfit {
	return &Unfit{Why: vps.Say(format, args...), cause: cause}
}

// CheckChain follows the headers of an image that a VPS has, or had, as a disk, and gives
// an Unfit where it lies on something that no disk may lie on: a header that a customer
// supplied can name any file of the host as its backing. Every other error means that this
// cannot be told now.
func (i *Images) CheckChain(ctx context.Context, vpsID, target, path, format string) error {
	if format != "qcow2" {
		return nil // it has no header, and lies on nothing
	}
	read := func(path, format string) (hypervisor.Image, error) { return i.host.Inspect(ctx, path, format) }
	return i.checkChain(path, format, read, i.placesFor(ctx, vpsID, target, path), func(hypervisor.Layer) error { return nil })
}

// checkChain does so with any reader, and shows the layers that are fit.
func (i *Images) checkChain(
	path, format string, read reader, places *places, see func(hypervisor.Layer) error,
) error {
	top := path
	checked := func(path, format string) (hypervisor.Image, error) {
		img, err := read(path, format)
		switch {
		case err != nil && ifNotAsked(err) != nil:
			return img, err
		case err != nil && path == top:
			return img, unfit(err, "its image cannot be read as %s", format)
		case err != nil:
			return img, unfit(err, "a template cannot be read")
		}
		return img, checkHeader(img, path == top)
	}
	err := walk(path, format, checked, func(layer hypervisor.Layer) error {
		if err := places.check(layer.Path); err != nil {
			return err
		}
		return see(layer)
	})
	if errors.Is(err, errTooDeep) {
		return unfit(nil, "its chain of templates is longer than %d", maxChain)
	}
	return err
}

// checkHeader refuses what a header says of what lies below, before that is looked at.
func checkHeader(img hypervisor.Image, top bool) error {
	_, local := img.Below()
	switch {
	case top && img.Encrypted:
		return unfit(nil, "the image is encrypted")
	case top && img.DataFile:
		return unfit(nil, "the image keeps its data in another file (data_file)")
	case img.Encrypted || img.DataFile:
		return unfit(nil, "a template is encrypted or keeps its data in another file")
	case !local:
		return unfit(nil, "its template is not a plain local file")
	case img.Backing != "" && img.BackingFormat != "qcow2" && img.BackingFormat != "raw":
		return unfit(nil, "its template has the format %s, only a stated qcow2 or raw is supported",
			OrNone(img.BackingFormat))
	}
	return nil
}

// Fit says why a VPS cannot have a snapshot because of what its disks lie on, as far as its
// definition and headers that were read before tell; nil when nothing speaks against it.
func (i *Images) Fit(ctx context.Context, dom hypervisor.Domain) *vps.Words {
	for _, disk := range Included(dom.Disks) {
		read := i.remembered(ctx)
		if disk.ChainKnown {
			read = stated(disk)
		}
		err := i.checkChain(disk.Path, disk.Format, read, i.placesFor(ctx, dom.ID, disk.Target, disk.Path),
			func(hypervisor.Layer) error { return nil })
		if why, ok := errors.AsType[*Unfit](err); ok {
			say := cannotTake(dom, disk, why.Why)
			return &say
		}
	}
	return nil
}

// stated reads a chain as the definition states it.
func stated(disk hypervisor.Disk) reader {
	rest := disk.Chain
	return func(path, format string) (hypervisor.Image, error) {
		img := hypervisor.Image{Path: path, Format: format}
		if len(rest) > 0 {
			img.Backing, img.BackingFormat, rest = rest[0].Path, rest[0].Format, rest[1:]
		}
		return img, nil
	}
}
