package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sync/errgroup"

	"eboot"
)

// directory is the origin of what stands in a directory.
type directory struct {
	root   *os.Root
	tree   *tree
	paths  []string
	limits Limits
	// variable tars, which are no longer in the tree when they are merged
	varTars map[string]*node
}

var _ origin = (*directory)(nil)

func openDirectory(ctx context.Context, name string, opts Options, rep *report) (_ *Source, err error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = root.Close() // read only: nothing is lost
		}
	}()
	if err := checkLooksLikeTree(name, opts.Boot); err != nil {
		return nil, err
	}
	d := &directory{root: root, tree: newTree(&budget{limits: opts.Limits}), limits: opts.Limits, varTars: map[string]*node{}}
	w, err := newWalker(ctx, root, d.tree, opts, rep)
	if err != nil {
		return nil, err
	}
	if err := d.read(ctx, w, opts); err != nil {
		return nil, err
	}
	return newSource(d.tree, d, false, opts, rep)
}

// read walks the names and hashes every file once, several at a time, beside the walk:
// a disk with a cold cache is kept busy, and so are the processors.
func (d *directory) read(ctx context.Context, w *walker, opts Options) error {
	kept := &keeper{}
	bytesRead := newProgress(opts.Progress)
	batches := make(chan []file, 256)
	group, groupCtx := errgroup.WithContext(ctx)
	for range min(max(runtime.GOMAXPROCS(0), 4), 16) {
		group.Go(func() error {
			r := &reader{directory: d, hasher: newHasher(kept, opts.Boot), opts: opts, progress: bytesRead}
			defer r.leave()
			for batch := range batches {
				for _, f := range batch {
					if err := r.read(groupCtx, f.path, f.node); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(batches)
		return d.walk(groupCtx, w, opts, func(batch []file) error {
			for _, f := range batch {
				bytesRead.expect(f.node.size)
			}
			select {
			case batches <- batch:
				return nil
			case <-groupCtx.Done():
				return context.Cause(groupCtx)
			}
		})
	})
	if err := group.Wait(); err != nil {
		return err
	}
	d.paths = d.tree.sorted()
	return d.readVariableTars(ctx, kept)
}

// file is one that the walk has found.
type file struct {
	path string
	node *node
}

// neighbours are as many files as one goroutine takes at once: they mostly stand in
// one directory, which it keeps open.
const neighbours = 16

// walk hands out every file of the tree, neighbours together.
func (d *directory) walk(ctx context.Context, w *walker, opts Options, hand func([]file) error) error {
	var batch []file
	w.ctx = ctx
	w.found = func(p string, n *node) error {
		if batch = append(batch, file{p, n}); len(batch) < neighbours {
			return nil
		}
		full := batch
		batch = nil
		return hand(full)
	}
	if err := w.walk("", domain{}, nil); err != nil {
		return err
	}
	if !opts.Dereference {
		if err := d.tree.refuseLeavingLinks(false); err != nil {
			return err
		}
	}
	return hand(batch)
}

// reader is one goroutine of the first pass.
type reader struct {
	directory *directory
	hasher    *hasher
	opts      Options
	progress  *progress

	name string // of the directory that it read from last
	root *os.Root
}

// read hashes the file n at p, and puts it when it is wanted.
func (r *reader) read(ctx context.Context, p string, n *node) error {
	f, err := r.open(p, n)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := r.hasher.read(ctx, f, p, n, r.progress)
	if err != nil || r.opts.Want == nil || !r.opts.Want(n.digest) {
		return err
	}
	if content != nil {
		return r.opts.Put(n.digest, n.size, bytes.NewReader(content))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out := &delivery{put: r.opts.Put}
	return out.file(ctx, p, n, f)
}

func (r *reader) open(p string, n *node) (*os.File, error) {
	dir := path.Dir(p)
	if n.outside != "" || dir == "." {
		return r.directory.open(p, n)
	}
	if dir != r.name {
		r.leave()
		root, err := r.directory.root.OpenRoot(filepath.FromSlash(dir))
		if err != nil {
			return nil, openError(p, err)
		}
		r.name, r.root = dir, root
	}
	return openFile(r.root.OpenFile, path.Base(p), p, n)
}

// leave closes the directory that is open.
func (r *reader) leave() {
	if r.root != nil {
		_ = r.root.Close() // read only: nothing is lost
	}
	r.name, r.root = "", nil
}

// readVariableTars reads the few files that may be one a second time, as
// archives: one after the other, since they share one budget.
func (d *directory) readVariableTars(ctx context.Context, kept *keeper) error {
	shared, h := &budget{limits: d.limits}, newHasher(kept, "")
	for _, p := range d.paths {
		n := d.tree.nodes[p]
		if n.kind != eboot.KindFile || path.Dir(p) != "." || !varTarName.MatchString(p) {
			continue
		}
		f, err := d.open(p, n)
		if err != nil {
			return err
		}
		before := n.digest
		err = readVariableTar(ctx, p, n, f, h, shared)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if n.digest != before {
			return changed(p)
		}
		d.varTars[p] = n
	}
	return nil
}

// open opens the file n at p for reading.
func (d *directory) open(p string, n *node) (*os.File, error) {
	if n.outside != "" {
		return openFile(os.OpenFile, n.outside, p, n)
	}
	return openFile(d.root.OpenFile, filepath.FromSlash(p), p, n)
}

// openFile never waits, as opening a named pipe would that stands there since the walk.
func openFile(open func(string, int, os.FileMode) (*os.File, error), name, p string, n *node) (*os.File, error) {
	f, err := open(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(p, err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != n.size) {
		err = changed(p)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openError names the file p in err.
func openError(p string, err error) error {
	var pathError *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return changed(p)
	case errors.As(err, &pathError):
		pathError.Path = p
	}
	return err
}

// deliver is the second pass.
func (d *directory) deliver(ctx context.Context, out *delivery) error {
	for _, p := range d.paths {
		n := d.tree.nodes[p]
		if out.done() {
			return nil
		}
		if n == nil || n.kind != eboot.KindFile || !out.wanted[n.digest] {
			continue
		}
		if err := d.with(p, n, func(r io.Reader) error { return out.file(ctx, p, n, r) }); err != nil {
			return err
		}
	}
	for p, n := range d.varTars {
		if !n.varTar.merged || out.done() {
			continue
		}
		if err := d.with(p, n, func(r io.Reader) error { return n.varTar.scan.deliver(ctx, r, d.limits, out) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *directory) with(p string, n *node, read func(io.Reader) error) error {
	f, err := d.open(p, n)
	if err != nil {
		return err
	}
	return errors.Join(read(f), f.Close())
}

// Close closes the directory.
func (d *directory) Close() error { return d.root.Close() }

// checkLooksLikeTree refuses a directory that cannot be a release before all
// of it is read: somebody may have named /usr. It follows symlinks wherever they
// lead; whether they may lead there, the walk says, and names the link.
func checkLooksLikeTree(name, boot string) error {
	if boot != "" {
		return nil
	}
	dir := os.DirFS(name)
	for _, pattern := range []string{"releases/start_erl.data", "releases/*/*.boot", "bin/start.boot"} {
		if found, _ := fs.Glob(dir, pattern); len(found) > 0 { // the patterns are well formed
			return nil
		}
	}
	var instead []string
	for _, pattern := range []string{
		"lib*/erlang/bin/start.boot", "usr/lib*/erlang/bin/start.boot", "usr/local/lib/erlang/bin/start.boot", "*/bin/start.boot", // installations
		"rel/*/releases/start_erl.data", "_build/*/rel/*/releases/start_erl.data", "*/releases/start_erl.data", // what mix and rebar3 build
	} {
		found, _ := fs.Glob(dir, pattern)
		for _, f := range found {
			instead = append(instead, filepath.Join(name, path.Dir(path.Dir(f))))
		}
	}
	return noBootScript(instead)
}

func noBootScript(instead []string) error {
	const lookedFor = "no boot script: looked for releases/start_erl.data, releases/*/start.boot, bin/start.boot and releases/*/start_clean.boot"
	if len(instead) > 0 {
		return fmt.Errorf("%s; %s has one, publish that, or name one with --boot FILE: %w", lookedFor, instead[0], eboot.ErrInvalid)
	}
	return fmt.Errorf("%s; name one with --boot FILE: %w", lookedFor, eboot.ErrInvalid)
}
