package filestore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"eboot"
)

// Content is the content of one blob.
type Content struct {
	Data []byte        // the whole content when File is nil; shared, never to be modified
	File io.ReadCloser // else Size bytes, for the caller to close; that of a blob is an *os.File at offset 0, read-only
	Size int64         // bytes
}

// cacheOverhead is what a cached blob costs beside its bytes, about.
const cacheOverhead = 160

// Content returns the verified content of the blob, whose size the caller knows
// from its manifest. Errors: eboot.ErrNotFound, also when the file is gone;
// eboot.ErrDamaged; eboot.ErrInvalid when the blob is whole and has another size;
// any other error passes (too many open files) and says nothing about the blob.
func (s *Store) Content(d eboot.Digest, size int64) (Content, error) {
	if size <= s.opts.CacheFileMax {
		if data, ok := s.cache.Get(d); ok && int64(len(data)) == size {
			return Content{Data: data, Size: size}, nil
		}
	}
	stored, ok := s.size(d)
	if !ok {
		return Content{}, s.absent(d)
	}
	if stored != size {
		return Content{}, s.wrongSize(d, stored, size)
	}
	if size > s.opts.CacheFileMax {
		f, err := s.openVerified(d, size)
		if err != nil {
			return Content{}, err
		}
		return Content{File: f, Size: size}, nil
	}
	data, err := s.cache.Load(d, func() ([]byte, int64, error) {
		data, err := s.readVerified(d, size)
		return data, size + cacheOverhead, err
	})
	if err != nil {
		return Content{}, err
	}
	return Content{Data: data, Size: size}, nil
}

// Blob returns the verified content of a blob whose size the caller does not know,
// past the cache, which is for slaves: it is how servers copy blobs from each
// other. Errors are those of Content.
func (s *Store) Blob(d eboot.Digest) (Content, error) {
	size, ok := s.size(d)
	if !ok {
		return Content{}, s.absent(d)
	}
	if size <= s.opts.CacheFileMax {
		data, err := s.readVerified(d, size)
		return Content{Data: data, Size: size}, err
	}
	f, err := s.openVerified(d, size)
	if err != nil {
		return Content{}, err
	}
	return Content{File: f, Size: size}, nil
}

// Read returns the whole content of the blob, verified and past the cache. It is
// for manifests: more than eboot.MaxManifestSize bytes are eboot.ErrTooLarge. Other
// errors are those of Content.
func (s *Store) Read(d eboot.Digest) ([]byte, error) {
	size, ok := s.size(d)
	if !ok {
		return nil, s.absent(d)
	}
	if size > eboot.MaxManifestSize {
		return nil, fmt.Errorf("read blob %s: %d bytes, at most %d: %w", d, size, eboot.MaxManifestSize, eboot.ErrTooLarge)
	}
	return s.readVerified(d, size)
}

// wrongSize tells a cut-off blob, which a start indexes like any other, from a
// caller that is wrong.
func (s *Store) wrongSize(d eboot.Digest, stored, asked int64) error {
	if err := s.verifyOnce(d, stored); err != nil {
		return err
	}
	return fmt.Errorf("blob %s: has %d bytes, not %d: %w", d, stored, asked, eboot.ErrInvalid)
}

// open opens the file of a blob that the index has.
func (s *Store) open(d eboot.Digest, flags int) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(s.path(d), os.O_RDONLY|syscall.O_NOFOLLOW|flags, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil, s.gone(d)
	case err != nil && isDamage(err):
		bad, statErr := os.Lstat(s.path(d))
		if statErr != nil {
			return nil, nil, fmt.Errorf("open blob: %w", err)
		}
		return nil, nil, s.setAside(d, bad, err.Error())
	case err != nil:
		return nil, nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return f, info, nil
}

// readVerified reads a whole blob. The file must have exactly size bytes.
func (s *Store) readVerified(d eboot.Digest, size int64) ([]byte, error) {
	f, info, err := s.open(d, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() != size {
		return nil, s.setAside(d, info, fmt.Sprintf("%d bytes on disk instead of %d", info.Size(), size))
	}
	data := make([]byte, size)
	switch _, err := io.ReadFull(f, data); {
	case err != nil && (isDamage(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
		return nil, s.setAside(d, info, err.Error())
	case err != nil:
		return nil, fmt.Errorf("read blob: %w", err)
	}
	if sha256.Sum256(data) != d {
		return nil, s.setAside(d, info, "content does not match its digest")
	}
	return data, nil
}

// stamp is how a file looked when it was hashed. Any write, truncation, rename or
// replacement changes it, within the resolution of the file system's clock.
type stamp struct {
	size, mtime, ctime int64 // bytes, nanoseconds, nanoseconds
	inode              uint64
}

func stampOf(info os.FileInfo) stamp {
	st := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.ctime, st.inode = sys.Ctim.Nano(), sys.Ino
	}
	return st
}

// openVerified opens a large blob that was hashed since it last changed, hashing
// it first when it was not.
func (s *Store) openVerified(d eboot.Digest, size int64) (*os.File, error) {
	for range 3 {
		f, info, err := s.open(d, 0)
		if err != nil {
			return nil, err
		}
		s.mu.RLock()
		checked, ok := s.verified[d]
		s.mu.RUnlock()
		if ok && checked == stampOf(info) {
			return f, nil
		}
		if err := errors.Join(f.Close(), s.verifyOnce(d, size)); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("open blob %s: keeps changing on disk: %w", d, eboot.ErrUnavailable)
}

// verifyOnce hashes the blob; callers that come while that runs share the result.
func (s *Store) verifyOnce(d eboot.Digest, size int64) error {
	_, err, _ := s.verifying.Do(string(d[:]), func() (any, error) {
		f, info, err := s.open(d, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		buf := s.buffer()
		defer buffers.Put(buf)
		return nil, s.check(d, size, f, info, *buf, nil)
	})
	return err
}
