package bundlefs

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"eboot"
)

const (
	bootAlias   = "bin/start.boot"
	configAlias = "sys.config"
)

// New builds the tree of opts. eboot.ErrInvalid: the manifest is no tree, the
// times do not belong to it, a root is no clean absolute path, or the boot script or
// sys.config of the bundle is no file of it.
func New(opts Options) (*Tree, error) {
	m := opts.Manifest
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("bundle tree: %w", err)
	}
	if opts.Times != nil && len(opts.Times) != len(m.Entries) {
		return nil, fmt.Errorf("bundle tree: %d times for %d entries: %w", len(opts.Times), len(m.Entries), eboot.ErrInvalid)
	}
	t := &Tree{source: opts.Blobs}
	if err := t.setRoots(opts.Roots); err != nil {
		return nil, fmt.Errorf("bundle tree: %w", err)
	}
	if err := t.addEntries(m, opts.Times); err != nil {
		return nil, fmt.Errorf("bundle tree: %w", err)
	}
	if err := t.addAliases(opts.Bundle); err != nil {
		return nil, fmt.Errorf("bundle tree: %w", err)
	}
	t.nodes, t.blobs, t.links = slices.Clip(t.nodes), slices.Clip(t.blobs), slices.Clip(t.links)
	t.setChildren()
	t.archives = newArchives(t, opts.Archives)
	return t, nil
}

