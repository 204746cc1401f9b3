package loader

import (
	"iter"
	"maps"
	"path"

	"eboot"
)

// files is a Tree of the paths that are its keys.
type files map[string]eboot.Kind

var _ Tree = files{}

func (f files) Entry(name string) (eboot.Kind, bool) {
	kind, ok := f[name]
	return kind, ok
}

func (f files) Directories() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name, kind := range maps.All(f) {
			if kind == eboot.KindDirectory && !yield(name) {
				return
			}
		}
	}
}

// treeOf is a tree of directories and those above them.
func treeOf(names ...string) files {
	f := files{}
	for _, name := range names {
		for ; name != "."; name = path.Dir(name) {
			f[name] = eboot.KindDirectory
		}
	}
	return f
}
