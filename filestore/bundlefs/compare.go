package bundlefs

import (
	"cmp"
	"iter"
	"sort"
	"strings"

	"eboot"
)

// Pair is what stands at one path of either of two trees; nil: nothing. Not both are nil.
type Pair struct {
	From, To *eboot.ManifestEntry
}

// same reports whether a slave could not tell them apart.
func (p Pair) same() bool {
	return p.From != nil && p.To != nil && p.From.Kind == p.To.Kind && p.From.Exec == p.To.Exec &&
		p.From.Digest == p.To.Digest && p.From.Target == p.To.Target
}

// Compare yields what differs between a directory of one tree and a directory of another, all
// that is below them: paths relative to them, in order, and what stands there. Times are no
// difference. "" is the root; a directory that is not there has nothing in it. Both manifests are
// in order (eboot.Manifest.Sort).
func Compare(from *eboot.Manifest, fromDir string, to *eboot.Manifest, toDir string) iter.Seq2[string, Pair] {
	return func(yield func(string, Pair) bool) {
		a, cutA := below(from, fromDir)
		b, cutB := below(to, toDir)
		for len(a) > 0 || len(b) > 0 {
			var p Pair
			var path string
			order := 0
			switch {
			case len(a) == 0:
				order = 1
			case len(b) == 0:
				order = -1
			default:
				order = cmp.Compare(a[0].Path[cutA:], b[0].Path[cutB:])
			}
			if order <= 0 {
				p.From, path, a = &a[0], a[0].Path[cutA:], a[1:]
			}
			if order >= 0 {
				p.To, path, b = &b[0], b[0].Path[cutB:], b[1:]
			}
			if !p.same() && !yield(path, p) {
				return
			}
		}
	}
}

// below returns the entries below a directory, which stand side by side, and how much of
// their paths is the directory's.
func below(m *eboot.Manifest, dir string) (entries []eboot.ManifestEntry, cut int) {
	if dir == "" {
		return m.Entries, 0
	}
	prefix := dir + "/"
	first := sort.Search(len(m.Entries), func(i int) bool { return m.Entries[i].Path >= prefix })
	n := sort.Search(len(m.Entries)-first, func(i int) bool { return !strings.HasPrefix(m.Entries[first+i].Path, prefix) })
	return m.Entries[first : first+n], len(prefix)
}
