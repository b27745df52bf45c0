package pathname

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor/lab"
)

// TestSame (FAULTS row 33): every name of a file is the same file, and no other is.
func TestSame(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("real/sub"), 0o700))
	must(t, os.MkdirAll(at("elsewhere/deep"), 0o700))
	for _, name := range []string{"real/a", "real/b", "elsewhere/a"} {
		must(t, os.WriteFile(at(name), nil, 0o600))
	}
	must(t, os.Symlink("real", at("dirlink")))
	must(t, os.Symlink(at("real/a"), at("imagelink")))
	must(t, os.Symlink("imagelink", at("linklink")))
	must(t, os.Symlink("elsewhere/deep", at("deeplink")))
	must(t, os.Link(at("real/a"), at("hardlink")))
	must(t, os.Symlink(at("real/gone"), at("dangling")))

	same := []string{
		at("real/a"), dir + "//real///a", dir + "/./real/./a", dir + "/real/sub/../a", dir + "/real/../real/a",
		at("dirlink/a"), at("imagelink"), at("linklink"), at("hardlink"), dir + "/deeplink/../../real/a",
		dir + "/dirlink/sub/../a",
	}
	for _, a := range same {
		for _, b := range same {
			if !Same(a, b) {
				t.Errorf("%s and %s are one file", a, b)
			}
		}
		for _, b := range []string{
			at("real/b"), at("elsewhere/a"), at("real/missing"), at("missing/a"), "real/a", "", dir + "/real/a/",
			dir + "/real/a/.", dir + "/deeplink/../real/a",
		} {
			if Same(a, b) && filepath.Clean(a) != filepath.Clean(b) {
				t.Errorf("%s and %s are two files", a, b)
			}
		}
	}
	// "link/.." is the parent of where the link leads, which the text does not tell.
	if Same(dir+"/deeplink/../a", at("real/a")) || !Same(dir+"/deeplink/../a", at("elsewhere/a")) {
		t.Error("link/.. was resolved by its text")
	}
	for _, pair := range [][2]string{
		{at("real/new"), at("dirlink/new")}, {at("real/new"), dir + "/real//new"}, {"/gone/dir//x", "/gone/dir/x"},
	} {
		if !Same(pair[0], pair[1]) {
			t.Errorf("%v are one place", pair)
		}
	}
	for _, pair := range [][2]string{{at("real/new"), at("elsewhere/new")}, {at("real/new"), at("real/newer")}, {"", ""}} {
		if Same(pair[0], pair[1]) {
			t.Errorf("%v are two places", pair)
		}
	}
}

// TestRenamedParent (FAULTS row 33): a directory that was moved takes its files along.
func TestRenamedParent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before, after := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	must(t, os.Mkdir(before, 0o700))
	must(t, os.WriteFile(filepath.Join(before, "a"), nil, 0o600))
	id, ok := Of(filepath.Join(before, "a"))
	must(t, os.Rename(before, after))
	if now, ok2 := Of(filepath.Join(after, "a")); !ok || !ok2 || now != id {
		t.Errorf("%v, %v", id, now)
	}
	must(t, os.Symlink("new", before))
	if !Same(filepath.Join(before, "a"), filepath.Join(after, "a")) {
		t.Error("the link that was left behind leads elsewhere")
	}
}

// TestBindMount (FAULTS row 33): of a directory and of one file.
func TestBindMount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	real, bound, file := filepath.Join(dir, "real"), filepath.Join(dir, "bound"), filepath.Join(dir, "file")
	must(t, errors.Join(os.Mkdir(real, 0o700), os.Mkdir(bound, 0o700)))
	image := filepath.Join(real, "a")
	must(t, errors.Join(os.WriteFile(image, nil, 0o600), os.WriteFile(file, nil, 0o600)))
	for _, m := range [][2]string{{real, bound}, {image, file}} {
		must(t, unix.Mount(m[0], m[1], "", unix.MS_BIND, ""))
		t.Cleanup(func() { must(t, unix.Unmount(m[1], 0)) })
	}
	for _, name := range []string{filepath.Join(bound, "a"), file} {
		if !Same(name, image) {
			t.Errorf("%s is another file", name)
		}
	}
}

// TestPlain: what is put on record names the same file without detours.
func TestPlain(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o700))
	must(t, os.Symlink("real/sub", filepath.Join(dir, "link")))
	for path, want := range map[string]string{
		dir + "//link/./a": dir + "/link/a", dir + "/link/../a": dir + "/real/a", dir + "/real/../a": dir + "/a",
		"a": "", dir + "/link/..": "", dir + "/gone/../a": "",
	} {
		if got, err := Plain(path); got != want && want != "" || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}

// TestKindOf (FAULTS row 41): what lies there is told without opening it.
func TestKindOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("file"), nil, 0o600))
	must(t, unix.Mkfifo(at("pipe"), 0o600))
	must(t, os.Symlink("pipe", at("link")))
	must(t, unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	socket, err := net.Listen("unix", at("socket"))
	must(t, err)
	defer socket.Close()
	for path, want := range map[string]Kind{
		at("file"): Regular, at("pipe"): Pipe, at("link"): Pipe, at("block"): BlockDevice, at("socket"): Socket,
		dir: Directory, "/dev/null": CharacterDevice,
	} {
		if got, err := KindOf(path); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := KindOf(at("missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestHungIsForgotten (FAULTS row 46): a directory that answers again is not remembered.
func TestHungIsForgotten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	end, err := lab.HangDirectory(dir)
	must(t, err)
	file := filepath.Join(dir, "file")
	for range 100 { // with a thread for each there would soon be too many
		if _, err = KindOf(file); !errors.Is(err, ErrSilent) {
			t.Errorf("got %v", err)
		}
		if Same(file, filepath.Join(t.TempDir(), "file")) || !Same(file, dir+"//file") {
			t.Error("without an answer only a name without detours tells")
		}
	}
	must(t, end())
	for until := time.Now().Add(time.Minute); all.hangs(dir); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it answers again, and is remembered as hung")
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
