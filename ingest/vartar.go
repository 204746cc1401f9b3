package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
)

// variableTar is a file that may be a variable tar: it was read as one while
// it was hashed as a file. Which of both it is, the boot script says.
type variableTar struct {
	scan   *scan
	err    error // why it is no archive that may be taken in
	merged bool
}

// varTarName matches NAME.tar.gz where NAME can be a boot variable, at the top
// of a tree or in its only directory.
var varTarName = regexp.MustCompile(`^(?:[^/]+/)?[A-Za-z_][A-Za-z0-9_]*\.tar\.gz$`)

// readVariableTar hashes the file n at p while it reads it as an archive. An
// error is one of reading content, or the cause why ctx ended; what is wrong with
// the archive is in n.varTar.
func readVariableTar(ctx context.Context, p string, n *node, content io.Reader, h *hasher, b *budget) error {
	h.hash.Reset()
	hashed := &hashedReader{ctx: ctx, reader: content, hasher: h}
	v := &variableTar{scan: &scan{tree: newTree(b), size: n.size, hasher: h.inside()}}
	u, err := newUnpacker(ctx, hashed, b.limits, &progress{})
	if err == nil {
		err = v.scan.read(u)
		u.Close()
	}
	if err != nil {
		v.scan, v.err = nil, fmt.Errorf("variable tar %q: %w", shorten(p), err)
	}
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		return fmt.Errorf("read %q: %w", shorten(p), err)
	}
	if hashed.bytes != n.size {
		return changed(p)
	}
	h.hash.Sum(n.digest[:0])
	n.varTar = v
	return nil
}

type hashedReader struct {
	ctx    context.Context
	reader io.Reader
	hasher *hasher
	bytes  int64
}

func (r *hashedReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.reader.Read(p)
	r.hasher.hash.Write(p[:n])
	r.bytes += int64(n)
	return n, err
}

// merge puts the entries of the variable tar at p into the tree, in its place:
// systools packs them relative to the directory that the variable stands for. An
// entry that is there already must be the same.
func (t *tree) merge(p string) error {
	v := t.nodes[p].varTar
	if v.err != nil {
		return v.err
	}
	t.remove(p)
	for _, name := range v.scan.tree.sorted() {
		n := v.scan.tree.nodes[name]
		err := t.add(name, n)
		if old := t.nodes[name]; errors.Is(err, errDuplicate) && old.same(n) {
			continue
		}
		if err != nil {
			return fmt.Errorf("variable tar %q: %w", p, err)
		}
	}
	v.merged = true
	return nil
}

func (n *node) same(m *node) bool {
	return n.kind == m.kind && n.exec == m.exec && n.digest == m.digest && n.target == m.target
}

// mergeVariableTars merges those that the boot script has a variable for, and
// returns the names of the variables.
func (t *tree) mergeVariableTars(variables map[string][]string) ([]string, error) {
	var merged []string
	for name := range variables {
		n := t.nodes[name+".tar.gz"]
		if n == nil || n.varTar == nil {
			continue
		}
		merged = append(merged, name)
	}
	slices.Sort(merged)
	for _, name := range merged {
		if err := t.merge(name + ".tar.gz"); err != nil {
			return nil, err
		}
	}
	return merged, nil
}
