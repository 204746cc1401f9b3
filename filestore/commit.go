package filestore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"eboot"
	"eboot/internal/fsutil"
)

// syncEach is the number of files up to which Commit syncs each by itself.
// Beyond it one syncfs(2) is cheaper: it writes everything in one pass with one
// journal commit, though it also waits for what others wrote to the file system.
const syncEach = 32

// syncEachWithin is the age up to which a file is synced by itself. An older one the
// kernel may have written on its own, failed, and forgotten with the inode: then
// fsync succeeds, and only syncfs on a file that has been open since knows.
const syncEachWithin = 5 * time.Second

// Commit makes what was Put since the last Commit durable and visible: all files
// are synced, then all renamed, then each directory is synced once. After nil,
// Has is true for all of it and it survives a power cut. After an error nothing that
// was Put before Commit returned is visible, and all of it must be Put again: an
// fsync that failed cannot be repeated, the kernel has dropped the pages. With
// nothing to commit it still returns the error of a disk that failed since.
func (i *Ingest) Commit() error {
	i.committing.Lock()
	defer i.committing.Unlock()
	i.mu.Lock()
	if i.closed {
		i.mu.Unlock()
		return fmt.Errorf("commit: ingest: %w", os.ErrClosed)
	}
	i.inCommit = true
	i.mu.Unlock()
	i.settle()
	i.mu.Lock()
	batch, err := i.pending, i.failed
	i.pending, i.failed = make(map[eboot.Digest]pending), nil
	fs := i.fs
	i.mu.Unlock()
	if err == nil && len(batch) > 0 {
		err = i.store.commit(fs, batch)
	}
	if late := i.leaveCommit(err != nil); err != nil {
		for _, lost := range []map[eboot.Digest]pending{batch, late} {
			for _, p := range lost {
				err = errors.Join(err, removeIfThere(p.path))
			}
		}
		return fmt.Errorf("commit %d blobs: %w", len(batch), err)
	}
	return nil
}

// leaveCommit ends a Commit. When it failed, the error may be about what was Put, or
// partly Put, meanwhile: the former is returned, for removal, add refuses the latter.
func (i *Ingest) leaveCommit(failed bool) (late map[eboot.Digest]pending) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.inCommit = false
	if failed {
		late, i.pending = i.pending, make(map[eboot.Digest]pending)
		i.failures++
	}
	return late
}

func (s *Store) commit(fs *os.File, batch map[eboot.Digest]pending) error {
	// One at a time, so that no other Commit puts a blob where this one may yet
	// have to take its own away again.
	s.committing.Lock()
	defer s.committing.Unlock()
	if err := syncFiles(fs, batch); err != nil {
		return err
	}
	renamed, err := s.rename(batch)
	if err == nil {
		err = s.syncShards(fs, renamed)
	}
	if err != nil {
		s.files.Lock()
		for _, d := range renamed {
			err = errors.Join(err, removeIfThere(s.path(d)))
		}
		s.files.Unlock()
		return err
	}
	stamps := make(map[eboot.Digest]stamp)
	for _, d := range renamed {
		if batch[d].size > s.opts.CacheFileMax {
			if info, err := os.Lstat(s.path(d)); err == nil {
				stamps[d] = stampOf(info)
			}
		}
	}
	s.mu.Lock()
	for _, d := range renamed {
		s.sizes[d] = batch[d].size
		s.bytes += batch[d].size
		delete(s.damaged, d)
	}
	maps.Copy(s.verified, stamps)
	s.mu.Unlock()
	return nil
}

func syncFiles(fs *os.File, batch map[eboot.Digest]pending) error {
	if len(batch) > syncEach {
		return syncfs(fs)
	}
	for _, p := range batch {
		if time.Since(p.began) > syncEachWithin {
			return syncfs(fs)
		}
	}
	for _, p := range batch {
		f, err := os.OpenFile(p.path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// syncfs reports write errors since fs was opened (Linux 5.8).
func syncfs(fs *os.File) error {
	if err := unix.Syncfs(int(fs.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	return nil
}

// rename moves the files of batch into place and returns the digests moved. A
// blob that came meanwhile by another Ingest is left as it is.
func (s *Store) rename(batch map[eboot.Digest]pending) (renamed []eboot.Digest, err error) {
	order := slices.SortedFunc(maps.Keys(batch), func(a, b eboot.Digest) int { return bytes.Compare(a[:], b[:]) })
	s.files.Lock()
	defer s.files.Unlock()
	if len(order) < renameAtOnce {
		return s.renameEach(order, batch)
	}
	parts := slices.Collect(slices.Chunk(order, len(order)/renamers+1))
	moved := make([][]eboot.Digest, len(parts))
	var group errgroup.Group
	for i, part := range parts {
		group.Go(func() (err error) {
			moved[i], err = s.renameEach(part, batch)
			return err
		})
	}
	err = group.Wait()
	return slices.Concat(moved...), err
}

// renameAtOnce files are renamed by renamers goroutines.
const (
	renamers     = 4
	renameAtOnce = 256
)

func (s *Store) renameEach(part []eboot.Digest, batch map[eboot.Digest]pending) (renamed []eboot.Digest, err error) {
	for _, d := range part {
		if s.Has(d) {
			if err := removeIfThere(batch[d].path); err != nil {
				return renamed, err
			}
			continue
		}
		if err := os.Rename(batch[d].path, s.path(d)); err != nil {
			return renamed, diskFull(err)
		}
		renamed = append(renamed, d)
	}
	return renamed, nil
}

// syncShards makes the names of the blobs, which are sorted, survive a power cut.
func (s *Store) syncShards(fs *os.File, sorted []eboot.Digest) error {
	var shards []byte
	for _, d := range sorted {
		if n := len(shards); n == 0 || shards[n-1] != d[0] {
			shards = append(shards, d[0])
		}
	}
	if len(shards) > syncEach {
		return syncfs(fs)
	}
	for _, b := range shards {
		if err := fsutil.SyncDir(s.shardDir(b)); err != nil {
			return err
		}
	}
	return nil
}
