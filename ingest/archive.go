package ingest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"eboot"
)

// scan reads a tar archive into a tree, and remembers its files in the order
// in which they stand there, so that a second pass finds them again.
type scan struct {
	tree    *tree
	size    int64 // of the archive as it is on disk
	files   []scannedFile
	headers int
	content int64   // bytes of the files so far
	varTars *budget // of all variable tars together; nil in one of them
	hasher  *hasher
}

type scannedFile struct {
	name string // in the archive
	node *node
}

// archive is the origin of what stands in one archive file.
type archive struct {
	file   io.ReadSeeker
	closer io.Closer
	scan   *scan
	limits Limits
}

var _ origin = (*archive)(nil)

// openArchive reads the archive in file. The Source owns
// file when no error is returned.
func openArchive(ctx context.Context, file archiveFile, opts Options, rep *report) (*Source, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	s := &scan{
		tree:    newTree(&budget{limits: opts.Limits}),
		size:    size,
		varTars: &budget{limits: opts.Limits},
		hasher:  newHasher(&keeper{}, opts.Boot),
	}
	bytesRead := newProgress(opts.Progress)
	bytesRead.expect(size)
	u, err := newUnpacker(ctx, file, opts.Limits, bytesRead)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	if err := s.read(u); err != nil {
		return nil, err
	}
	return newSource(s.tree, &archive{file: file, closer: file, scan: s, limits: opts.Limits}, true, opts, rep)
}

// archiveFile is an *os.File, or bytes in a test.
type archiveFile interface {
	io.ReadSeeker
	io.Closer
}

var _ archiveFile = (*os.File)(nil)

// read is the first pass.
func (s *scan) read(u *unpacker) error {
	return readTar(u, func(h *tar.Header, content io.Reader) error {
		// Directories may be named more than once, so more headers than
		// entries are normal, but not without end.
		if s.headers++; s.headers > 2*s.tree.budget.limits.Entries {
			return fmt.Errorf("path %q: more than %d entries: %w", shorten(h.Name), s.tree.budget.limits.Entries, eboot.ErrTooLarge)
		}
		return s.entry(u.ctx, h, content)
	})
}

// readTar calls entry for each entry of the archive and makes sure that it
// ends as an archive does: with a block of zeros, and nothing but zeros after it.
func readTar(u *unpacker, entry func(h *tar.Header, content io.Reader) error) error {
	position := &positionReader{reader: u}
	tr := tar.NewReader(position)
	latest := ""
	for {
		before := (position.bytes + 511) &^ 511 // the padding of the latest content
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && position.bytes-before < 512 {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // insecure paths are refused by name below
			return u.explain(latest, err)
		}
		latest = h.Name
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // a comment, as git archive writes it
		}
		if err := entry(h, tr); err != nil {
			return u.explain(latest, err)
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			return u.explain(latest, err)
		}
	}
	return u.drain(latest)
}

// drain reads what follows the end of the archive. Reading to the end is also
// what makes a decoder verify its checksum.
func (u *unpacker) drain(latest string) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := u.Read(buffer)
		for _, c := range buffer[:n] {
			if c != 0 {
				return fmt.Errorf("archive: after its end, behind %q, comes more data: %w", shorten(latest), eboot.ErrInvalid)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return u.explain(latest, err)
		}
	}
}

type positionReader struct {
	reader io.Reader
	bytes  int64
}

func (p *positionReader) Read(b []byte) (int, error) {
	n, err := p.reader.Read(b)
	p.bytes += int64(n)
	return n, err
}

