package bundlefs

import (
	"bytes"
	"errors"
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
	CachedSize    int64 // bytes of one member, unpacked, up to which it is kept; default 256 KiB
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
	if l.CachedSize == 0 {
		l.CachedSize = 256 << 10
	}
	return l
}

// archives reads the archives of one tree. Directories of archives are read at
// first use. Small members are unpacked once, however many slaves ask for them, and
// cached; large ones are unpacked for each reader while it reads. So a reader that
// takes hours holds no more than one small member or the state of one decoder, and
// a large member costs the cache nothing.
type archives struct {
	tree        *Tree
	limits      ArchiveLimits
	directories *lru.Cache[uint32, *archive]    // by index into Tree.blobs; nil: no archive
	members     *lru.Cache[memberKey, []byte]   // small ones
	whole       *lru.Cache[memberKey, struct{}] // large ones that are what the directory promises
	unpacking   chan struct{}                   // bounds how many are unpacked at a time, other than to be sent
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
		whole:       lru.New[memberKey, struct{}](limits.CachedEntries, 1, nil),
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
	c, err := a.content(memberKey{n.ref, m})
	switch {
	case errors.Is(err, errBadMember):
		return filestore.Content{}, syscall.EIO
	case err != nil:
		return filestore.Content{}, withoutErrno(path.Join(n.path, f.member), err)
	}
	return c, nil
}

func (a *archives) content(key memberKey) (filestore.Content, error) {
	if key.member.size <= a.limits.CachedSize {
		data, ok := a.members.Get(key)
		var err error
		if !ok {
			data, err = a.members.Load(key, func() ([]byte, int64, error) {
				data, err := a.unpack(key)
				return data, int64(len(data)) + 256, err
			})
		}
		return filestore.Content{Data: data, Size: int64(len(data))}, err
	}
	// Whether the member is whole must be known before the first byte of it is sent.
	if _, ok := a.whole.Get(key); !ok {
		if _, err := a.whole.Load(key, func() (struct{}, int64, error) { return struct{}{}, 1, a.check(key) }); err != nil {
			return filestore.Content{}, err
		}
	}
	r, err := a.openMember(key)
	if err != nil {
		return filestore.Content{}, err
	}
	return filestore.Content{File: r, Size: key.member.size}, nil
}

// unpack returns the content of a small member.
func (a *archives) unpack(key memberKey) ([]byte, error) {
	a.unpacking <- struct{}{}
	defer func() { <-a.unpacking }()
	r, err := a.openMember(key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, key.member.size) // at most ArchiveLimits.CachedSize
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	if _, err := r.Read(nil); err != io.EOF { // an empty member was not looked at yet
		return nil, err
	}
	return data, nil
}

// check unpacks a large member to nowhere.
func (a *archives) check(key memberKey) error {
	a.unpacking <- struct{}{}
	defer func() { <-a.unpacking }()
	r, err := a.openMember(key)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

func (a *archives) openMember(key memberKey) (*memberReader, error) {
	b := &a.tree.blobs[key.blob]
	c, err := a.tree.source.Content(b.digest, b.size)
	if err != nil {
		return nil, err
	}
	packed, err := key.member.section(readerAt(c), b.size)
	if err != nil {
		closeContent(c)
		return nil, err
	}
	r := &memberReader{archive: c, unpacked: packed, member: key.member, left: key.member.size}
	if key.member.method == methodDeflate {
		r.unpacked = flate.NewReader(packed)
	}
	return r, nil
}

// readerAt is for the content of a blob, which is an *os.File or bytes.
func readerAt(c filestore.Content) io.ReaderAt {
	if c.File != nil {
		return c.File.(io.ReaderAt)
	}
	return bytes.NewReader(c.Data)
}

func closeContent(c filestore.Content) {
	if c.File != nil {
		c.File.Close() // read only: nothing to lose
	}
}
