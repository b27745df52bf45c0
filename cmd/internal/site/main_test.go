package site_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// binDir holds the programs as users run them, built once for all tests.
var binDir string

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := site.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binDir = dir
	return m.Run()
}