// entry takes one entry into the tree.
func (s *scan) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	p, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	n := &node{modTime: seconds(h.ModTime)}
	switch h.Typeflag {
	case tar.TypeDir:
		if p == "." {
			return nil
		}
		n.kind = eboot.KindDirectory
		return s.tree.add(p, n)
	case tar.TypeReg, tar.TypeGNUSparse:
		n.kind, n.exec, n.size = eboot.KindFile, h.Mode&0o100 != 0, h.Size
		if err := s.tree.add(p, n); err != nil {
			return err
		}
		s.files = append(s.files, scannedFile{name: p, node: n})
		// The holes of a sparse file are content that the unpacker never sees.
		s.content += n.size
		if limits := s.tree.budget.limits; s.content > limits.RatioAfter && s.content/limits.Ratio > s.size {
			return fmt.Errorf("file %q: the archive unpacks to more than %d times its size: %w", shorten(p), limits.Ratio, eboot.ErrTooLarge)
		}
		if s.varTars != nil && varTarName.MatchString(p) {
			return readVariableTar(ctx, p, n, content, s.hasher, s.varTars)
		}
		_, err := s.hasher.read(ctx, content, p, n, &progress{})
		return err
	case tar.TypeSymlink:
		n.kind, n.target = eboot.KindSymlink, h.Linkname
		if strings.HasPrefix(h.Linkname, "/") { // whether a relative one leaves is known when all of the tree is
			return leavingLink(p, h.Linkname, true)
		}
		return s.tree.add(p, n)
	case tar.TypeLink:
		return s.hardLink(p, n, h)
	}
	return fmt.Errorf("entry %q: is a %s, which has no place in a bundle: %w", shorten(h.Name), typeName(h.Typeflag), eboot.ErrInvalid)
}

// hardLink takes a hard link in as a file of its own with the same content:
// that is what GNU tar writes for the second name of one file.
func (s *scan) hardLink(p string, n *node, h *tar.Header) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link %q: %w", shorten(p), err)
	}
	to := s.tree.nodes[target]
	if to == nil || to.kind != eboot.KindFile || eboot.IsSecretPath(target) {
		return fmt.Errorf("hard link %q: %q is not an earlier file of the archive: %w", shorten(p), shorten(target), eboot.ErrInvalid)
	}
	to.varTar = nil // a file with two names is a file
	n.kind, n.exec, n.size, n.digest, n.content = eboot.KindFile, to.exec, to.size, to.digest, to.content
	return s.tree.add(p, n)
}

// cleanName returns the path that an archive means by name: "./a//b/" is "a/b".
func cleanName(name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("entry without a name: %w", eboot.ErrInvalid)
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("entry %q: is absolute: %w", shorten(name), eboot.ErrInvalid)
	case name == "..", strings.HasPrefix(name, "../"), strings.HasSuffix(name, "/.."), strings.Contains(name, "/../"):
		return "", fmt.Errorf("entry %q: has a \"..\": %w", shorten(name), eboot.ErrInvalid)
	}
	p := path.Clean(name)
	if p == "." {
		return p, nil
	}
	return p, checkPath(p)
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "named pipe"
	default:
		return fmt.Sprintf("tar entry of type %q", flag)
	}
}

// deliver is the second pass.
func (a *archive) deliver(ctx context.Context, d *delivery) error {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return a.scan.deliver(ctx, a.file, a.limits, d)
}

// errDelivered ends a second pass early.
var errDelivered = errors.New("everything is delivered")

// deliver reads the archive in r again, and hands out what d wants.
func (s *scan) deliver(ctx context.Context, r io.Reader, limits Limits, d *delivery) error {
	u, err := newUnpacker(ctx, r, limits, &progress{})
	if err != nil {
		return err
	}
	defer u.Close()
	position := 0
	var putErr error
	err = readTar(u, func(h *tar.Header, content io.Reader) error {
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			return nil
		}
		if position == len(s.files) {
			return changed(h.Name)
		}
		f := s.files[position]
		position++
		if p, err := cleanName(h.Name); err != nil || p != f.name || h.Size != f.node.size {
			return changed(f.name)
		}
		switch v := f.node.varTar; {
		case v != nil && v.merged:
			putErr = v.scan.deliver(ctx, content, limits, d)
		case d.wanted[f.node.digest]:
			putErr = d.file(ctx, f.name, f.node, content)
		}
		if putErr == nil && d.done() {
			putErr = errDelivered
		}
		return putErr
	})
	switch {
	case errors.Is(putErr, errDelivered):
		return nil
	case putErr != nil:
		return putErr
	case errors.Is(err, eboot.ErrInvalid): // it was a good archive before
		return fmt.Errorf("%v: the archive changed while it was read: %w", err, eboot.ErrConflict)
	}
	return err
}

// Close closes the archive file.
func (a *archive) Close() error { return a.closer.Close() }
