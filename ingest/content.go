package ingest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"sync"
	"sync/atomic"

	"eboot"
)

// readSize is also up to which size a file is read once only.
const readSize = 1 << 20

// progress passes on what was read, in steps worth showing.
type progress struct {
	mu     sync.Mutex
	report func(done, total int64)
	done   int64
	total  int64
	next   int64 // report when done reaches it
}

func newProgress(report func(done, total int64)) *progress { return &progress{report: report} }

// expect adds n bytes to what there is to read.
func (p *progress) expect(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total += n
}

func (p *progress) add(n int64) {
	if p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done += n; p.done >= p.next || p.done >= p.total {
		p.next = p.done + 1<<20
		p.report(p.done, p.total)
	}
}

// keeper decides which contents stay in memory: those that say what a tree is.
type keeper struct{ bytes atomic.Int64 }

const (
	maxKeptFile  = 4 << 20
	maxKeptBytes = 64 << 20
)

func (k *keeper) wants(p string, size int64, boot string) bool {
	if size > maxKeptFile {
		return false
	}
	switch ext := path.Ext(p); {
	case ext == ".boot", ext == ".rel", path.Base(p) == "start_erl.data", boot != "" && path.Base(p) == path.Base(boot):
		return k.bytes.Add(size) <= maxKeptBytes
	}
	return false
}

// hasher reads contents. Each goroutine has its own.
type hasher struct {
	hash   hash.Hash
	buffer []byte
	kept   *keeper
	boot   string // Options.Boot
}

func newHasher(kept *keeper, boot string) *hasher {
	return &hasher{hash: sha256.New(), buffer: make([]byte, readSize), kept: kept, boot: boot}
}

// inside returns a hasher for what stands in the file that h reads. It has the buffer of h: an
// archive may hold any number of others, all of which stay, so none has one of its own.
func (h *hasher) inside() *hasher {
	return &hasher{hash: sha256.New(), buffer: h.buffer, kept: h.kept}
}

// read sets the digest of n, the file at p, from the n.size bytes that r must
// have, and keeps them when they are wanted later. It returns the content until
// the next read, or nil when it is too large for that. eboot.ErrConflict: r has more or fewer.
func (h *hasher) read(ctx context.Context, r io.Reader, p string, n *node, bytesRead *progress) ([]byte, error) {
	h.hash.Reset()
	keep := h.kept.wants(p, n.size, h.boot)
	var size int64
	for end := false; !end; {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		got := 0
		for got < len(h.buffer) && !end {
			m, err := r.Read(h.buffer[got:])
			got += m
			if end = errors.Is(err, io.EOF); err != nil && !end {
				return nil, fmt.Errorf("read %q: %w", shorten(p), err)
			}
		}
		if size += int64(got); size > n.size {
			return nil, changed(p)
		}
		h.hash.Write(h.buffer[:got])
		if keep {
			n.content = append(n.content, h.buffer[:got]...)
		}
		bytesRead.add(int64(got))
	}
	if size != n.size {
		return nil, changed(p)
	}
	h.hash.Sum(n.digest[:0])
	if size > int64(len(h.buffer)) {
		return nil, nil
	}
	return h.buffer[:size], nil
}

func changed(p string) error {
	return fmt.Errorf("file %q changed while it was read: %w", shorten(p), eboot.ErrConflict)
}

// delivery is what Source.Blobs still has to hand out.
type delivery struct {
	wanted map[eboot.Digest]bool
	put    func(d eboot.Digest, size int64, r io.Reader) error
}

func (d *delivery) done() bool { return len(d.wanted) == 0 }

// file hands out the content of n, the file at p, that r has.
func (d *delivery) file(ctx context.Context, p string, n *node, r io.Reader) error {
	c := &checkedContent{ctx: ctx, source: r, hash: sha256.New(), path: p, want: n.digest, left: n.size}
	err := d.put(n.digest, n.size, c)
	if c.err != nil {
		err = c.err // the reason, whatever put made of it
	}
	if err != nil {
		return err
	}
	delete(d.wanted, n.digest)
	return nil
}

// checkedContent yields a content of known digest and size. The read that
// yields its last byte fails when it is another content.
type checkedContent struct {
	ctx    context.Context
	source io.Reader
	hash   hash.Hash
	path   string
	want   eboot.Digest
	left   int64
	err    error // why reading failed, other than the end
}

func (c *checkedContent) Read(p []byte) (int, error) {
	switch {
	case c.err != nil:
		return 0, c.err
	case c.ctx.Err() != nil:
		c.err = context.Cause(c.ctx)
		return 0, c.err
	case c.left == 0:
		return 0, io.EOF
	case int64(len(p)) > c.left:
		p = p[:c.left]
	}
	n, err := c.source.Read(p)
	c.hash.Write(p[:n])
	c.left -= int64(n)
	switch {
	case c.left == 0:
		if eboot.Digest(c.hash.Sum(nil)) != c.want {
			c.err = changed(c.path)
		}
	case errors.Is(err, io.EOF):
		c.err = changed(c.path)
	case err != nil:
		c.err = fmt.Errorf("read %q: %w", shorten(c.path), err)
	}
	return n, c.err
}
