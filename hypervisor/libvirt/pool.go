package libvirt

import (
	"context"
	"fmt"

	"github.com/beevik/etree"
	"libvirt.org/go/libvirt"
)

// Pools are the directories of the host's storage pools. A libvirt without the storage
// driver has none.
func (h *Host) Pools(ctx context.Context) ([]string, error) {
	dirs, err := call(ctx, h, reading, "", func(c *libvirt.Connect) ([]string, error) {
		pools, err := c.ListAllStoragePools(0)
		if hasCode(err, libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var dirs []string
		for i := range pools {
			dir, err := poolDirectory(&pools[i])
			_ = pools[i].Free()
			if err != nil && !hasCode(err, libvirt.ERR_NO_STORAGE_POOL) { // it went meanwhile
				return nil, err
			}
			if dir != "" {
				dirs = append(dirs, dir)
			}
		}
		return dirs, nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the storage pools: %w", err)
	}
	return dirs, nil
}

// poolDirectory is where the volumes of a pool lie; "" when they are no files.
func poolDirectory(p *libvirt.StoragePool) (string, error) {
	text, err := p.GetXMLDesc(0)
	if err != nil {
		return "", err
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return "", fmt.Errorf("the definition of a storage pool is no XML: %w", err)
	}
	path := doc.FindElement("/pool/target/path")
	if path == nil {
		return "", nil
	}
	return path.Text(), nil
}
