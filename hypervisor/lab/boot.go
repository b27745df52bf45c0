package lab

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Boot is what a guest with OS boots.
type Boot struct {
	Kernel    string
	Initramfs string
	Arguments string
}

// bootArguments keep the boot short: it runs under emulation. On a busy machine the
// kernel's own test of the timer fails there, and it gives up: hence no_timer_check.
const bootArguments = "console=ttyS0 quiet nokaslr no_timer_check mitigations=off random.trust_cpu=on"

// cacheVariable names the directory that keeps what Build makes.
const cacheVariable = "VPSSNAP_LAB_CACHE"

//go:embed guest
var guestFiles embed.FS

// modules are what the guest needs to see its disks and its agent's channel, in
// the order in which they load. All else is built into Debian's cloud kernel, and
// in Debian 13 most of these are, too.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_blk", "virtio_console",
}

// building lets one Build at a time run in this process. Others are kept apart by rename.
var building sync.Mutex

// Build makes the guest's kernel and initramfs from Debian packages, or finds
// them in dir from an earlier time. dir "" is $VPSSNAP_LAB_CACHE, else build/lab
// in the Go module around the working directory.
func Build(ctx context.Context, dir string) (Boot, error) {
	building.Lock()
	defer building.Unlock()
	dir, err := cacheDir(dir)
	if err != nil {
		return Boot{}, fmt.Errorf("cannot build the lab's guest: %w", err)
	}
	packages, err := findPackages(ctx)
	if err != nil {
		return Boot{}, fmt.Errorf("cannot build the lab's guest: %w", err)
	}
	key, err := buildKey(packages)
	if err != nil {
		return Boot{}, err
	}
	finished := filepath.Join(dir, key)
	if _, err := os.Stat(finished); errors.Is(err, fs.ErrNotExist) {
		if err := buildInto(ctx, finished, packages); err != nil {
			return Boot{}, fmt.Errorf("cannot build the lab's guest: %w", err)
		}
	} else if err != nil {
		return Boot{}, err
	}
	return Boot{
		Kernel:    filepath.Join(finished, "vmlinuz"),
		Initramfs: filepath.Join(finished, "initramfs"),
		Arguments: bootArguments,
	}, nil
}

func cacheDir(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv(cacheVariable)
	}
	if dir != "" {
		return filepath.Abs(dir)
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := wd; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return filepath.Join(at, "build/lab"), nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no Go module around %s: set %s", wd, cacheVariable)
		}
	}
}

// debian is one package, in the version that apt would install.
type debian struct {
	Name, Version string
}

var (
	packageLine = regexp.MustCompile(`(?m)^Package: (\S+)$`)
	versionLine = regexp.MustCompile(`(?m)^Version: (\S+)$`)
	kernelLine  = regexp.MustCompile(`(?m)^Depends:.*\b(linux-image-[0-9][^ ,]*-cloud-amd64) \(= ([^)]+)\)`)
)

// found keeps what findPackages found, which takes apt a second.
var found []debian

// findPackages tells which packages make the guest; the kernel is the first.
func findPackages(ctx context.Context) ([]debian, error) {
	if found != nil {
		return found, nil
	}
	const kernel, agent, busybox = "linux-image-cloud-amd64", "qemu-guest-agent", "busybox-static"
	text, err := run(ctx, "apt-cache", "show", "--no-all-versions", kernel, agent, busybox)
	if err != nil {
		return nil, fmt.Errorf("%w (is an apt-get update due?)", err)
	}
	stanzas := map[string]string{}
	for stanza := range strings.SplitSeq(text, "\n\n") {
		if name := packageLine.FindStringSubmatch(stanza); name != nil {
			stanzas[name[1]] = stanza
		}
	}
	// The package of that name is empty and depends on today's kernel.
	today := kernelLine.FindStringSubmatch(stanzas[kernel])
	if today == nil {
		return nil, fmt.Errorf("apt names no kernel for %s", kernel)
	}
	packages := []debian{{today[1], today[2]}}
	for _, name := range []string{agent, busybox} {
		version := versionLine.FindStringSubmatch(stanzas[name])
		if version == nil {
			return nil, fmt.Errorf("apt tells no version of %s", name)
		}
		packages = append(packages, debian{name, version[1]})
	}
	found = packages
	return packages, nil
}

