package loader

import (
	"cmp"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"

	"eboot"
)

// Tree is what this package asks about a bundle's files. Paths are relative to the
// bundle, slash-separated and clean.
type Tree interface {
	// Entry reports what stands at path, which is never the root itself; ok is false
	// when nothing does.
	Entry(path string) (kind eboot.Kind, ok bool)
	// Directories yields all directories. The root may be missing or empty.
	Directories() iter.Seq[string]
}

// Limits of the search for the directories that variables stand for.
const (
	maxVariables = 16
	maxLookups   = 4_000_000 // of one script; far beyond what any real one needs
)

// variable is a boot variable and the directory of the bundle it stands for.
type variable struct {
	name      string
	directory string // relative to the bundle; "." is its root
}

// split takes the boot variable off a directory of a script: "$LIB/a/ebin" is LIB and
// a/ebin. ok is false when there is none. init ends the variable at the first slash.
func split(directory string) (name, rest string, ok bool) {
	name, ok = strings.CutPrefix(directory, "$")
	name, rest, _ = strings.Cut(name, "/")
	return name, rest, ok
}

// variables returns the boot variables of a script other than ROOT that stand for
// exactly one directory of the bundle, sorted by name: D is it when D/rest is a
// directory for each $NAME/rest of the script.
func (s *Script) variables(tree Tree) []variable {
	rests := map[string]map[string]bool{}
	for _, in := range s.instructions {
		if in.kind != codePath {
			continue
		}
		for _, directory := range in.names {
			name, rest, ok := split(directory)
			if !ok || name == "ROOT" || !plain(name) {
				continue
			}
			if rests[name] == nil {
				rests[name] = map[string]bool{}
			}
			rests[name][path.Clean(rest)] = true
		}
	}
	if tree == nil || len(rests) > maxVariables {
		return nil
	}
	search := search{tree: tree, left: maxLookups}
	var found []variable
	for _, name := range slices.Sorted(maps.Keys(rests)) {
		if directory, ok := search.only(rests[name]); ok {
			found = append(found, variable{name, directory})
		}
	}
	return found
}

// search looks for directories, until it has looked at too many names.
type search struct {
	tree Tree
	left int
}

// only returns the one directory of the tree below which all of rests are. The
// loader has no more than bytes for names there, so it must be plain.
func (s *search) only(rests map[string]bool) (directory string, ok bool) {
	// The longest first: fewest directories have it.
	order := slices.SortedFunc(maps.Keys(rests), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	found := 0
	try := func(d string) (more bool) {
		for _, rest := range order {
			if s.left--; s.left < 0 {
				found = 0
				return false
			}
			if !isDirectory(s.tree, path.Join(d, rest)) {
				return true
			}
		}
		directory = d
		found++
		return found < 2
	}
	more := try(".")
	for d := range s.tree.Directories() {
		if !more {
			break
		}
		if d != "" && d != "." {
			more = try(d)
		}
	}
	return directory, found == 1 && plain(directory)
}

func isDirectory(tree Tree, name string) bool {
	if name == "." {
		return true
	}
	if name == ".." || strings.HasPrefix(name, "../") {
		return false
	}
	kind, ok := tree.Entry(name)
	return ok && kind == eboot.KindDirectory
}

// plain reports whether a name is printable ASCII and not empty.
func plain(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// ModuleFiles returns the files of the modules that init loads (Modules), relative
// to the bundle, in order: for each the first directory of the path in force that
// has it. Modules that are nowhere in the bundle are left out.
func (s *Script) ModuleFiles(embedded bool, tree Tree) []string {
	vars := s.variables(tree)
	var files []string
	for _, load := range s.loads(embedded) {
		var path []string
		for _, directory := range load.path {
			if d, ok := within(directory, vars); ok {
				path = append(path, d)
			}
		}
		for _, module := range load.modules {
			if file, ok := find(module+".beam", path, tree); ok {
				files = append(files, file)
			}
		}
	}
	return files
}

func find(name string, directories []string, tree Tree) (file string, ok bool) {
	for _, d := range directories {
		file = path.Join(d, name)
		if kind, ok := tree.Entry(file); ok && kind != eboot.KindDirectory {
			return file, true
		}
	}
	return "", false
}

// within returns the directory of the bundle that a directory of a script is; ok is
// false when it is none.
func within(directory string, vars []variable) (relative string, ok bool) {
	name, rest, ok := split(directory)
	if !ok {
		return "", false
	}
	base := "."
	if name != "ROOT" {
		i := slices.IndexFunc(vars, func(v variable) bool { return v.name == name })
		if i < 0 {
			return "", false
		}
		base = vars[i].directory
	}
	relative = path.Join(base, rest)
	return relative, relative != ".." && !strings.HasPrefix(relative, "../")
}
