package bundlefs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"
	"syscall"

	"github.com/klauspost/compress/flate"

	"eboot"
	"eboot/filestore"
	"eboot/filestore/internal/lru"
)

// init:archive_extension(), as the end of a name and inside one.
var (
	ezSuffix = []byte(".ez")
	ezInside = []byte(".ez/")
)

// ArchiveLimits bounds what .ez archives may cost. An archive beyond them is just
// a file. Zero values mean the defaults.
type ArchiveLimits struct {
	Entries       int   // names in one archive; default 20,000
	FileSize      int64 // bytes of one member, unpacked; default 32 MiB
	TotalSize     int64 // bytes of all members of one archive, unpacked; default 512 MiB
	Ratio         int64 // unpacked bytes of all members by bytes of the archive; default 200
	CachedEntries int64 // names of all archives kept in memory; default 100,000
	CachedBytes   int64 // unpacked members kept in memory, bytes; default 8 MiB
}

func (l ArchiveLimits) withDefaults() ArchiveLimits {
	if l.Entries == 0 {
		l.Entries = 20_000
	}
	if l.FileSize == 0 {
		l.FileSize = 32 << 20
	}
	if l.TotalSize == 0 {
		l.TotalSize = 512 << 20
	}
	if l.Ratio == 0 {
		l.Ratio = 200
	}
	if l.CachedEntries == 0 {
		l.CachedEntries = 100_000
	}
	if l.CachedBytes == 0 {
		l.CachedBytes = 8 << 20
	}
	return l
}

// archives reads the archives of one tree. Directories of archives are read at
// first use; members are unpacked one at a time for each place in an archive,
// however many slaves ask for it.
type archives struct {
	tree        *Tree
	limits      ArchiveLimits
	directories *lru.Cache[uint32, *archive] // by index into Tree.blobs; nil: no archive
	members     *lru.Cache[memberKey, []byte]
	unpacking   chan struct{} // bounds the memory of members being unpacked
}

type memberKey struct {
	blob   uint32
	member member
}

func newArchives(t *Tree, limits ArchiveLimits) *archives {
	limits = limits.withDefaults()
	return &archives{
		tree:        t,
		limits:      limits,
		directories: lru.New[uint32, *archive](limits.CachedEntries, 1, nil),
		members:     lru.New[memberKey, []byte](limits.CachedBytes, 1, nil),
		unpacking:   make(chan struct{}, 4),
	}
}

// findArchive resolves a clean path with a component that ends in ".ez". As in
// name_split of erl_prim_loader, the first one that is a file is the archive, and its name as it
// was asked for counts: a link of another name to an archive is a file.
func (t *Tree) findArchive(rel string, slash, follow bool) (found, error) {
	for from := 0; ; {
		end, member := len(rel), ""
		if k := strings.Index(rel[from:], string(ezInside)); k >= 0 {
			end = from + k + len(ezSuffix)
			member = rel[end+1:]
		} else if !strings.HasSuffix(rel, string(ezSuffix)) {
			break
		}
		i, err := t.walk(rel[:end], false, true)
		if err != nil {
			return found{ez: true}, err
		}
		if t.nodes[i].kind == eboot.KindFile {
			a, err := t.archives.open(t.nodes[i].ref)
			if err != nil {
				return found{ez: true}, withoutErrno(rel[:end], err)
			}
			if a != nil {
				return found{node: i, archive: a, member: member, slash: slash}, nil
			}
			break
		}
		if from = end + 1; from >= len(rel) {
			break
		}
	}
	i, err := t.walk(rel, slash, follow)
	return found{node: i}, err
}

// open returns the directory of an archive; nil when the file is none.
func (a *archives) open(ref uint32) (*archive, error) {
	if ref == inline {
		return nil, nil
	}
	if d, ok := a.directories.Get(ref); ok {
		return d, nil
	}
	return a.directories.Load(ref, func() (*archive, int64, error) {
		b := &a.tree.blobs[ref]
		c, err := a.tree.source.Content(b.digest, b.size)
		if err != nil {
			return nil, 0, err
		}
		defer closeContent(c)
		d, err := readArchive(readerAt(c), b.size, a.limits)
		if errors.Is(err, errNoArchive) {
			return nil, 1, nil
		}
		if err != nil {
			return nil, 0, err
		}
		return d, int64(len(d.files) + len(d.dirs)), nil
	})
}

// get returns the content of a member. Directories are ENOENT, as in
// prim_get_file of erl_prim_loader.
func (a *archives) get(f found) (filestore.Content, error) {
	m, ok := f.archive.files[f.member]
	if !ok || f.slash {
		return filestore.Content{}, syscall.ENOENT
	}
	n := &a.tree.nodes[f.node]
	key := memberKey{n.ref, m}
	data, ok := a.members.Get(key)
	var err error
	if !ok {
		data, err = a.members.Load(key, func() ([]byte, int64, error) {
			a.unpacking <- struct{}{}
			defer func() { <-a.unpacking }()
			data, err := a.unpack(n.ref, m)
			return data, int64(len(data)) + 256, err
		})
	}
	switch {
	case errors.Is(err, errBadMember):
		return filestore.Content{}, syscall.EIO
	case err != nil:
		return filestore.Content{}, withoutErrno(path.Join(n.path, f.member), err)
	}
	return filestore.Content{Data: data, Size: int64(len(data))}, nil
}

// errBadMember: what the archive holds is not what its directory promises. The
// blob is whole, so it was published like that.
var errBadMember = errors.New("damaged archive member")

func (a *archives) unpack(ref uint32, m member) ([]byte, error) {
	b := &a.tree.blobs[ref]
	c, err := a.tree.source.Content(b.digest, b.size)
	if err != nil {
		return nil, err
	}
	defer closeContent(c)
	packed, err := m.section(readerAt(c), b.size)
	if err != nil {
		return nil, err
	}
	var r io.Reader = packed
	if m.method == methodDeflate {
		inflater := flate.NewReader(packed)
		defer inflater.Close()
		r = inflater
	}
	data := make([]byte, m.size) // at most ArchiveLimits.FileSize
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, unpackError(err)
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != nil && err != io.EOF {
		return nil, fmt.Errorf("longer than promised: %w", errBadMember)
	}
	if crc32.ChecksumIEEE(data) != m.crc {
		return nil, fmt.Errorf("wrong checksum: %w", errBadMember)
	}
	return data, nil
}

// unpackError tells a bad archive from a disk that cannot be read now.
func unpackError(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	return fmt.Errorf("%v: %w", err, errBadMember)
}

func readerAt(c filestore.Content) io.ReaderAt {
	if c.File != nil {
		return c.File
	}
	return bytes.NewReader(c.Data)
}

func closeContent(c filestore.Content) {
	if c.File != nil {
		c.File.Close() // read only: nothing to lose
	}
}
