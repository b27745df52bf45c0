package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// mutant is the product with one rule broken.
type mutant struct {
	name     string
	rule     string // that it breaks
	edits    []edit
	campaign campaign
	// layout of the power cuts. Where all lies on one file system, each commit of
	// SQLite makes everything durable that was done before, directories too.
	layout string
	// tests are what to run of a package, for the campaign of that name.
	tests pick
}

// pick is the tests of a package whose names match.
type pick struct{ run, pkg string }

// edit replaces a text that is in a file exactly once.
type edit struct{ file, old, new string }

// campaign is what has to find a mutant.
type campaign string

const (
	// sweep: the kills at every point of every operation, on the fake host, and the merges
	// that stand still there.
	sweep campaign = "crash sweep"
	// powercut: the power cuts on real libvirt and QEMU.
	powercut campaign = "power cuts"
	// siblings: the tables of cases that are one fault in several dresses.
	siblings campaign = "tables of siblings"
)

// sweeps are the tests of the crash sweep.
var sweeps = pick{"KilledAnywhere|NothingFlushedIsLost|WithoutHeadway", "./daemon"}

// The rules are those of daemon/snapshot, daemon/guest, daemon/merge, daemon/store and hypervisor.
var mutants = []mutant{
	{
		name: "synchronous-normal", rule: "a commit that returned survives a power cut", campaign: powercut, layout: "one",
		edits: []edit{{"daemon/store/store.go", "_synchronous=full", "_synchronous=normal"}},
	},
	{
		name: "no-pivot-record", rule: "that a disk has pivoted is durable before the guest runs on, and believed after a crash", campaign: sweep,
		edits: []edit{
			{
				"daemon/snapshot/pivot.go", "return true, false, r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })",
				"r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })\n\t\treturn true, false, nil",
			},
			{
				"daemon/snapshot/pivot.go",
				"\treturn nil\n}\n\n// errRedefined",
				"\tif dom.State != hypervisor.Running {\n\t\treturn nil\n\t}\n\treturn s.host.Resume(ctx, dom.ID)\n}\n\n// errRedefined",
			},
			{
				"daemon/snapshot/pivot.go",
				"if !ok || disk.Pivoted || !now.Is(disk.Base) ||",
				"if !ok || disk.Pivoted || now.Path != \"\" ||",
			},
		},
	},
	{
		name: "blind-recommit", rule: "an overlay that is still there after a crash is not merged again once its disk has pivoted", campaign: sweep,
		edits: []edit{{
			"daemon/snapshot/delete.go", "\tif err := s.removeSnapshotFiles(ctx, dom, snap, \"settle\"); err != nil {",
			"\tfor _, disk := range snap.Disks {\n\t\tif r.Again() && dom.State == hypervisor.Off {\n" +
				"\t\t\t_ = s.host.MergeOffline(ctx, hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat}, nil)\n\t\t}\n\t}\n" +
				"\tif err := s.removeSnapshotFiles(ctx, dom, snap, \"settle\"); err != nil {",
		}},
	},
	{
		name: "no-suspend", rule: "the guest is suspended across the pivot", campaign: sweep,
		edits: []edit{
			{"daemon/guest/guest.go", "return g.host.Suspend(ctx, r.Op.VPS)", "return ctx.Err()"},
			{"daemon/snapshot/pivot.go", "case dom.State == hypervisor.Running:", "case ctx.Err() != nil:"},
		},
	},
	{
		name: "paths-as-text", rule: "files are told apart by device and inode", campaign: siblings,
		edits: []edit{{"hypervisor/pathname/pathname.go", "if ok1 && ok2 {\n\t\treturn one", "if ok1 && ok2 && alike {\n\t\treturn one"}},
		tests: pick{"BaseUnderAnotherName|DiskByAnotherName", "./daemon"},
	},
	{
		name: "image-options-dropped", rule: "what a definition says of an image comes back with it", campaign: siblings,
		edits: []edit{{"hypervisor/libvirt/disk.go", "cache != nil && s.Format != \"qcow2\"", "cache != nil"}},
		tests: pick{"ADiskKeepsWhatIsSaidOfIt", "./hypervisor/libvirt"},
	},
	{
		name: "merge-without-headway", rule: "a merge that stands still is begun again, and then an operator asked",
		campaign: sweep,
		edits:    []edit{{"daemon/merge/headway.go", "if time.Since(w.at) < limit {", "if time.Since(w.at) >= 0 {"}},
	},
	{
		name: "no-directory-sync", rule: "a file is durable only when its directory is", campaign: powercut, layout: "two",
		edits: []edit{
			{
				"hypervisor/qemuimg/file.go",
				"func syncEntry(path string) error {",
				"func syncEntry(path string) error {\n\tif path != \"\" {\n\t\treturn nil\n\t}",
			},
			{"hypervisor/libvirt/persist.go", "[]string{path, dir}", "[]string{path}"},
		},
	},
	{
		name: "unlink-before-durable", rule: "the definition is durable before the overlay is unlinked", campaign: powercut, layout: "three",
		edits: []edit{
			{"hypervisor/libvirt/persist.go", "[]string{path, dir}", "[]string{}"},
			// Libvirt's own sync of the next definition would hide it.
			{
				"daemon/snapshot/delete.go",
				"if err := s.host.SetMetadata(ctx, dom.ID, \"\"); err != nil {",
				"if err := ctx.Err(); err != nil {",
			},
		},
	},
}

