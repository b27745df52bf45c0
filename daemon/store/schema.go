package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"vpssnapd/hostfile"
	"vpssnapd/hypervisor/durable"
)

// schemaFile tells packages, before they are installed, which version of the
// database their daemon would find (packaging/preinst).
const schemaFile = "schema"

// noteSchema makes durable, beside the database, which version it is about to have.
func noteSchema(ctx context.Context, dir string, version int64) error {
	path, text := filepath.Join(dir, schemaFile), strconv.FormatInt(version, 10)+"\n"
	if old, err := hostfile.Read(ctx, path, hostfile.Trusted); err == nil && string(old) == text {
		return nil
	}
	fresh := path + ".new"
	err := os.WriteFile(fresh, []byte(text), 0o600)
	if err == nil {
		err = errors.Join(durable.Sync(fresh), os.Rename(fresh, path), durable.Sync(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot note the version of the database in %s: %w", path, err)
	}
	return nil
}
