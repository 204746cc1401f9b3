package filestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"eboot"
)

// Ingest is a publish in progress. What it names is safe from Collect until
// Close. Several goroutines may call Put at once.
type Ingest struct {
	store     *Store
	protected map[eboot.Digest]struct{} // guarded by store.protection.mu

	committing sync.Mutex // held by Commit; Close waits for it

	mu       sync.Mutex
	pending  map[eboot.Digest]pending // written and verified, not committed
	fs       *os.File                 // for syncfs: it reports errors since this was opened, each once
	inCommit bool                     // whoever else called syncfs now would take Commit's errors
	failures int                      // Commits that failed
	closed   bool

	unchecked int64         // bytes that may be Put before free space is asked for
	unwritten int64         // bytes Put since the disk was last set to work
	writing   chan struct{} // closed when the disk has done that; nil: it has
	failed    error         // of that, until a Commit returns it
}

type pending struct {
	path     string // of the unfinished file
	size     int64
	began    time.Time // when its Put did
	failures int       // Ingest.failures then
}

// Ingest begins a publish. The caller must Close it.
func (s *Store) Ingest() *Ingest {
	i := &Ingest{store: s, protected: make(map[eboot.Digest]struct{}), pending: make(map[eboot.Digest]pending)}
	s.protection.open(i)
	return i
}

// Protect keeps digests, whether the store has them or not, safe from Collect
// until Close. What Has answers about them afterwards stays true, damage aside.
func (i *Ingest) Protect(digests iter.Seq[eboot.Digest]) {
	for batch := range chunks(digests, 1024) { // digests runs without our lock
		i.store.protection.add(i, batch...)
	}
}

func chunks(digests iter.Seq[eboot.Digest], n int) iter.Seq[[]eboot.Digest] {
	return func(yield func([]eboot.Digest) bool) {
		batch := make([]eboot.Digest, 0, n)
		for d := range digests {
			if batch = append(batch, d); len(batch) == n {
				if !yield(batch) {
					return
				}
				batch = batch[:0]
			}
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// Put writes a blob of size bytes from r to a temporary file and verifies it on
// the way, and reads one byte past size to see that r ends there; Commit makes it
// visible. It protects d, too. When the store or this Ingest has the blob already,
// size bytes of r are read and dropped instead, and not compared. Errors:
// eboot.ErrInvalid when the content has another size or digest;
// eboot.ErrUnavailable when the disk is full or would be beyond Options.MinFree;
// that of ctx; that of r; os.ErrClosed after Close; another one when a Commit failed
// meanwhile. Nothing is left behind by a Put that failed.
func (i *Ingest) Put(ctx context.Context, d eboot.Digest, size int64, r io.Reader) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put blob %s: %w", d, err)
	}
	s := i.store
	s.protection.add(i, d)
	if i.has(d) || s.present(d) {
		if err := i.skip(ctx, size, r); err != nil {
			return fmt.Errorf("put blob %s: %w", d, err)
		}
		return nil
	}
	p, err := i.reserve(d, size)
	if err != nil {
		return fmt.Errorf("put blob %s: %w", d, err)
	}
	if err := s.write(ctx, p.path, d, size, r); err != nil {
		return fmt.Errorf("put blob %s: %w", d, errors.Join(err, removeIfThere(p.path)))
	}
	if err := i.add(d, p); err != nil {
		return fmt.Errorf("put blob %s: %w", d, err)
	}
	i.writeBack(size)
	return nil
}

// writeBackEach is how much is Put before the disk is set to work on it.
const writeBackEach = 16 << 20

// writeBack lets the disk begin with what was Put beside the Puts that follow, so
// that Commit has less to wait for. During a Commit it does not: the kernel tells
// each error once, to whichever call comes first.
func (i *Ingest) writeBack(size int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.unwritten += size; i.unwritten < writeBackEach || i.writing != nil || i.inCommit || i.closed {
		return
	}
	done := make(chan struct{})
	i.unwritten, i.writing = 0, done
	fs := i.fs
	go func() {
		defer close(done)
		err := syncfs(fs)
		i.mu.Lock()
		defer i.mu.Unlock()
		// Commit does not hear of it from the kernel any more.
		i.writing, i.failed = nil, errors.Join(i.failed, err)
	}()
}

// settle waits until the disk has done what it was set to.
func (i *Ingest) settle() {
	i.mu.Lock()
	writing := i.writing
	i.mu.Unlock()
	if writing != nil {
		<-writing
	}
}

// skip reads past the content of a blob that is there already.
func (i *Ingest) skip(ctx context.Context, size int64, r io.Reader) error {
	i.mu.Lock()
	closed := i.closed
	i.mu.Unlock()
	if closed {
		return fmt.Errorf("ingest: %w", os.ErrClosed)
	}
	buf := i.store.buffer()
	defer buffers.Put(buf)
	for left := size; left > 0; {
		n, err := fill(r, (*buf)[:min(left, chunk)])
		left -= int64(n)
		switch {
		case left == 0:
			return nil
		case err == io.EOF:
			return fmt.Errorf("content ends after %d of %d bytes: %w", size-left, size, eboot.ErrInvalid)
		case err != nil:
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Keep drops what was Put and not committed that wanted does not name.
func (i *Ingest) Keep(wanted func(eboot.Digest) bool) error {
	i.mu.Lock()
	var unwanted []string
	for d, p := range i.pending {
		if !wanted(d) {
			unwanted = append(unwanted, p.path)
			delete(i.pending, d)
		}
	}
	i.mu.Unlock()
	var err error
	for _, path := range unwanted {
		err = errors.Join(err, removeIfThere(path))
	}
	return err
}

func (i *Ingest) has(d eboot.Digest) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.pending[d]
	return ok
}

// present reports whether the store has d, and looks at the disk as well: a
// publish is the moment when a blob that vanished can be healed.
func (s *Store) present(d eboot.Digest) bool {
	size, ok := s.size(d)
	if !ok {
		return false
	}
	info, err := os.Lstat(s.path(d))
	switch {
	case errors.Is(err, os.ErrNotExist):
		_ = s.gone(d)
		return false
	case err == nil && info.Size() != size:
		_ = s.setAside(d, info, fmt.Sprintf("%d bytes on disk instead of %d", info.Size(), size))
		return false
	}
	return true
}

// checkEach is how much is Put before the free space is asked for again.
const checkEach = 1 << 20

// reserve begins a blob: it opens the file that syncfs needs before anything is
// written, and refuses what would leave too little space (rule R12).
func (i *Ingest) reserve(d eboot.Digest, size int64) (pending, error) {
	s := i.store
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return pending{}, fmt.Errorf("ingest: %w", os.ErrClosed)
	}
	if i.fs == nil {
		f, err := os.Open(s.blobDir())
		if err != nil {
			return pending{}, err
		}
		i.fs = f
	}
	p := pending{path: s.tmpPath(d), size: size, began: time.Now(), failures: i.failures}
	if i.unchecked -= size; s.opts.MinFree < 0 || i.unchecked >= 0 {
		return p, nil
	}
	free, err := s.free()
	if err != nil {
		return pending{}, err
	}
	if free-size < s.opts.MinFree {
		return pending{}, fmt.Errorf("%d MiB free on disk, %d MiB must stay free: %w: %w", free>>20, s.opts.MinFree>>20, eboot.ErrUnavailable, unix.ENOSPC)
	}
	i.unchecked = checkEach
	return p, nil
}

// add takes over the temporary file of a Put.
func (i *Ingest) add(d eboot.Digest, p pending) error {
	i.mu.Lock()
	_, twice := i.pending[d] // put by another goroutine at the same time
	var err error
	switch {
	case i.closed:
		err = fmt.Errorf("ingest: %w", os.ErrClosed)
	case twice:
	case p.failures != i.failures:
		err = errors.New("a commit failed meanwhile, perhaps because of this blob")
	default:
		i.pending[d] = p
		i.mu.Unlock()
		return nil
	}
	i.mu.Unlock()
	return errors.Join(err, os.Remove(p.path))
}

// write writes exactly size bytes of r, whose digest must be d, to a new file.
func (s *Store) write(ctx context.Context, path string, d eboot.Digest, size int64, r io.Reader) (err error) {
	// O_NONBLOCK means nothing to a regular file, and saves package os from asking
	// four times in which mode it is.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return diskFull(err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = diskFull(closeErr)
		}
	}()
	out := &blobWriter{file: f, hash: sha256.New(), size: size, left: size}
	if whole, ok := r.(*bytes.Reader); ok {
		_, err = whole.WriteTo(out) // no copy
	} else {
		err = s.copy(ctx, out, r)
	}
	switch {
	case err != nil:
		return err
	case out.left > 0:
		return fmt.Errorf("content ends after %d of %d bytes: %w", size-out.left, size, eboot.ErrInvalid)
	case !bytes.Equal(out.hash.Sum(nil), d[:]):
		return fmt.Errorf("content has another digest: %w", eboot.ErrInvalid)
	}
	return nil
}

