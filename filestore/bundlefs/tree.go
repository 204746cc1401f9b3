package bundlefs

import (
	"errors"
	"fmt"
	"iter"
	"syscall"

	"eboot"
	"eboot/filestore"
)

// Blobs gives out contents. *filestore.Store is one.
type Blobs interface {
	// Content returns the verified content of a blob of size bytes.
	// eboot.ErrNotFound and eboot.ErrDamaged: it cannot be had from this disk.
	Content(d eboot.Digest, size int64) (filestore.Content, error)
}

var _ Blobs = (*filestore.Store)(nil)

// Options describe one tree.
type Options struct {
	// Roots are the ROOTDIRs of slaves, absolute; each shows the bundle. The
	// first is the working directory. At least one.
	Roots []string
	// Bundle says which files the aliases answer.
	Bundle eboot.Bundle
	// Manifest is the tree. It is not kept.
	Manifest *eboot.Manifest
	// Times are modification times in seconds since 1970, one for each entry of
	// Manifest; nil: all 0.
	Times []int64
	Blobs Blobs
	// Archives bounds what .ez archives may cost.
	Archives ArchiveLimits
}

// Info is what is known of a name: what #file_info{} is made of.
type Info struct {
	Size    int64 // file: bytes; symlink: length of its target; directory: 4096, as ext4 says
	Kind    eboot.Kind
	Exec    bool  // file: executable
	ModTime int64 // seconds since 1970
}

const directorySize = 4096

// Tree is the file tree of one bundle.
type Tree struct {
	roots    []string // longest first, "" for /
	first    string   // the working directory
	nodes    []node
	byPath   map[string]uint32 // index into nodes by path; "" is the root, 0
	children []uint32          // indexes into nodes, by directory and then by name
	blobs    []blob            // distinct
	links    []string          // targets of symlinks
	source   Blobs
	archives *archives
}

// node is one name. 100,000 of them should be small: contents and targets
// stand in other slices, paths share one string.
type node struct {
	path    string
	modTime int64
	ref     uint32 // file: index into blobs, or inline; symlink: into links
	first   uint32 // directory: its children are children[first:first+count]
	count   uint32
	kind    eboot.Kind
	exec    bool
}

// inline is the ref of a file whose content is emptyConfig.
const inline = ^uint32(0)

// emptyConfig is the sys.config of a bundle that has none.
var emptyConfig = []byte("[].\n")

type blob struct {
	digest eboot.Digest
	size   int64
}

// Get returns the content of a file. Errors: EISDIR of a directory, ENOENT,
// ENOTDIR, ELOOP, ENAMETOOLONG, EINVAL for a name with a NUL byte, EIO for a
// damaged archive member; see the package comment for the others. An archive is
// ENOENT, as OTP's server says. The caller closes Content.File, which is an
// *os.File except for a large member of an archive: that is unpacked as it is read,
// so several may be read at once without being held in memory.
func (t *Tree) Get(name []byte) (filestore.Content, error) {
	var scratch [scratchSize]byte
	f, err := t.find(name, scratch[:0], true)
	if err != nil {
		return filestore.Content{}, err
	}
	if f.archive != nil {
		return t.archives.get(f)
	}
	n := &t.nodes[f.node]
	switch {
	case n.kind != eboot.KindFile:
		return filestore.Content{}, syscall.EISDIR
	case n.ref == inline:
		return filestore.Content{Data: emptyConfig, Size: int64(len(emptyConfig))}, nil
	}
	b := &t.blobs[n.ref]
	c, err := t.source.Content(b.digest, b.size)
	if err != nil {
		return filestore.Content{}, withoutErrno(n.path, err)
	}
	return c, nil
}

// List returns the names in a directory, sorted bytewise. The caller may keep
// and change the slice. Errors are those of Get, with ENOTDIR for a file and for
// everything that goes wrong with an archive, as OTP's server says.
func (t *Tree) List(name []byte) ([]string, error) {
	var scratch [scratchSize]byte
	f, err := t.find(name, scratch[:0], true)
	if f.archive != nil && err == nil {
		return f.archive.list(f.member)
	}
	if err != nil {
		if f.ez {
			return nil, asNotDirectory(err)
		}
		return nil, err
	}
	n := &t.nodes[f.node]
	if n.kind != eboot.KindDirectory {
		return nil, syscall.ENOTDIR
	}
	skip := len(n.path) + 1
	if n.path == "" {
		skip = 0
	}
	names := make([]string, n.count)
	for k, child := range t.children[n.first : n.first+n.count] {
		names[k] = t.nodes[child].path[skip:]
	}
	return names, nil
}

// Stat describes a name; follow says whether a symlink in the last place is
// followed. Errors are those of Get.
func (t *Tree) Stat(name []byte, follow bool) (Info, error) {
	var scratch [scratchSize]byte
	f, err := t.find(name, scratch[:0], follow)
	if err != nil {
		return Info{}, err
	}
	if f.archive != nil {
		return f.archive.stat(f.member, f.slash, t.nodes[f.node].modTime)
	}
	return t.info(f.node), nil
}

func (t *Tree) info(i uint32) Info {
	n := &t.nodes[i]
	info := Info{Kind: n.kind, Exec: n.exec, ModTime: n.modTime, Size: directorySize}
	switch {
	case n.kind == eboot.KindSymlink:
		info.Size = int64(len(t.links[n.ref]))
	case n.kind == eboot.KindFile && n.ref == inline:
		info.Size = int64(len(emptyConfig))
	case n.kind == eboot.KindFile:
		info.Size = t.blobs[n.ref].size
	}
	return info
}

// Covers reports whether name is relative or below a root, that is, whether this
// tree is where to look for it.
func (t *Tree) Covers(name []byte) bool {
	var scratch [scratchSize]byte
	_, _, ok := t.relative(name, scratch[:0])
	return ok
}

// WorkingDirectory returns the first root: what relative names are relative to.
func (t *Tree) WorkingDirectory() string { return t.first }

// Blobs yields every blob of the tree once, with its size in bytes.
func (t *Tree) Blobs() iter.Seq2[eboot.Digest, int64] {
	return func(yield func(eboot.Digest, int64) bool) {
		for i := range t.blobs {
			if !yield(t.blobs[i].digest, t.blobs[i].size) {
				return
			}
		}
	}
}

// withoutErrno keeps an Errno of the host (too many open files) from being taken
// for one of the tree: that would be final for the slave.
func withoutErrno(path string, err error) error {
	for _, sentinel := range []error{eboot.ErrNotFound, eboot.ErrDamaged} {
		if errors.Is(err, sentinel) {
			return fmt.Errorf("content of %q: %v: %w", path, err, sentinel)
		}
	}
	return fmt.Errorf("content of %q: %v: %w", path, err, eboot.ErrUnavailable)
}

// asNotDirectory is what prim_list_dir of erl_prim_loader makes of the errors of
// archives: {{Status, Names}, _} matches {error, enoent} as well.
func asNotDirectory(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return syscall.ENOTDIR
	}
	return err
}
