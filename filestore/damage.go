package filestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"eboot"
)

// Bounds of quarantine/: the newest blobs are kept, for people to look at.
const (
	quarantineFiles = 16
	quarantineBytes = 1 << 30
)

// quarantineTime begins the names in quarantine/, so that they sort by age.
const quarantineTime = "20060102T150405.000000000Z"

type damage struct {
	eboot.DamagedBlob
	missing bool // the file is gone: there is nothing in quarantine
}

// absent returns the error for a blob that is not in the index.
func (s *Store) absent(d eboot.Digest) error {
	s.mu.RLock()
	x, known := s.damaged[d]
	s.mu.RUnlock()
	if known && !x.missing {
		return fmt.Errorf("blob %s: %s: %w", d, x.Reason, eboot.ErrDamaged)
	}
	return fmt.Errorf("blob %s: %w", d, eboot.ErrNotFound)
}

// isDamage reports whether err, from opening or reading a blob's file, says that
// the disk cannot give the content back. Other errors (too many open files, no
// memory) pass.
func isDamage(err error) bool {
	for _, errno := range []unix.Errno{unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ELOOP, unix.EISDIR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// setAside takes a damaged blob out of service and returns the error to answer
// with. bad is the file that was found damaged: when another one stands in its
// place by now, somebody healed the blob and it is left alone.
func (s *Store) setAside(d eboot.Digest, bad os.FileInfo, reason string) error {
	err := fmt.Errorf("blob %s: %s: %w", d, reason, eboot.ErrDamaged)
	s.files.Lock()
	now, statErr := os.Lstat(s.path(d))
	if statErr != nil || !os.SameFile(now, bad) || !s.forget(d, &damage{DamagedBlob: eboot.DamagedBlob{Digest: d, Found: time.Now().UTC(), Reason: reason}}) {
		s.files.Unlock()
		return err
	}
	name := time.Now().UTC().Format(quarantineTime) + "-" + d.String()
	moveErr := os.Rename(s.path(d), filepath.Join(s.quarantineDir(), name))
	s.trimQuarantine()
	s.files.Unlock()
	if moveErr != nil {
		s.log.Error("damaged blob cannot be moved to quarantine", "digest", d, "error", moveErr)
	}
	s.report(d)
	return err
}

// gone is called when a blob's file could not be opened because it is not there.
func (s *Store) gone(d eboot.Digest) error {
	s.files.Lock()
	_, err := os.Lstat(s.path(d))
	lost := errors.Is(err, os.ErrNotExist) &&
		s.forget(d, &damage{missing: true, DamagedBlob: eboot.DamagedBlob{Digest: d, Found: time.Now().UTC(), Reason: "missing from disk"}})
	s.files.Unlock()
	if lost {
		s.report(d)
	}
	return fmt.Errorf("blob %s: %w", d, eboot.ErrNotFound)
}

// forget takes d out of the index and the cache, notes why (nil: it was
// collected), and reports whether it was there.
func (s *Store) forget(d eboot.Digest, why *damage) bool {
	s.mu.Lock()
	size, ok := s.sizes[d]
	if ok {
		delete(s.sizes, d)
		delete(s.verified, d)
		s.bytes -= size
		if why != nil {
			s.damaged[d] = *why
		}
	}
	s.mu.Unlock()
	s.cache.Remove(d)
	return ok
}

func (s *Store) report(d eboot.Digest) {
	s.mu.RLock()
	x, ok := s.damaged[d]
	s.mu.RUnlock()
	if !ok {
		return // healed meanwhile
	}
	s.log.Error("blob taken out of service", "digest", d, "reason", x.Reason)
	if s.opts.OnDamage != nil {
		s.opts.OnDamage(x.DamagedBlob)
	}
}

// trimQuarantine removes the oldest files beyond the bounds. An error leaves a
// file more than intended, and the next damage tries again.
func (s *Store) trimQuarantine() {
	entries, err := os.ReadDir(s.quarantineDir())
	if err != nil {
		return
	}
	kept, total := 0, int64(0)
	for _, e := range slices.Backward(entries) {
		info, err := e.Info()
		if err != nil {
			continue
		}
		kept++
		total += info.Size()
		if kept > quarantineFiles || total > quarantineBytes {
			os.Remove(filepath.Join(s.quarantineDir(), e.Name()))
		}
	}
}
