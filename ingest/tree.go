package ingest

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"eboot"
)

// node is one name of a tree.
type node struct {
	kind    eboot.Kind
	exec    bool
	implied bool // a directory that no entry named yet, only names below it
	size    int64
	modTime int64
	digest  eboot.Digest
	target  string

	outside string       // directories: where the content of a followed link stands, absolute
	content []byte       // of the few small files that say what the tree is
	varTar  *variableTar // what the file holds, when it may be a variable tar
}

// budget counts what one source takes of its limits.
type budget struct {
	limits  Limits
	entries int
	bytes   int64
	text    int // bytes of the manifest, roughly
}

func (b *budget) add(p string, n *node) error {
	if b.entries++; b.entries > b.limits.Entries {
		return fmt.Errorf("path %q: more than %d entries: %w", shorten(p), b.limits.Entries, eboot.ErrTooLarge)
	}
	if b.text += manifestLine(p, n); b.text > eboot.MaxManifestSize {
		return fmt.Errorf("path %q: names of more than %d bytes: %w", shorten(p), eboot.MaxManifestSize, eboot.ErrTooLarge)
	}
	if n.size > b.limits.FileSize {
		return fmt.Errorf("file %q: %d bytes, at most %d: %w", shorten(p), n.size, b.limits.FileSize, eboot.ErrTooLarge)
	}
	if b.bytes += n.size; b.bytes > b.limits.TreeBytes {
		return fmt.Errorf("file %q: the tree passes %d bytes here: %w", shorten(p), b.limits.TreeBytes, eboot.ErrTooLarge)
	}
	return nil
}

func (b *budget) remove(p string, n *node) {
	b.entries--
	b.text -= manifestLine(p, n)
	b.bytes -= n.size
}

// manifestLine bounds the length of the node's line in a manifest.
func manifestLine(p string, n *node) int {
	line := len(p) + len(n.target) + 90
	return line + strings.Count(p, "\n") + strings.Count(p, `\`) + strings.Count(n.target, "\n") + strings.Count(n.target, `\`)
}

// tree holds nodes by clean path. The root has none.
type tree struct {
	nodes  map[string]*node
	budget *budget
}

func newTree(b *budget) *tree { return &tree{nodes: map[string]*node{}, budget: b} }

// errDuplicate is what add adds to eboot.ErrInvalid when the name is taken.
var errDuplicate = errors.New("stands twice")

// add puts n at p, and the directories above it where they are missing. A
// directory may be named twice; any other name only once.
func (t *tree) add(p string, n *node) error {
	if err := checkPath(p); err != nil {
		return err
	}
	if old := t.nodes[p]; old != nil {
		if old.kind != eboot.KindDirectory || n.kind != eboot.KindDirectory {
			return fmt.Errorf("path %q: %w: %w", shorten(p), errDuplicate, eboot.ErrInvalid)
		}
		if old.implied {
			old.implied, old.modTime = n.implied, n.modTime
		}
		return nil
	}
	if err := t.addParents(p, n.modTime); err != nil {
		return err
	}
	if err := t.budget.add(p, n); err != nil {
		return err
	}
	t.nodes[p] = n
	return nil
}

func (t *tree) addParents(p string, modTime int64) error {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if old := t.nodes[dir]; old != nil {
			if old.kind != eboot.KindDirectory {
				return fmt.Errorf("path %q: stands below %q, which is a %s: %w", shorten(p), shorten(dir), kindName(old.kind), eboot.ErrInvalid)
			}
			return nil // and its own parents are there
		}
		n := &node{kind: eboot.KindDirectory, implied: true, modTime: modTime}
		if err := t.budget.add(dir, n); err != nil {
			return err
		}
		t.nodes[dir] = n
	}
	return nil
}

func (t *tree) remove(p string) {
	if n := t.nodes[p]; n != nil {
		t.budget.remove(p, n)
		delete(t.nodes, p)
	}
}

// removeSecrets leaves out the cookies, and says so.
func (t *tree) removeSecrets(note func(string)) {
	removed := map[string]bool{}
	for _, p := range t.sorted() { // parents come before what is below them
		secret := eboot.IsSecretPath(p)
		if secret {
			note(fmt.Sprintf("left out %s: a cookie is a secret", p))
		}
		if secret || removed[path.Dir(p)] {
			removed[p] = true
			t.remove(p)
		}
	}
}

// checkPath is eboot.CheckTreePath, except that secrets pass: removeSecrets
// sees them once it is known where the root of the tree is.
func checkPath(p string) error {
	if err := eboot.CheckTreePath(p); err != nil && !eboot.IsSecretPath(p) {
		return err
	}
	return nil
}

// manifest returns the tree in canonical order, with its times.
func (t *tree) manifest() (*eboot.Manifest, []int64) {
	paths := t.sorted()
	m := &eboot.Manifest{Entries: make([]eboot.ManifestEntry, len(paths))}
	times := make([]int64, len(paths))
	for i, p := range paths {
		n := t.nodes[p]
		m.Entries[i] = eboot.ManifestEntry{Path: p, Kind: n.kind, Exec: n.exec, Size: n.size, Digest: n.digest, Target: n.target}
		times[i] = n.modTime
	}
	return m, times
}

func (t *tree) sorted() []string {
	paths := make([]string, 0, len(t.nodes))
	for p := range t.nodes {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

func kindName(k eboot.Kind) string {
	switch k {
	case eboot.KindFile:
		return "file"
	case eboot.KindSymlink:
		return "symlink"
	default:
		return "directory"
	}
}

// seconds returns a modification time as slaves can be told it: their calendar
// knows the years 1970 to 9999.
func seconds(t time.Time) int64 {
	const lastSecond = 253402300799
	return min(max(t.Unix(), 0), lastSecond)
}

// shorten bounds a remote name in an error.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// hops bounds how many symlinks one name may lead through, as Linux does.
const hops = 40

// outcome is where a name leads.
type outcome int

const (
	resolved outcome = iota
	missing          // inside the tree, where nothing stands, or in circles
	leaving          // out of the tree
)

// resolve follows p through the symlinks of t as a file system would, and
// returns the name it leads to. Behind a name that is missing it goes on as if that
// were a directory, so that "leaving" is found there too.
func (t *tree) resolve(p string) (string, outcome) {
	rest := strings.Split(p, "/")
	at, links, result := "", 0, resolved
	for steps := 0; len(rest) > 0; steps++ {
		if steps > eboot.MaxPathLength {
			return "", missing // longer than any path can be
		}
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if at == "" {
				return "", leaving
			}
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := path.Join(at, name)
		n := t.nodes[next]
		switch {
		case n == nil, n.kind == eboot.KindFile && len(rest) > 0:
			at, result = next, missing
		case n.kind == eboot.KindSymlink:
			if strings.HasPrefix(n.target, "/") {
				return "", leaving
			}
			if links++; links > hops {
				return "", missing
			}
			rest = append(strings.Split(n.target, "/"), rest...)
		default:
			at = next
		}
	}
	return at, result
}

// file returns the regular file that p leads to, under the name it stands at, or nil.
func (t *tree) file(p string) (string, *node) {
	at, result := t.resolve(p)
	if n := t.nodes[at]; result == resolved && n != nil && n.kind == eboot.KindFile {
		return at, n
	}
	return "", nil
}
