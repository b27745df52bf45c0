package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// laterMigration is what a next version might do to the database.
const laterMigration = `-- +goose Up
ALTER TABLE snapshot ADD COLUMN of_a_later_version INTEGER NOT NULL DEFAULT 7;

-- +goose Down
ALTER TABLE snapshot DROP COLUMN of_a_later_version;
`

// buildPackages builds today's package, and the one of a later version whose database
// has one migration more. Both are .deb files for this machine. buildPackage runs the
// real packaging, so that what is proved is what is shipped.
func buildPackages(ctx context.Context, work string) (packages [2]string, err error) {
	top, err := output(ctx, nil, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return packages, err
	}
	if packages[0], err = buildPackage(ctx, work, "1.0", nil); err != nil {
		return packages, err
	}
	migrations := filepath.Join(filepath.Clean(top[:len(top)-1]), "daemon/store/migration")
	later := filepath.Join(work, "later.sql")
	if err := os.WriteFile(later, []byte(laterMigration), 0o600); err != nil {
		return packages, err
	}
	overlay, err := json.Marshal(
		map[string]any{"Replace": map[string]string{filepath.Join(migrations, "90001_later.sql"): later}},
	)
	if err != nil {
		return packages, err
	}
	overlayFile := filepath.Join(work, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return packages, err
	}
	packages[1], err = buildPackage(ctx, work, "2.0", []string{"GOFLAGS=-overlay=" + overlayFile, "PACKAGE_SCHEMA=90001"})
	return packages, err
}

func buildPackage(ctx context.Context, work, version string, env []string) (string, error) {
	fmt.Printf("building the package %s\n", version)
	dir := filepath.Join(work, "packages", version)
	env = append(env, "PACKAGE_VERSION="+version, "PACKAGE_ARCHES=amd64", "PACKAGE_FORMATS=deb")
	if _, err := output(ctx, env, "packaging/build-packages", dir); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("building the package left %d files in %s", len(found), dir)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}