func (t *Tree) setRoots(roots []string) error {
	if len(roots) == 0 {
		return fmt.Errorf("no roots: %w", eboot.ErrInvalid)
	}
	t.first = roots[0]
	for _, root := range roots {
		if root == "" || root[0] != '/' || path.Clean(root) != root {
			return fmt.Errorf("root %q: want a clean absolute path: %w", root, eboot.ErrInvalid)
		}
		t.roots = append(t.roots, strings.TrimSuffix(root, "/"))
	}
	slices.SortStableFunc(t.roots, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return nil
}

// addEntries makes a node of each entry. Paths are copied into one string, so
// that the manifest and what it was parsed from can be freed.
func (t *Tree) addEntries(m *eboot.Manifest, times []int64) error {
	length := 0
	distinct := make(map[eboot.Digest]uint32)
	for i := range m.Entries {
		length += len(m.Entries[i].Path)
	}
	var all strings.Builder
	all.Grow(length)
	for i := range m.Entries {
		all.WriteString(m.Entries[i].Path)
	}
	paths := all.String()
	t.nodes = make([]node, 1, len(m.Entries)+8)
	t.nodes[0] = node{kind: eboot.KindDirectory}
	t.byPath = make(map[string]uint32, len(m.Entries)+8)
	t.byPath[""] = 0
	for i := range m.Entries {
		e := &m.Entries[i]
		n := node{path: paths[:len(e.Path)], kind: e.Kind, exec: e.Exec}
		paths = paths[len(e.Path):]
		if times != nil {
			n.modTime = times[i]
			t.nodes[0].modTime = max(t.nodes[0].modTime, n.modTime)
		}
		switch e.Kind {
		case eboot.KindFile:
			ref, ok := distinct[e.Digest]
			if !ok {
				ref = uint32(len(t.blobs))
				distinct[e.Digest] = ref
				t.blobs = append(t.blobs, blob{e.Digest, e.Size})
			} else if t.blobs[ref].size != e.Size {
				return fmt.Errorf("path %q: its blob has %d bytes elsewhere, %d here: %w", e.Path, t.blobs[ref].size, e.Size, eboot.ErrInvalid)
			}
			n.ref = ref
		case eboot.KindSymlink:
			n.ref = uint32(len(t.links))
			t.links = append(t.links, strings.Clone(e.Target))
		}
		t.set(n)
	}
	return nil
}

// set adds n or puts it in the place of the node of its path.
func (t *Tree) set(n node) uint32 {
	i, ok := t.byPath[n.path]
	if ok {
		t.nodes[i] = n
		return i
	}
	i = uint32(len(t.nodes))
	t.nodes = append(t.nodes, n)
	t.byPath[n.path] = i
	return i
}

func (t *Tree) addAliases(b eboot.Bundle) error {
	boot, err := t.walk(b.BootScript, false, true)
	if err != nil || t.nodes[boot].kind != eboot.KindFile {
		return fmt.Errorf("boot script %q: is no file of the bundle: %w", b.BootScript, eboot.ErrInvalid)
	}
	bin, err := t.walk(path.Dir(bootAlias), false, true)
	if err != nil || t.nodes[bin].kind != eboot.KindDirectory {
		bin = t.set(node{path: path.Dir(bootAlias), kind: eboot.KindDirectory, modTime: t.nodes[boot].modTime})
	}
	if err := t.alias(path.Join(t.nodes[bin].path, path.Base(bootAlias)), t.nodes[boot]); err != nil {
		return err
	}
	if b.SysConfig == "" {
		if _, err := t.walk(configAlias, false, true); err == nil {
			return nil // the bundle's own, which publishing did not choose
		}
		return t.alias(configAlias, node{kind: eboot.KindFile, ref: inline, modTime: t.nodes[boot].modTime})
	}
	config, err := t.walk(b.SysConfig, false, true)
	if err != nil || t.nodes[config].kind != eboot.KindFile {
		return fmt.Errorf("sys.config %q: is no file of the bundle: %w", b.SysConfig, eboot.ErrInvalid)
	}
	if err := t.alias(configAlias, t.nodes[config]); err != nil {
		return err
	}
	t.addIncludes(path.Dir(b.SysConfig))
	return nil
}

// addIncludes lets relative includes of <root>/sys.config find the files that
// stand beside and below the real one: X.config and Y/X.config of dir become
// <root>/X.config and <root>/Y/X.config, unless the bundle has something there or
// its Y is no directory. Symlinks of dir to other directories are not searched.
func (t *Tree) addIncludes(dir string) {
	d, err := t.walk(dir, true, true)
	if err != nil || d == 0 {
		return
	}
	prefix := t.nodes[d].path + "/"
	for i := range t.nodes { // what is added meanwhile is not looked at
		name, ok := strings.CutPrefix(t.nodes[i].path, prefix)
		if !ok || path.Ext(name) != ".config" {
			continue
		}
		from, err := t.walk(t.nodes[i].path, false, true)
		if err != nil || t.nodes[from].kind != eboot.KindFile {
			continue
		}
		if to, ok := t.makeDirectories(parentPath(name), prefix); ok {
			n := t.nodes[from]
			n.path = path.Join(to, path.Base(name))
			if _, taken := t.byPath[n.path]; !taken {
				t.set(n)
			}
		}
	}
}

// makeDirectories makes dir where it is missing, after the model of the directory
// prefix+dir, and returns its path without symlinks. ok is false when something
// else stands there.
func (t *Tree) makeDirectories(dir, prefix string) (real string, ok bool) {
	for done := 0; done < len(dir); {
		end := done + strings.IndexByte(dir[done:]+"/", '/')
		at := path.Join(real, dir[done:end])
		if _, there := t.byPath[at]; !there {
			t.set(node{path: at, kind: eboot.KindDirectory, modTime: t.nodes[t.byPath[prefix+dir[:end]]].modTime})
		}
		i, err := t.walk(at, false, true)
		if err != nil || t.nodes[i].kind != eboot.KindDirectory {
			return "", false
		}
		real, done = t.nodes[i].path, end+1
	}
	return real, true
}

// alias lets p answer what the file target is. A link that leads there already stays.
func (t *Tree) alias(p string, target node) error {
	if i, err := t.walk(p, false, true); err == nil {
		if t.nodes[i].kind == eboot.KindDirectory {
			return fmt.Errorf("path %q: is a directory of the bundle and must be a file: %w", p, eboot.ErrInvalid)
		}
		if t.nodes[i].path == target.path {
			return nil
		}
	}
	target.path = p
	t.set(target)
	return nil
}

// setChildren fills the children of every directory, sorted by name: siblings
// have the same order as their paths.
func (t *Tree) setChildren() {
	order := make([]uint32, 0, len(t.nodes)-1)
	for i := 1; i < len(t.nodes); i++ {
		t.nodes[t.parent(uint32(i))].count++
		order = append(order, uint32(i))
	}
	slices.SortFunc(order, func(a, b uint32) int { return strings.Compare(t.nodes[a].path, t.nodes[b].path) })
	sum := uint32(0)
	for i := range t.nodes {
		t.nodes[i].first = sum
		sum += t.nodes[i].count
		t.nodes[i].count = 0
	}
	t.children = make([]uint32, sum)
	for _, i := range order {
		p := &t.nodes[t.parent(i)]
		t.children[p.first+p.count] = i
		p.count++
	}
}

func (t *Tree) parent(i uint32) uint32 {
	p := t.nodes[i].path
	return t.byPath[p[:max(strings.LastIndexByte(p, '/'), 0)]]
}