// copy writes what r has to out, and reads no further than one byte more than is
// due: that shows content that is too long.
func (s *Store) copy(ctx context.Context, out *blobWriter, r io.Reader) error {
	buf := s.buffer()
	defer buffers.Put(buf)
	for {
		n, readErr := fill(r, (*buf)[:min(out.left+1, chunk)])
		if _, err := out.Write((*buf)[:n]); err != nil {
			return err
		}
		switch {
		case readErr == io.EOF:
			return nil
		case readErr != nil:
			return readErr
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// blobWriter hashes what it writes.
type blobWriter struct {
	file       *os.File
	hash       hash.Hash
	size, left int64
}

func (w *blobWriter) Write(p []byte) (int, error) {
	switch {
	case int64(len(p)) > w.left:
		return 0, fmt.Errorf("content is longer than %d bytes: %w", w.size, eboot.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	}
	w.hash.Write(p)
	w.left -= int64(len(p))
	n, err := w.file.Write(p)
	return n, diskFull(err)
}

// fill reads until buf is full or r fails. Unlike io.ReadFull it leaves the
// error as it is: an io.ErrUnexpectedEOF of r is a cut connection, not a short blob.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf) && err == nil; idle++ {
		var m int
		if m, err = r.Read(buf[n:]); m > 0 {
			n, idle = n+m, 0
		} else if err == nil && idle > 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, err
}

func diskFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("disk full: %w: %w", eboot.ErrUnavailable, err)
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close drops what was not committed and lifts the protection. It waits for a
// Commit in progress. A second Close does nothing.
func (i *Ingest) Close() error {
	i.committing.Lock()
	defer i.committing.Unlock()
	i.store.protection.close(i)
	i.mu.Lock()
	batch, fs := i.pending, i.fs
	i.pending, i.fs, i.closed = nil, nil, true
	i.mu.Unlock()
	i.settle()
	var err error
	for _, p := range batch {
		err = errors.Join(err, removeIfThere(p.path))
	}
	if fs != nil {
		err = errors.Join(err, fs.Close())
	}
	return err
}
