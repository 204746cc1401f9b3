// Package fsutil changes files so that a crash leaves the old content or the
// new one: temporary file, fsync, rename, fsync of the directory. It reads files that
// somebody wrote by hand with a bound. Nothing here starts a goroutine.
package fsutil

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"eboot"
)

// ReadSmall returns the content of the file at path, which has at most limit bytes. Errors are
// those of package os, and eboot.ErrTooLarge when there are more, of which limit+1 are read: the
// path may name a device without an end.
func ReadSmall(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(content) > limit {
		return nil, fmt.Errorf("%s: longer than %d bytes: %w", path, limit, eboot.ErrTooLarge)
	}
	return content, nil
}

// WriteAtomic replaces the file at path by what write produces. The temporary
// file stands beside it, named ".NAME.tmp-*"; it is removed when anything fails.
// When WriteAtomic returns nil the new content survives a power cut.
func WriteAtomic(path string, mode os.FileMode, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return f.Close()
}

// RemoveTemporary deletes what interrupted WriteAtomic calls for files in dir left behind.
func RemoveTemporary(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, ".*.tmp-*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// SyncDir makes the names in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
