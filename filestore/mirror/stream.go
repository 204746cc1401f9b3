package mirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"eboot"
)

// stream is one request to a peer and the reply to it, with an eye on how fast
// that comes. Reading it returns errStalled when fewer than hungBytes come in
// Options.Stall, and errSlow when others could send the item faster. One
// goroutine uses it.
type stream struct {
	pull   *pull
	source *source
	peer   Peer
	item   *item // that is being read now

	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer // cancels ctx; runs only while the peer is waited for
	body   io.ReadCloser
	err    error // of the next Read

	window, whole pace
}

// pace is what came in the time that was spent waiting for it.
type pace struct {
	bytes  int64
	waited time.Duration
}

func (c *pace) add(n int, waited time.Duration) {
	c.bytes += int64(n)
	c.waited += waited
}

// rate is in bytes/s.
func (c *pace) rate() float64 {
	return float64(c.bytes) / max(c.waited, time.Millisecond).Seconds()
}

// newStream returns a stream that ends with ctx. It must be closed.
func (p *pull) newStream(ctx context.Context, s *source) *stream {
	st := &stream{pull: p, source: s}
	p.mirror.mu.Lock()
	st.peer = s.peer
	p.mirror.mu.Unlock()
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	st.timer = time.AfterFunc(time.Hour, func() { st.cancel(errStalled) })
	st.timer.Stop()
	return st
}

// do sends the request and waits for the head of the reply. verify is how many
// bytes the peer may have to hash before.
func (st *stream) do(method, path string, body []byte, verify int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(st.ctx, method, st.peer.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w: %w", st.source.id, err, eboot.ErrInvalid)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if st.peer.Client != nil {
		client.Transport = st.peer.Client.Transport
	}
	st.timer.Reset(st.pull.mirror.opts.Stall + time.Duration(verify)*time.Second/hashRate)
	res, err := client.Do(req)
	st.timer.Stop()
	if err != nil {
		return nil, st.cause(err)
	}
	st.body = res.Body
	return res, nil
}

// cause is why err came: that of the context, when it has ended.
func (st *stream) cause(err error) error {
	if cause := context.Cause(st.ctx); cause != nil {
		return cause
	}
	return err
}

// Read reads the body of the reply.
func (st *stream) Read(b []byte) (int, error) {
	if st.err != nil {
		return 0, st.err
	}
	stall := st.pull.mirror.opts.Stall
	limit := stall
	if st.window.bytes < hungBytes {
		limit -= st.window.waited
	}
	began := time.Now()
	st.timer.Reset(limit)
	n, err := st.body.Read(b)
	st.timer.Stop()
	waited := time.Since(began)
	st.window.add(n, waited)
	st.whole.add(n, waited)
	switch {
	case err == io.EOF:
	case err != nil:
		err = st.cause(err)
	case st.window.waited >= stall:
		switch rate := st.window.rate(); {
		case st.window.bytes < hungBytes:
			st.err = errStalled
		case rate < slowRate && st.pull.better(st.source, st.item, rate):
			st.err = errSlow
		}
		st.window = pace{}
	}
	return n, err
}

// close ends the request and notes how fast the peer was.
func (st *stream) close() {
	st.timer.Stop()
	if st.body != nil {
		st.body.Close() // nothing to learn: whoever read it knows whether it was whole
	}
	st.cancel(nil)
	if st.whole.bytes < hungBytes {
		return
	}
	st.pull.mirror.mu.Lock()
	st.source.rate = st.whole.rate()
	st.pull.mirror.mu.Unlock()
}