// cuts is how many power cuts a mutant has to survive: the rarest of its
// violations was found in one of four.
const cuts = 60

// try lets the campaign run on the mutant and returns the line that shows that
// it was caught, "" when it was not.
func (m mutant) try(ctx context.Context, work string, seed uint64) (sign string, err error) {
	dir := filepath.Join(work, m.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	overlay, err := m.overlay(dir)
	if err != nil {
		return "", err
	}
	if tests := m.tests; m.campaign != powercut {
		if m.campaign == sweep {
			tests = sweeps
		}
		return caught(
			ctx, "_test.go:", "go", "test", "-overlay", overlay, "-count=1", "-failfast", "-run", tests.run, tests.pkg,
		)
	}
	for _, program := range []string{"./cmd/vpssnapd", "./cmd/vpssnap"} {
		if out, err := command(ctx, "go", "build", "-overlay", overlay, "-o", dir+"/", program).CombinedOutput(); err != nil {
			return "", fmt.Errorf("it does not build: %w\n%s", err, out)
		}
	}
	return caught(ctx, "VIOLATION", "go", "run", "./cmd/vpssnap-powercut", "-bin", dir, "-layout", m.layout,
		"-cuts", strconv.Itoa(cuts), "-seed", strconv.FormatUint(seed, 10))
}

// overlay writes the broken sources and returns the file that go build's
// -overlay wants (cmd/go, "go help build").
func (m mutant) overlay(dir string) (string, error) {
	broken := map[string]string{}
	for _, e := range m.edits {
		if _, ok := broken[e.file]; !ok {
			text, err := os.ReadFile(e.file)
			if err != nil {
				return "", err
			}
			broken[e.file] = string(text)
		}
		if n := strings.Count(broken[e.file], e.old); n != 1 {
			return "", fmt.Errorf("%s has %d places like this, one was expected:\n%s", e.file, n, e.old)
		}
		broken[e.file] = strings.Replace(broken[e.file], e.old, e.new, 1)
	}
	replace := map[string]string{}
	for file, text := range broken {
		path, err := filepath.Abs(file)
		if err != nil {
			return "", err
		}
		replace[path] = filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, list, 0o600)
}

// caught runs a campaign. One that fails must say what was violated: it may
// fail for other reasons, too. The crash sweep also says where it struck.
func caught(ctx context.Context, sign, program string, args ...string) (string, error) {
	cmd := command(ctx, program, args...)
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err == nil {
		return "", nil
	}
	if !errors.As(err, &failed) || ctx.Err() != nil {
		return "", errors.Join(err, ctx.Err())
	}
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte(sign)) && !bytes.Contains(line, []byte(": point ")) {
			return strings.TrimSpace(string(line)), nil
		}
	}
	return "", fmt.Errorf("the campaign failed, but not by a violation: %w\n%s", err, out)
}

// command ends with ctx, politely: the power cuts have mounts to undo.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	return cmd
}
