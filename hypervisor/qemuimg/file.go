package qemuimg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/durable"
	"vpssnapd/hypervisor/rights"
)

// Stat reads a file's identity and allocation.
func (i *Images) Stat(ctx context.Context, path string) (hypervisor.File, error) {
	what := fmt.Sprintf("cannot stat %q", path)
	if err := checkPath(path); err != nil {
		return hypervisor.File{}, fmt.Errorf("%s: %w", what, err)
	}
	file, err := look(ctx, &i.storage, path, func() (hypervisor.File, error) { return identify(path) })
	if err != nil {
		return hypervisor.File{}, fileError(what, err)
	}
	return file, nil
}

func identify(path string) (hypervisor.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return hypervisor.File{}, err
	}
	r, err := rights.Of(path)
	return hypervisor.File{
		Inode:     st.Ino,
		Size:      st.Size,
		Allocated: st.Blocks * 512,
		Modified:  time.Unix(st.Mtim.Unix()).UTC(),
		Changed:   time.Unix(st.Ctim.Unix()).UTC(),
		Mode:      fs.FileMode(st.Mode).Perm(),
		UID:       st.Uid,
		GID:       st.Gid,
		ACL:       r.ACL,
	}, err
}

// Files lists the regular files of a directory. What goes away meanwhile is left out.
func (i *Images) Files(ctx context.Context, dir string) ([]hypervisor.NamedFile, error) {
	what := fmt.Sprintf("cannot list %q", dir)
	if err := checkPath(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	files, err := lookAt(ctx, &i.storage, dir, func() ([]hypervisor.NamedFile, error) { return listRegular(dir) })
	if err != nil {
		return nil, fileError(what, err)
	}
	return files, nil
}

// listRegular reads the regular files of dir; a file that goes away meanwhile is left out.
func listRegular(dir string) ([]hypervisor.NamedFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []hypervisor.NamedFile
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, e.Name()), &st)
		switch {
		case err == nil:
			files = append(files, hypervisor.NamedFile{Name: e.Name(), Inode: st.Ino})
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return files, nil
}

// Space reads the file system that holds dir.
func (i *Images) Space(ctx context.Context, dir string) (hypervisor.Space, error) {
	what := fmt.Sprintf("cannot read the space left in %q", dir)
	if err := checkPath(dir); err != nil {
		return hypervisor.Space{}, fmt.Errorf("%s: %w", what, err)
	}
	space, err := lookAt(ctx, &i.storage, dir, func() (hypervisor.Space, error) { return measure(dir) })
	if err != nil {
		return hypervisor.Space{}, fileError(what, err)
	}
	return space, nil
}

// measure reads how large and how full the file system of dir is, in bytes. Free is what
// those without root's reserve get: QEMU is one of them.
func measure(dir string) (hypervisor.Space, error) {
	var st unix.Stat_t
	var fsys unix.Statfs_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(dir, &fsys)); err != nil {
		return hypervisor.Space{}, err
	}
	return hypervisor.Space{
		Total:  int64(fsys.Blocks) * fsys.Frsize,
		Free:   int64(fsys.Bavail) * fsys.Frsize,
		Device: st.Dev,
	}, nil
}

// Exchange swaps two files of one directory in one atomic act.
func (i *Images) Exchange(ctx context.Context, a, b string) error {
	what := fmt.Sprintf("cannot exchange %q and %q", a, b)
	if err := errors.Join(checkPlain(a), checkPlain(b)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if filepath.Dir(a) != filepath.Dir(b) {
		return fmt.Errorf("%s: %w: they lie in different directories", what, hypervisor.ErrUnsupported)
	}
	return i.act(ctx, what, []string{a, b}, func() error {
		if err := exchange(a, b); err != nil {
			return err
		}
		return syncEntry(a)
	})
}

// renameat2 is the system call; tests give it the answers of other file systems.
var renameat2 = unix.Renameat2

// exchange swaps two names. NFS, FUSE and ZFS before 2.2 know no such act.
func exchange(a, b string) error {
	err := renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("%w: the file system cannot exchange two files in one act: %w", hypervisor.ErrUnsupported, err)
	}
	return err
}

// unmovable are the attributes of a file whose name cannot be given to another (lsattr).
const unmovable = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND

// TryExchange exchanges two files that it makes beside path. They belong to whom path
// belongs: in a directory with the sticky bit that decides who may rename them.
func (i *Images) TryExchange(ctx context.Context, path string) error {
	what := fmt.Sprintf("cannot exchange %q", path)
	if err := checkPath(path); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return i.act(ctx, what, []string{path}, func() error { return tryExchange(path) })
}

func tryExchange(path string) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return err
	}
	if st.Attributes&unmovable != 0 {
		return fmt.Errorf("%w: it is immutable (lsattr)", hypervisor.ErrDenied)
	}
	owner, err := rights.Of(path)
	if err != nil {
		return err
	}
	return exchangeProbes(path, owner)
}

