package bundlefs

import (
	"iter"

	"eboot"
)

// All yields every name of the tree with what Stat says of it, symlinks as such:
// clean paths relative to the bundle's root, which is "", aliases included.
func (t *Tree) All() iter.Seq2[string, Info] {
	return func(yield func(string, Info) bool) {
		for i := range t.nodes {
			if !yield(t.nodes[i].path, t.info(uint32(i))) {
				return
			}
		}
	}
}

// Entry returns what stands at a clean path relative to the bundle's root.
func (t *Tree) Entry(path string) (kind eboot.Kind, ok bool) {
	i, ok := t.byPath[path]
	if !ok {
		return kind, false
	}
	return t.nodes[i].kind, true
}

// Directories yields the paths of all directories, the root's "" included.
func (t *Tree) Directories() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range t.nodes {
			if t.nodes[i].kind == eboot.KindDirectory && !yield(t.nodes[i].path) {
				return
			}
		}
	}
}

// Relative returns a name as a clean path relative to the bundle's root; false when it
// is below no root. Symlinks are not looked at.
func (t *Tree) Relative(name []byte) (string, bool) {
	var scratch [scratchSize]byte
	rel, _, ok := t.relative(name, scratch[:0])
	return string(rel), ok
}

// Resolve returns the path of the file that a name leads to, with no symlink in it, and
// its size. false: it leads to no file of the manifest, or into an archive.
func (t *Tree) Resolve(name []byte) (path string, size int64, ok bool) {
	var scratch [scratchSize]byte
	f, err := t.find(name, scratch[:0], true)
	if err != nil || f.archive != nil || t.nodes[f.node].kind != eboot.KindFile {
		return "", 0, false
	}
	return t.nodes[f.node].path, t.info(f.node).Size, true
}

// Roots returns the roots, the longest first, without a slash at the end: "" is /.
func (t *Tree) Roots() []string { return t.roots }