// buildKey changes with everything that goes into the guest, but for the
// libraries, which are the machine's.
func buildKey(packages []debian) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, packages, modules)
	for _, name := range slices.Sorted(maps.Keys(scripts)) {
		text, err := guestFiles.ReadFile(scripts[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %q\n", name, text)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// buildInto makes the finished directory appear in one act.
func buildInto(ctx context.Context, finished string, packages []debian) error {
	if err := os.MkdirAll(filepath.Dir(finished), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(finished), "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root, out := filepath.Join(work, "root"), filepath.Join(work, "out")
	for _, p := range packages {
		if err := unpack(ctx, work, root, p); err != nil {
			return err
		}
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	kernel := strings.TrimPrefix(packages[0].Name, "linux-image-")
	if err := os.Rename(filepath.Join(root, "boot/vmlinuz-"+kernel), filepath.Join(out, "vmlinuz")); err != nil {
		return err
	}
	image, err := initramfs(ctx, root)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "initramfs"), image, 0o644); err != nil {
		return err
	}
	err = os.Rename(out, finished)
	if _, there := os.Stat(filepath.Join(finished, "initramfs")); there == nil {
		return nil // another process was faster
	}
	return err
}

func unpack(ctx context.Context, work, root string, p debian) error {
	cmd := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", p.Name+"="+p.Version)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot download %s %s, perhaps for want of an update: %w: %s", p.Name, p.Version, err, out)
	}
	files, err := filepath.Glob(filepath.Join(work, p.Name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("apt left %d files for %s", len(files), p.Name)
	}
	_, err = run(ctx, "dpkg-deb", "--extract", files[0], root)
	return err
}

// scripts are the embedded files, by where they go in the guest.
var scripts = map[string]string{
	"init":               "guest/init",
	"sbin/shutdown":      "guest/shutdown",
	"sbin/fsfreeze-hook": "guest/fsfreeze-hook",
	"bin/record":         "guest/record",
}

// initramfs packs the guest's root file system. It is not compressed: unpacking
// under emulation takes longer than loading.
func initramfs(ctx context.Context, root string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "tmp", "mnt", "modules"} {
		a.dir(dir)
	}
	a.charDevice("dev/console", 5, 1)
	a.charDevice("dev/null", 1, 3)
	for _, name := range slices.Sorted(maps.Keys(scripts)) {
		text, err := guestFiles.ReadFile(scripts[name])
		if err != nil {
			return nil, err
		}
		a.file(name, 0o755, text)
	}
	if err := a.programs(ctx, root); err != nil {
		return nil, err
	}
	if err := a.modules(ctx, root); err != nil {
		return nil, err
	}
	return a.end(), nil
}

// programs adds busybox, the agent and the agent's libraries.
func (a *archive) programs(ctx context.Context, root string) error {
	agent := filepath.Join(root, "usr/sbin/qemu-ga")
	busybox, err := busyboxIn(root)
	if err != nil {
		return err
	}
	from := map[string]string{"bin/busybox": busybox, "bin/qemu-ga": agent}
	libraries, err := libraries(ctx, agent)
	if err != nil {
		return err
	}
	made := map[string]bool{}
	for _, library := range libraries {
		name := strings.TrimPrefix(library, "/")
		a.parents(name, made)
		from[name] = library
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		data, err := os.ReadFile(from[name])
		if err != nil {
			return err
		}
		a.file(name, 0o755, data)
	}
	return nil
}

// busyboxIn is where the package has it: since Debian 13 below /usr.
func busyboxIn(root string) (string, error) {
	for _, dir := range []string{"bin", "usr/bin"} {
		path := filepath.Join(root, dir, "busybox")
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, err
		}
	}
	return "", errors.New("the package busybox-static has no busybox")
}

// parents adds the directories above name that are not in made yet.
func (a *archive) parents(name string, made map[string]bool) {
	dir := filepath.Dir(name)
	if dir == "." || made[dir] {
		return
	}
	a.parents(dir, made)
	made[dir] = true
	a.dir(dir)
}

// modules adds the kernel modules, and the order in which to load them.
func (a *archive) modules(ctx context.Context, root string) error {
	paths, builtIn, err := modulesIn(root)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, module := range modules {
		name := module + ".ko"
		if builtIn[name] {
			continue
		}
		data, err := readModule(ctx, root, paths, name)
		if err != nil {
			return err
		}
		a.file("modules/"+name, 0o644, data)
		fmt.Fprintln(&order, name)
	}
	a.file("modules/order", 0o644, []byte(order.String()))
	return nil
}

// modulesIn finds the files of the modules, and which are built into the kernel.
func modulesIn(root string) (paths map[string]string, builtIn map[string]bool, err error) {
	paths, builtIn = map[string]string{}, map[string]bool{}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths[filepath.Base(path)] = path
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	list, err := os.ReadFile(paths["modules.builtin"])
	if err != nil {
		return nil, nil, fmt.Errorf("the kernel does not tell what is built into it: %w", err)
	}
	for line := range strings.FieldsSeq(string(list)) {
		builtIn[filepath.Base(line)] = true
	}
	return paths, builtIn, nil
}

// readModule reads a module, which Debian 13 compresses. busybox can read that.
func readModule(ctx context.Context, root string, paths map[string]string, name string) ([]byte, error) {
	if plain := paths[name]; plain != "" {
		return os.ReadFile(plain)
	}
	packed := paths[name+".xz"]
	if packed == "" {
		return nil, fmt.Errorf("the kernel has no module %s", name)
	}
	busybox, err := busyboxIn(root)
	if err != nil {
		return nil, err
	}
	text, err := run(ctx, busybox, "xzcat", packed)
	return []byte(text), err
}

var libraryPath = regexp.MustCompile(`(/\S+) \(0x`)

// libraries are the shared libraries of a program, the loader among them.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := run(ctx, "ldd", program)
	if err != nil {
		return nil, err
	}
	if strings.Contains(out, "not found") {
		return nil, fmt.Errorf("libraries are missing: %s", out)
	}
	var paths []string
	for _, match := range libraryPath.FindAllStringSubmatch(out, -1) {
		paths = append(paths, match[1])
	}
	return paths, nil
}