// exchangeProbes leaves nothing behind, also when it fails. The names are those of an earlier
// try that died within.
func exchangeProbes(path string, owner rights.Rights) (failure error) {
	dir, name := filepath.Split(path)
	sum := sha256.Sum256([]byte(name))
	stem := filepath.Join(dir, fmt.Sprintf(".vpssnap-probe-%x", sum[:6]))
	var made [2]fs.FileInfo
	for n := range made {
		probe := fmt.Sprintf("%s.%d", stem, n)
		if err := os.Remove(probe); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		file, err := createWith(probe, owner)
		if err != nil {
			return err
		}
		defer func() { failure = errors.Join(failure, os.Remove(probe)) }()
		made[n], err = file.Stat()
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	if err := exchange(stem+".0", stem+".1"); err != nil {
		return err
	}
	now, err := os.Lstat(stem + ".0")
	if err == nil && !os.SameFile(now, made[1]) {
		return fmt.Errorf("%w: the file system says that it has exchanged two files, and has not", hypervisor.ErrUnsupported)
	}
	return err
}

// act is a change that takes a moment where the file system is alive.
func (i *Images) act(ctx context.Context, what string, paths []string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	_, err := change(ctx, &i.storage, paths, func(context.Context) (struct{}, error) { return struct{}{}, f() })
	if err != nil {
		return fileError(what, err)
	}
	return nil
}

// Remove unlinks path if it is still the file with that inode. The directory is
// synced even when the file is gone: an earlier Remove may have died before that.
//
// The file's blocks are given back a little later. A file system that discards what
// it frees sends the disk one command for each piece, which took 1.3 s for an overlay
// that a guest had written here and there, and the kernel does it before unlink
// returns, unless somebody has the file open: so we have, and close it beside the
// work. Should this process end first, the kernel closes it then.
func (i *Images) Remove(ctx context.Context, path string, inode uint64) error {
	what := fmt.Sprintf("cannot remove %q", path)
	if err := checkPlain(path); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return i.act(ctx, what, []string{path}, func() error { return i.remove(path, inode) })
}

func (i *Images) remove(path string, inode uint64) error {
	held, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return syncEntry(path)
	case err != nil:
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(held, &st); err != nil {
		return errors.Join(err, unix.Close(held))
	}
	defer i.removals.close(held, st.Dev)
	if st.Ino != inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: inode %d instead of %d", hypervisor.ErrReplaced, st.Ino, inode)
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncEntry(path)
}

// Copy makes dst an exact copy of src. It is meant for small files (UEFI variables).
func (i *Images) Copy(ctx context.Context, src, dst string) (hypervisor.File, error) {
	what := fmt.Sprintf("cannot copy %q to %q", src, dst)
	if err := errors.Join(checkPlain(src), checkPlain(dst)); err != nil {
		return hypervisor.File{}, fmt.Errorf("%s: %w", what, err)
	}
	file, err := change(ctx, &i.storage, []string{src, dst}, func(ctx context.Context) (hypervisor.File, error) {
		if err := copyFile(ctx, src, dst); err != nil {
			return hypervisor.File{}, err
		}
		return i.Stat(ctx, dst)
	})
	if err != nil {
		return hypervisor.File{}, fileError(what, err)
	}
	return file, nil
}

func copyFile(ctx context.Context, src, dst string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	source, err := rights.Of(src)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", hypervisor.ErrUnsupported)
	}
	to, err := createWith(dst, source)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := fillCopy(ctx, from, to); err != nil {
		return errors.Join(err, discard(to))
	}
	return nil
}

// fillCopy copies the content and makes it durable before anybody may rely on it.
func fillCopy(ctx context.Context, from, to *os.File) error {
	if _, err := io.Copy(to, &contextReader{ctx: ctx, from: from}); err != nil {
		return err
	}
	if err := syncFile(to); err != nil {
		return err
	}
	return syncEntry(to.Name())
}

// contextReader reads until its context ends.
type contextReader struct {
	ctx  context.Context
	from io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.from.Read(p)
}

// createWith makes an empty file with rights. Until it has them only its maker can read it.
func createWith(path string, r rights.Rights) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := r.Give(file); err != nil {
		return nil, errors.Join(err, discard(file), file.Close())
	}
	return file, nil
}

// discard unlinks a file that was made here and failed, unless another has taken its name.
func discard(file *os.File) error {
	opened, err := file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(opened, named) {
		return fmt.Errorf("%w: %q", hypervisor.ErrReplaced, file.Name())
	}
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	return syncEntry(file.Name())
}

func syncFile(file *os.File) error {
	if err := file.Sync(); err != nil {
		return fileError(fmt.Sprintf("cannot sync %q", file.Name()), err)
	}
	return nil
}

// syncFileAndEntry makes a file's content and its directory entry durable.
func syncFileAndEntry(path string) error {
	if err := durable.Sync(path); err != nil {
		return fileError(fmt.Sprintf("cannot sync %q", path), err)
	}
	return syncEntry(path)
}

// syncEntry makes the name of path durable, or that it is gone.
func syncEntry(path string) error {
	if err := durable.SyncEntry(path); err != nil {
		return fileError(fmt.Sprintf("cannot sync the directory of %q", path), err)
	}
	return nil
}
