package fake

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

const (
	cluster  = 4096
	maxChain = 64
)

// record is one line of an image file: a header when Format is set, which replaces the
// one before, else a write. Files only grow, so a write keeps the inode and a torn last
// line is as if never written. Pattern stands for Length equal bytes, so a test of
// terabytes costs a line.
type record struct {
	Format        string `json:"format,omitempty"`
	Size          int64  `json:"size,omitempty"`
	Backing       string `json:"backing,omitempty"`
	BackingFormat string `json:"backing_format,omitempty"`

	Offset  int64 `json:"offset,omitempty"`
	Length  int64 `json:"length,omitempty"`
	Pattern byte  `json:"pattern,omitempty"`
}

// layer is one image file as read.
type layer struct {
	header record
	writes []record
}

// readLayer reads an image and holds its header against the stated format.
func readLayer(path, format string) (layer, error) {
	kind, err := pathname.KindOf(path)
	if err != nil {
		return layer{}, err
	}
	if kind != pathname.Regular {
		return layer{}, fmt.Errorf("%w: %s is a %s", hypervisor.ErrUnsupported, path, kind)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return layer{}, err
	}
	var l layer
	for line := range bytes.Lines(data) {
		var r record
		// A torn line: as after a power cut, the write never was.
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		if r.Format != "" {
			l.header = r
		} else {
			l.writes = append(l.writes, r)
		}
	}
	// As a stated format is held against the header by qemu-img.
	if l.header.Format != format {
		return layer{}, fmt.Errorf("%s is not an image of format %q", path, format)
	}
	return l, nil
}

// appendTo adds records to an image file.
func appendTo(path string, records ...record) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	return errors.Join(writeRecords(f, records), f.Close())
}

func writeRecords(f *os.File, records []record) error {
	b := bytes.NewBufferString("\n") // whatever was torn before ends here
	e := json.NewEncoder(b)
	for _, r := range records {
		if err := e.Encode(r); err != nil {
			return err
		}
	}
	_, err := f.Write(b.Bytes())
	return err
}

// createLayer makes a new image file, never over another.
func createLayer(path string, mode os.FileMode, header record) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(writeRecords(f, []record{header}), f.Close())
}

// allocated counts the bytes of the clusters that were ever written. In clusters, since
// that is what QEMU allocates at a first write.
func (l layer) allocated() int64 {
	writes := slices.Clone(l.writes)
	slices.SortFunc(writes, func(a, b record) int { return cmp.Compare(a.Offset, b.Offset) })
	var total, end int64
	for _, w := range writes {
		from := max(end, w.Offset/cluster*cluster)
		to := (w.Offset + w.Length + cluster - 1) / cluster * cluster
		if to > from {
			total += to - from
			end = to
		}
	}
	return total
}

// paint lays the writes over buf, which starts at offset of the disk. In the order in
// which they were made, so the last write wins.
func (l layer) paint(buf []byte, offset int64) {
	end := offset + int64(len(buf))
	for _, w := range l.writes {
		from, to := max(w.Offset, offset), min(w.Offset+w.Length, end)
		if from < to {
			fill(buf[from-offset:to-offset], w.Pattern)
		}
	}
}

// fill doubles what is filled: far faster than byte by byte under the race detector.
func fill(buf []byte, pattern byte) {
	buf[0] = pattern
	for n := 1; n < len(buf); n *= 2 {
		copy(buf[n:], buf[:n])
	}
}

// headerChain follows the headers from path downwards; path comes first.
func headerChain(path, format string) ([]hypervisor.Layer, error) {
	var chain []hypervisor.Layer
	for path != "" {
		// It also ends a chain that lies on itself.
		if len(chain) == maxChain {
			return nil, fmt.Errorf("%s has too many backing files", chain[0].Path)
		}
		l, err := readLayer(path, format)
		if err != nil {
			return nil, err
		}
		chain = append(chain, hypervisor.Layer{Path: path, Format: format})
		next := l.header.Backing
		if next != "" && !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(path), next)
		}
		path, format = next, l.header.BackingFormat
	}
	return chain, nil
}

// readChain returns what a guest sees through chain, the top first.
func readChain(chain []hypervisor.Layer, offset, length int64) ([]byte, error) {
	layers := make([]layer, len(chain))
	limits := make([]int64, len(chain))
	for i, c := range chain {
		l, err := readLayer(c.Path, c.Format)
		if err != nil {
			return nil, err
		}
		layers[i], limits[i] = l, l.header.Size
		if i > 0 {
			// Below the end of a smaller layer in between, QEMU reads zeroes.
			limits[i] = min(limits[i], limits[i-1])
		}
	}
	if len(chain) == 0 || offset < 0 || length < 0 || offset+length > limits[0] {
		return nil, fmt.Errorf("cannot read %d bytes at %d: beyond the end of the disk", length, offset)
	}
	buf := make([]byte, length)
	// From the bottom up, so that upper layers cover lower ones.
	for i, layer := range slices.Backward(layers) {
		visible := min(length, limits[i]-offset)
		if visible > 0 {
			layer.paint(buf[:visible], offset)
		}
	}
	return buf, nil
}

// mergeInto copies the first part/parts of what upper holds into base, which
// grows when it is the smaller one.
func mergeInto(upper, base hypervisor.Layer, part, parts int) error {
	from, err := readLayer(upper.Path, upper.Format)
	if err != nil {
		return err
	}
	to, err := readLayer(base.Path, base.Format)
	if err != nil {
		return err
	}
	var records []record
	if from.header.Size > to.header.Size {
		// QEMU enlarges the base first: the overlay of a resized disk is the larger.
		to.header.Size = from.header.Size
		records = append(records, to.header)
	}
	n := (len(from.writes)*part + parts - 1) / parts
	return appendTo(base.Path, append(records, from.writes[:n]...)...)
}

// inodeOf reads the inode of path.
func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
