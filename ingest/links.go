package ingest

import (
	"fmt"
	"slices"

	"eboot"
)

// leavingLink is the error of a symlink that points out of the tree.
func leavingLink(p, target string, isArchive bool) error {
	if isArchive {
		return fmt.Errorf("symlink %q: points out of the tree, to %q; an archive holds nothing outside of it, so --dereference cannot help: %w",
			shorten(p), shorten(target), eboot.ErrInvalid)
	}
	return fmt.Errorf("symlink %q: points out of the tree, to %q; --dereference takes in what it points to: %w",
		shorten(p), shorten(target), eboot.ErrInvalid)
}

// refuseLeavingLinks returns an error for the first symlink that leads out of t.
func (t *tree) refuseLeavingLinks(isArchive bool) error {
	for _, p := range t.links() {
		if _, result := t.resolve(p); result == leaving {
			return leavingLink(p, t.nodes[p].target, isArchive)
		}
	}
	return nil
}

// warnOfDanglingLinks tells of the symlinks that lead nowhere in t. They are kept.
func (t *tree) warnOfDanglingLinks(rep *report) {
	for _, p := range t.links() {
		if _, result := t.resolve(p); result != resolved {
			rep.warn(fmt.Sprintf("symlink %s: nothing stands at %s in the bundle; it is kept", shorten(p), shorten(t.nodes[p].target)))
		}
	}
}

func (t *tree) links() []string {
	var links []string
	for p, n := range t.nodes {
		if n.kind == eboot.KindSymlink {
			links = append(links, p)
		}
	}
	slices.Sort(links)
	return links
}
