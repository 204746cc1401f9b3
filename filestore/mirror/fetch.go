package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"strconv"

	"eboot"
)

var (
	errStalled = errors.New("nothing came for too long")
	errSlow    = errors.New("slower than others")
)

// fetch asks s for items, all of which it puts or gives back. The error is that of
// the peer; what our own side does wrong ends the Pull.
func (p *pull) fetch(ctx context.Context, s *source, items []*item) error {
	st := p.newStream(ctx, s)
	defer st.close()
	var err error
	var rest []*item
	if items[0].size > bigBlob {
		rest, err = p.fetchBig(ctx, st, items[0])
	} else {
		rest, err = p.fetchBatch(ctx, st, items)
	}
	p.mirror.mu.Lock()
	p.giveBack(rest)
	p.mirror.mu.Unlock()
	return err
}

// fetchBatch fetches small blobs by one request. It returns what it did not put.
func (p *pull) fetchBatch(ctx context.Context, st *stream, items []*item) (rest []*item, err error) {
	body := make([]byte, 0, len(items)*digestSize)
	for _, it := range items {
		body = append(body, it.digest[:]...)
	}
	st.item = items[0]
	res, err := st.do(http.MethodPost, blobsPath, body, 0)
	if err != nil {
		return items, err
	}
	if res.StatusCode != http.StatusOK {
		return items, refusal(res.StatusCode, st)
	}
	r := bufio.NewReaderSize(st, 64<<10)
	for i, it := range items {
		st.item = it
		size, err := readHeader(r, it.digest)
		switch {
		case err != nil:
			return append(rest, items[i:]...), err
		case size == absent:
			p.lacking(st.source, it)
			rest = append(rest, it)
			continue
		case it.size >= 0 && size != it.size, it.size < 0 && size > eboot.MaxManifestSize:
			err := fmt.Errorf("blob %s: reply has %d bytes, the index %d: %w", it.digest.Short(), size, it.size, eboot.ErrInvalid)
			p.refused(st.source, it, err)
			return append(rest, items[i:]...), err
		}
		c := &content{stream: r, left: size}
		err = p.ingest.Put(ctx, it.digest, size, c)
		switch {
		case err == nil:
			p.bytes.Add(size)
			p.got(it, size)
			p.advanced(st.source, 1)
			continue
		case c.err != nil || ctx.Err() != nil:
			return append(rest, items[i:]...), errors.Join(c.err, ctx.Err())
		case !errors.Is(err, eboot.ErrInvalid):
			p.fail(err)
			return append(rest, items[i:]...), nil
		}
		p.refused(st.source, it, err)
		rest = append(rest, it)
		if _, err := io.Copy(io.Discard, c); err != nil {
			return append(rest, items[i+1:]...), err
		}
	}
	return rest, atEnd(r)
}

// atEnd reads the end of a reply, so that the connection can be used again.
func atEnd(r io.Reader) error {
	switch n, err := r.Read(make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("reply: longer than what was asked for: %w", eboot.ErrInvalid)
	case err != io.EOF:
		return err
	}
	return nil
}

// refusal is the error for a reply that is not 200.
func refusal(code int, body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, 200))
	return errors.Join(fmt.Errorf("reply %d: %q: %w", code, bytes.TrimSpace(text), eboot.ErrUnavailable), err)
}

// partial is a big blob in the making: a Put that waits for more.
type partial struct {
	pull   *pull
	pipe   *io.PipeWriter
	offset int64
	from   uint64     // peers whose bytes are in it
	result chan error // of the Put
	unbind func() bool
}

// begin starts the Put of a big blob. It ends by finish, by drop, or with ctx.
func (p *pull) begin(ctx context.Context, it *item) *partial {
	r, w := io.Pipe()
	part := &partial{pull: p, pipe: w, result: make(chan error, 1)}
	part.unbind = context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	p.workers.Go(func() {
		err := p.ingest.Put(ctx, it.digest, it.size, r)
		part.result <- err
		r.CloseWithError(errors.Join(io.ErrClosedPipe, err)) // so that nobody writes on
	})
	return part
}

// Write adds to the blob.
func (part *partial) Write(b []byte) (int, error) {
	n, err := part.pipe.Write(b)
	part.offset += int64(n)
	part.pull.bytes.Add(int64(n))
	return n, err
}

// end closes the blob with err, nil when it is whole, and returns what Put says.
func (part *partial) end(err error) error {
	part.pipe.CloseWithError(err)
	part.unbind()
	err = <-part.result
	if err != nil {
		part.pull.bytes.Add(-part.offset)
	}
	return err
}

// fetchBig fetches one big blob, or the rest of it. It returns it when it was not put.
func (p *pull) fetchBig(ctx context.Context, st *stream, it *item) (rest []*item, err error) {
	self, s := []*item{it}, st.source
	st.item = it
	if it.partial == nil {
		it.partial = p.begin(ctx, it)
	}
	part := it.partial
	due := it.size - part.offset
	res, err := st.do(http.MethodGet, blobsPath+"/"+it.digest.String()+"?offset="+strconv.FormatInt(part.offset, 10), nil, it.size)
	switch {
	case err != nil:
		return self, err
	case res.StatusCode == http.StatusNotFound:
		p.lacking(s, it)
		return self, nil
	case res.StatusCode != http.StatusOK:
		return self, refusal(res.StatusCode, st)
	case res.ContentLength != due:
		err := fmt.Errorf("blob %s: %d bytes to come instead of %d: %w", it.digest.Short(), res.ContentLength, due, eboot.ErrInvalid)
		p.refused(s, it, err)
		return self, err
	}
	part.from |= s.bit
	c := &content{stream: st, left: due}
	_, err = io.CopyBuffer(part, c, make([]byte, 256<<10))
	if c.err != nil {
		if due-c.left >= bigBlob {
			p.advanced(s, 0)
		}
		if it.alone { // nobody else may go on with it
			it.partial = nil
			_ = part.end(c.err)
		}
		return self, c.err
	}
	it.partial = nil
	if err := part.end(err); err != nil { // Put knows why the pipe broke, if it did
		return self, p.unfit(ctx, s, it, part.from, err)
	}
	p.got(it, it.size)
	p.advanced(s, 1)
	return nil, atEnd(st)
}

// unfit draws the conclusion when Put did not take a big blob whose bytes came
// from the peers in from, s the last of them.
func (p *pull) unfit(ctx context.Context, s *source, it *item, from uint64, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.Is(err, eboot.ErrInvalid):
		p.fail(err)
	case bits.OnesCount64(from) > 1:
		it.alone = true // to learn who of them was wrong
		p.mirror.log.Warn("pieces from several peers do not fit, fetching all from one", "digest", it.digest, "error", err)
	default:
		p.refused(s, it, err)
	}
	return nil
}
