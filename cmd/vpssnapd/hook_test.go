package main

import (
	"encoding/xml"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
	"vpssnapd/hypervisor/lab"
)

// FuzzHook: whatever definition libvirt hands over, the hook ends with an answer,
// and a VPS with a snapshot is never let start on its frozen base.
func FuzzHook(f *testing.F) {
	stateDir, id, base := withSnapshot(f)
	disk := func(file string) string {
		return `<devices><disk type="file" device="disk"><driver type="qcow2"/><source file="` + file + `"/><target dev="vda"/></disk></devices>`
	}
	f.Add("<domain><name>web1</name><uuid>ID</uuid>" + disk("BASE") + "</domain>")
	f.Add("<domain><name>web1</name><uuid>ID</uuid>" + disk("/srv/other") + "</domain>")
	f.Add(
		"<?xml version='1.0'?><!-- x --><domain type='kvm'><uuid>ID</uuid><name>a&#10;&lt;b</name>" + disk(
			"/x",
		) + disk(
			"BASE",
		) + "</domain>",
	)
	f.Add("<domain><uuid>other</uuid>" + disk("BASE") + "</domain>")
	f.Add("<!DOCTYPE d [<!ENTITY b 'c'>]><domain><uuid>&b;</uuid></domain>")
	f.Add("<domain><uuid>ID</uuid>" + strings.Repeat("<a>", 100))
	f.Add("\xff<domain/>")
	c := config{StateDir: stateDir}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.NewReplacer("ID", id, "BASE", base).Replace(text)
		err := runHook(c, []string{"web1", "prepare", "begin", "-"}, strings.NewReader(text))
		named, images, readable := walk(text)
		switch {
		case !readable && err == nil:
			t.Errorf("started on what is no definition: %q", text)
		case readable && named == id && slices.Contains(images, base) && err == nil:
			t.Errorf("started on the base: %q", text)
		case readable && !slices.Contains(images, base) && err != nil:
			t.Errorf("refused without reason: %v: %q", err, text)
		}
		if err := runHook(c, []string{"web1", "release", "end", "-"}, strings.NewReader(text)); err != nil {
			t.Errorf("the end of a VPS was held up: %v", err)
		}
	})
}

// TestHookWhileItsQEMURuns (FAULTS.md row 44): libvirt asks for a start of what runs already only
// when it has lost track of it.
func TestHookWhileItsQEMURuns(t *testing.T) {
	const id = "6dd6f2b1-5b5f-4f1c-8f5e-0d6ac2f3a001"
	definition := "<domain><uuid>" + id + "</uuid><name>web1</name></domain>"
	asked := func() error {
		return runHook(config{StateDir: t.TempDir()}, []string{"web1", "prepare", "begin", "-"}, strings.NewReader(definition))
	}
	qemu := exec.Command("sh", "-c", "echo; read end", "guest", "-uuid", id)
	stdin, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := qemu.StdoutPipe()
	if err == nil {
		err = qemu.Start()
	}
	if err == nil {
		_, err = stdout.Read(make([]byte, 1)) // it runs by now under its own name
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := asked(); err == nil || !strings.Contains(err.Error(), "lost track of its QEMU (process "+strconv.Itoa(qemu.Process.Pid)) {
		t.Errorf("a second QEMU is answered with %v", err)
	}
	stdin.Close()
	_ = qemu.Wait()
	if err := asked(); err != nil {
		t.Errorf("when it is gone: %v", err)
	}
}

// TestHookOnABrokenRecord: a record that cannot be read keeps no VPS of the host down.
func TestHookOnABrokenRecord(t *testing.T) {
	dir := t.TempDir()
	database := filepath.Join(dir, "vpssnapd.db")
	for name, content := range map[string]string{"garbage": strings.Repeat("no database ", 1000), "empty": "", "cut off": "SQLite format 3\x00"} {
		if err := os.WriteFile(database, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		definition := `<domain><uuid>u</uuid><name>web1</name><devices><disk><source file="/srv/x"/></disk></devices></domain>`
		if err := runHook(config{StateDir: dir}, []string{"web1", "prepare", "begin", "-"}, strings.NewReader(definition)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHookOnARecordThatDoesNotAnswer: neither a FIFO nor a dead mount keeps a VPS down.
func TestHookOnARecordThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	start := func(dir string) error {
		definition := `<domain><uuid>u</uuid><name>web1</name></domain>`
		return runHook(config{StateDir: dir}, []string{"web1", "prepare", "begin", "-"}, strings.NewReader(definition))
	}
	fifo, hung := t.TempDir(), t.TempDir()
	must(t, syscall.Mkfifo(filepath.Join(fifo, "vpssnapd.db"), 0o600))
	must(t, start(fifo))
	answer, err := lab.HangDirectory(hung)
	must(t, err)
	t.Cleanup(func() { must(t, answer()) })
	must(t, start(hung))
}

// withSnapshot makes a record of a VPS with a snapshot, and returns its directory,
// the VPS's id and the base.
func withSnapshot(f *testing.F) (stateDir, id, base string) {
	f.Helper()
	must := func(err error) {
		if err != nil {
			f.Fatal(err)
		}
	}
	ctx := f.Context()
	host, err := fake.Open(f.TempDir())
	must(err)
	id, err = host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20})
	must(err)
	dom, err := host.Domain(ctx, id)
	must(err)
	stateDir = f.TempDir()
	d, err := daemon.Open(
		ctx,
		daemon.Config{
			Host:     host,
			StateDir: stateDir,
			Settings: daemon.Settings{Merge: merge.Policy{Limit: 1}},
			Logger:   slog.New(slog.DiscardHandler),
		},
	)
	must(err)
	by := vps.Actor{Name: "test", Way: vps.WayOperator}
	_, err = d.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive}, by)
	must(err)
	op, err := d.Snapshots.Take(ctx, id, vps.TakeRequest{}, by)
	must(err)
	op, err = d.Operations.WaitOperation(ctx, op.ID, 20*time.Second)
	must(err)
	if op.Status != vps.StatusSucceeded {
		f.Fatalf("the take: %+v", op)
	}
	must(errors.Join(d.Close(), host.Close()))
	return stateDir, id, dom.Disks[0].Path
}

// walk reads a definition in another way than the hook does, token by token: the
// last uuid and every file of a disk.
func walk(text string) (id string, images []string, readable bool) {
	var path []string
	at := func(want ...string) bool { return len(path) > 0 && slices.Equal(path[1:], want) }
	for dec := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := dec.Token()
		if err != nil {
			return "", nil, false
		}
		switch x := token.(type) {
		case xml.StartElement:
			path = append(path, x.Name.Local)
			if at("uuid") {
				id = ""
			}
			if at("devices", "disk", "source") {
				for _, a := range x.Attr {
					if a.Name.Local == "file" && a.Value != "" {
						images = append(images, a.Value)
					}
				}
			}
		case xml.CharData:
			if at("uuid") {
				id += string(x)
			}
		case xml.EndElement:
			if path = path[:len(path)-1]; len(path) == 0 {
				return id, images, true
			}
		}
	}
}
