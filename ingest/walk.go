package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"eboot"
)

// walker reads the names below a directory into a tree. It opens no files.
type walker struct {
	ctx      context.Context
	root     *os.Root
	absolute string // the root as it was named
	real     string // the root without symlinks
	tree     *tree
	opts     Options
	report   *report
	found    func(p string, n *node) error // told of every file that was taken in
}

// domain is a directory whose symlinks may point anywhere into it: the root, or
// a directory outside of it that a followed link led to.
type domain struct {
	outside string // real path; empty: the root
	at      string // where it stands in the tree
}

func newWalker(ctx context.Context, root *os.Root, t *tree, opts Options, rep *report) (*walker, error) {
	absolute, err := filepath.Abs(root.Name())
	if err != nil {
		return nil, err
	}
	onDisk, err := filepath.EvalSymlinks(absolute)
	if err != nil {
		return nil, err
	}
	return &walker{ctx: ctx, root: root, absolute: absolute, real: onDisk, tree: t, opts: opts, report: rep}, nil
}

// realOf returns the path on disk of the name p of the tree, in dom.
func (w *walker) realOf(p string, dom domain) string {
	if dom.outside == "" {
		return filepath.Join(w.real, filepath.FromSlash(p))
	}
	return filepath.Join(dom.outside, filepath.FromSlash(strings.TrimPrefix(strings.TrimPrefix(p, dom.at), "/")))
}

// walk reads the directory that stands at dir of the tree ("": its root).
// above holds the real paths of the directories that the walk is in.
func (w *walker) walk(dir string, dom domain, above []string) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	above = append(above, w.realOf(dir, dom))
	entries, err := w.list(dir, dom)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if e.Name() == "" || strings.Contains(e.Name(), "/") { // no file system does this
			return fmt.Errorf("directory %q: has an entry %q: %w", dir, e.Name(), eboot.ErrInvalid)
		}
		if eboot.IsSecretPath(p) {
			// It may be unreadable, and should be. The placeholder is what
			// removeSecrets removes, and says so.
			if err := w.tree.add(p, &node{kind: eboot.KindDirectory}); err != nil {
				return err
			}
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return changed(p)
		}
		if err != nil {
			return err
		}
		if err := w.visit(p, info, dom, above); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) list(dir string, dom domain) ([]fs.DirEntry, error) {
	var f *os.File
	var err error
	if dom.outside != "" {
		f, err = os.Open(w.realOf(dir, dom))
	} else {
		f, err = w.root.Open(filepath.FromSlash(path.Join(".", dir)))
	}
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(w.opts.Entries + 1) // one more than may be: add refuses it by name
	if errors.Is(err, io.EOF) {
		err = nil
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, errors.Join(err, f.Close())
}

// visit takes one name into the tree, and what is below it.
func (w *walker) visit(p string, info fs.FileInfo, dom domain, above []string) error {
	n := &node{modTime: seconds(info.ModTime())}
	switch mode := info.Mode(); {
	case mode.IsDir():
		n.kind = eboot.KindDirectory
		if err := w.tree.add(p, n); err != nil {
			return err
		}
		return w.walk(p, dom, above)
	case mode.IsRegular():
		n.kind, n.exec, n.size = eboot.KindFile, mode&0o100 != 0, info.Size()
		if dom.outside != "" {
			n.outside = w.realOf(p, dom)
		}
		if err := w.tree.add(p, n); err != nil {
			return err
		}
		return w.found(p, n)
	case mode&fs.ModeSymlink != 0:
		return w.link(p, n, dom, above)
	default:
		return fmt.Errorf("%q: is a %s, which has no place in a bundle: %w", p, modeName(mode), eboot.ErrInvalid)
	}
}

func modeName(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeDevice != 0:
		return "device"
	default:
		return "special file"
	}
}

// link takes the symlink at p into the tree, or what it points to.
func (w *walker) link(p string, n *node, dom domain, above []string) error {
	here := w.realOf(p, dom)
	var target string
	var err error
	if dom.outside == "" {
		target, err = w.root.Readlink(filepath.FromSlash(p))
	} else {
		target, err = os.Readlink(here)
	}
	if err != nil {
		return err
	}
	n.kind = eboot.KindSymlink
	inside := w.relative(p, target, dom)
	if !w.opts.Dereference {
		if inside == "" {
			return leavingLink(p, target, false)
		}
		n.target = inside
		return w.tree.add(p, n)
	}
	to, err := filepath.EvalSymlinks(here)
	switch {
	case err != nil && isDangling(err):
		n.target = target
		if inside != "" {
			n.target = inside
		}
		return w.tree.add(p, n)
	case err != nil:
		return err
	case inside != "" && within(to, w.realOf(dom.at, dom)):
		n.target = inside
		return w.tree.add(p, n)
	case slices.Contains(above, to):
		w.report.warn(fmt.Sprintf("symlink %s points to %s, which it stands in: kept as a link, it leads nowhere", p, target))
		n.target = target
		return w.tree.add(p, n)
	}
	return w.follow(p, to, above)
}

// follow takes in what stands outside the tree, at the real path to, as p.
func (w *walker) follow(p, to string, above []string) error {
	info, err := os.Lstat(to)
	if err != nil {
		return err
	}
	return w.visit(p, info, domain{outside: to, at: p}, above)
}

// relative returns the target of the link at p as one relative to it, or "" when
// it is absolute and outside of dom. Whether a relative one leaves the tree is asked
// of the whole tree later, since only it knows the links on the way.
func (w *walker) relative(p, target string, dom domain) string {
	if !filepath.IsAbs(target) {
		if w.opts.Dereference && !within(filepath.Join(w.realOf(path.Dir(p), dom), target), w.realOf(dom.at, dom)) {
			return ""
		}
		return target
	}
	roots := []string{dom.outside}
	if dom.outside == "" {
		roots = []string{w.absolute, w.real}
	}
	for _, root := range roots {
		if !within(filepath.Clean(target), root) {
			continue
		}
		to, err := filepath.Rel(filepath.Dir(filepath.Join(root, strings.TrimPrefix(p, dom.at))), filepath.Clean(target))
		if err == nil {
			return filepath.ToSlash(to)
		}
	}
	return ""
}

func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// isDangling reports whether a link leads nowhere, or in circles.
func isDangling(err error) bool {
	var pathError *fs.PathError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) ||
		!errors.As(err, &pathError) // filepath.EvalSymlinks has no type for "too many links"
}
