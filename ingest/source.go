package ingest

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"eboot"
)

// Options say how to read a source. The zero value is ready to use.
type Options struct {
	// Dereference follows the symlinks of a directory that point out of it, and
	// takes in what they point to. False: such a link is an error. Archives hold nothing
	// outside of them, so it does not help there.
	Dereference bool

	// ERTS are the versions that slaves may ask for. Empty: the version is found
	// in the tree.
	ERTS []string

	// Boot is the path of the boot script in the tree, with or without ".boot".
	// Empty: it is found.
	Boot string

	// Warn is told, in one sentence each, of what may surprise at boot time. Nil: the
	// warnings are added to Found.Notes.
	Warn func(string)

	// Progress is told how many bytes of how many Open has read: of files, or
	// of the archive as it is on disk. Calls come one at a time, now and then. Nil: nobody is told.
	Progress func(done, total int64)

	// Want and Put take blobs while Open reads a directory, before it is known whether
	// all of it can be taken in: each file that Want asks for is Put as soon as it is
	// hashed. They are called by several goroutines at once. An error of Put ends
	// Open. An archive is not offered, since cookies are told from other files only
	// at its end. Nil: nobody wants any.
	Want func(eboot.Digest) bool
	Put  func(d eboot.Digest, size int64, r io.Reader) error

	Limits
}

// Limits bound what a source may hold, variable tars included. Zero means the
// limit of the root package or the default named; none can be raised above the
// root package's.
type Limits struct {
	Entries   int   // names in the tree; zero: eboot.MaxTreeEntries
	FileSize  int64 // bytes of one file; zero: eboot.MaxFileSize
	TreeBytes int64 // bytes of all files; zero: eboot.MaxTreeBytes

	// Ratio bounds what an archive may unpack to: bytes out for each byte in,
	// once RatioAfter bytes are out. Zero: DefaultRatio and DefaultRatioAfter.
	Ratio      int64
	RatioAfter int64
}

// Defaults of Limits.
const (
	DefaultRatio      = 200
	DefaultRatioAfter = 64 << 20
)

func (l Limits) orDefault() Limits {
	lower := func(v, most int64) int64 {
		if v <= 0 || v > most {
			return most
		}
		return v
	}
	l.Entries = int(lower(int64(l.Entries), eboot.MaxTreeEntries))
	l.FileSize = lower(l.FileSize, eboot.MaxFileSize)
	l.TreeBytes = lower(l.TreeBytes, eboot.MaxTreeBytes)
	if l.Ratio <= 0 {
		l.Ratio = DefaultRatio
	}
	if l.RatioAfter <= 0 {
		l.RatioAfter = DefaultRatioAfter
	}
	return l
}

// streamBytes bounds an unpacked archive: content, and per entry a generous
// share of headers and padding.
func (l Limits) streamBytes() int64 {
	const perEntry = 16 << 10
	return l.TreeBytes + min(int64(l.Entries)*perEntry, math.MaxInt64-l.TreeBytes) + 1<<20
}

// Source is an opened directory or archive.
type Source struct {
	manifest *eboot.Manifest
	times    []int64
	found    Found
	origin   origin
}

// origin reads the content of a source a second time.
type origin interface {
	// deliver hands out the wanted blobs. eboot.ErrConflict: the content is not what Open saw.
	deliver(ctx context.Context, d *delivery) error
	Close() error
}

// Open reads and hashes what stands at path. It is to be closed.
//
// Errors: eboot.ErrInvalid and eboot.ErrTooLarge name the entry or say what
// was looked for and which flag helps; eboot.ErrConflict: a file changed while it
// was read; else what the operating system said, with the path.
func Open(ctx context.Context, path string, opts Options) (*Source, error) {
	opts.Limits = opts.orDefault()
	for _, v := range opts.ERTS {
		if err := eboot.CheckERTS(v); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var s *Source
	rep := &report{warning: opts.Warn}
	switch {
	case info.IsDir():
		s, err = openDirectory(ctx, path, opts, rep)
	case info.Mode().IsRegular():
		s, err = openArchiveFile(ctx, path, opts, rep)
	default:
		err = fmt.Errorf("is neither a directory nor a file: %w", eboot.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func openArchiveFile(ctx context.Context, path string, opts Options, rep *report) (*Source, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	s, err := openArchive(ctx, f, opts, rep)
	if err != nil {
		_ = f.Close() // read only: nothing is lost
		return nil, err
	}
	return s, nil
}

// newSource finishes a tree whose files are hashed.
func newSource(t *tree, origin origin, isArchive bool, opts Options, rep *report) (*Source, error) {
	r := &release{tree: t, isArchive: isArchive, opts: opts, report: rep}
	if err := r.find(); err != nil {
		return nil, err
	}
	s := &Source{origin: origin}
	s.manifest, s.times = t.manifest()
	if err := s.manifest.Check(); err != nil {
		return nil, err
	}
	s.found = r.found()
	s.found.Files, s.found.Bytes = s.manifest.Totals()
	return s, nil
}

// report collects what people are told.
type report struct {
	notes    []string
	warning  func(string)
	warnings int
}

func (r *report) note(text string) { r.notes = append(r.notes, text) }

// maxWarnings bounds what a tree of bad links can print.
const maxWarnings = 50

func (r *report) warn(text string) {
	switch r.warnings++; {
	case r.warnings > maxWarnings:
		return
	case r.warnings == maxWarnings:
		text = "further warnings are not shown"
	}
	if r.warning == nil {
		r.note(text)
		return
	}
	r.warning(text)
}

// Manifest returns the tree. It is not to be modified.
func (s *Source) Manifest() *eboot.Manifest { return s.manifest }

// Times returns the modification times, unix seconds, in the order of the
// manifest's entries. It is not to be modified.
func (s *Source) Times() []int64 { return s.times }

// Found returns what the source turned out to be.
func (s *Source) Found() Found { return s.found }

// Blobs reads the source again and calls put once for each distinct blob that
// want asks for; want is asked once for each, before the first put. Calls come
// one at a time, in no order that means anything. put need not read r to its
// end; r yields size bytes and ends with an error when they are not the content of d.
//
// Errors: what put returned; eboot.ErrConflict, naming the file, when its
// content is not what Open saw.
func (s *Source) Blobs(ctx context.Context, want func(eboot.Digest) bool, put func(d eboot.Digest, size int64, r io.Reader) error) error {
	d := &delivery{wanted: map[eboot.Digest]bool{}, put: put}
	asked := map[eboot.Digest]bool{}
	for i := range s.manifest.Entries {
		e := &s.manifest.Entries[i]
		if e.Kind != eboot.KindFile || asked[e.Digest] {
			continue
		}
		asked[e.Digest] = true
		if want(e.Digest) {
			d.wanted[e.Digest] = true
		}
	}
	if d.done() {
		return nil
	}
	if err := s.origin.deliver(ctx, d); err != nil {
		return err
	}
	if !d.done() {
		return fmt.Errorf("read again: %d files are no longer there: %w", len(d.wanted), eboot.ErrConflict)
	}
	return nil
}

// Close releases the files that s holds open. The Manifest stays usable.
func (s *Source) Close() error { return s.origin.Close() }
