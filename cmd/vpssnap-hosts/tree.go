package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// packagesOfHost are what a host has before ours comes. debootstrap resolves no
// alternatives: libpam-systemd is the logind that polkitd asks for.
const packagesOfHost = "systemd,systemd-sysv,libpam-systemd,dbus,polkitd,libvirt-daemon-system,libvirt-clients,qemu-system-x86,qemu-utils"

// bootstrapped returns the tree of a Debian, made now or at an earlier time.
func bootstrapped(ctx context.Context, suite string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	tree := filepath.Join(cache, "vpssnapd", "hosts", suite)
	if _, err := os.Stat(tree); !errors.Is(err, fs.ErrNotExist) {
		return tree, err
	}
	mirror, err := mirror(ctx)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(tree), 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(tree), suite+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := os.Chmod(fresh, 0o755); err != nil { //nolint:gosec // it becomes a host's root
		return "", err
	}
	fmt.Printf("bootstrapping %s, which takes a minute or two, once\n", suite)
	if _, err := output(ctx, nil, "debootstrap", "--variant=minbase", "--include="+packagesOfHost, suite, fresh, mirror); err != nil {
		return "", err
	}
	return tree, os.Rename(fresh, tree)
}

// mirror is where this machine has its Debian from.
func mirror(ctx context.Context) (string, error) {
	lines, err := output(ctx, nil, "apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Identifier: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(lines) {
		origin, uri, _ := strings.Cut(strings.TrimSpace(line), " ")
		if origin == "Debian" && !strings.Contains(uri, "security") {
			return uri, nil
		}
	}
	return "", errors.New("the apt sources of this machine name no Debian mirror (is an apt-get update due?)")
}

// output runs a program to its end and returns its standard output.
func output(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, both bytes.Buffer
	cmd.Stdout = &tee{&stdout, &both}
	cmd.Stderr = &both
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("cannot run %s: %w:\n%s", strings.Join(args, " "), err, end(both.String(), 40))
	}
	return stdout.String(), nil
}

// tee keeps what is written in two places, as io.MultiWriter does, of one process.
type tee struct{ a, b *bytes.Buffer }

func (t *tee) Write(text []byte) (int, error) {
	t.a.Write(text)
	return t.b.Write(text)
}

// end is the last lines of a text.
func end(text string, lines int) string {
	all := slices.Collect(strings.Lines(text))
	return strings.Join(all[max(0, len(all)-lines):], "")
}
