package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigCheckAsksTheDaemonsProgram: the one that was installed with this command,
// beside it or in sbin; what it says is shown, and its refusal is an error.
func TestConfigCheckAsksTheDaemonsProgram(t *testing.T) {
	for _, where := range []string{"bin", "sbin"} {
		prefix := t.TempDir()
		self, daemon := filepath.Join(prefix, "bin", "vpssnap"), filepath.Join(prefix, where, "vpssnapd")
		for _, dir := range []string{filepath.Dir(self), filepath.Dir(daemon)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var out, problems bytes.Buffer
		err := checkConfig(t.Context(), self, nil, &out, &problems)
		if err == nil || !strings.Contains(err.Error(), "no vpssnapd") {
			t.Errorf("without a daemon's program: %v", err)
		}
		if err := os.WriteFile(daemon, []byte("#!/bin/sh\necho \"$@\"\n[ \"$3\" != /bad ] || { echo 'line 3' >&2; exit 1; }\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := checkConfig(t.Context(), self, nil, &out, &problems); err != nil || out.String() != "config check\n" {
			t.Errorf("in %s: %v, %q", where, err, out.String())
		}
		err = checkConfig(t.Context(), self, []string{"/bad"}, &out, &problems)
		if !errors.Is(err, errConfig) || problems.String() != "line 3\n" {
			t.Errorf("in %s, a bad one: %v, %q", where, err, problems.String())
		}
	}
}
