package api

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"eboot"
)

const (
	uploadBatch = 256 << 10
	uploadQueue = 2 // batches that wait for the connection; two more are filled and sent
)

// uploadIdle is how long a request waits for the next blob. It is less than the
// server's uploadStall: reading and hashing what need not be sent may take long.
const uploadIdle = 10 * time.Second

// upload sends blobs as they come, in requests of its own goroutine: one, unless
// nothing comes for a while. Several goroutines may put at once.
type upload struct {
	mu     sync.Mutex
	batch  []byte // being filled
	blobs  int
	bytes  int64
	closed bool
	bad    error // why no blob is taken: of a content that failed midway: the stream cannot go on

	full  chan []byte
	free  chan []byte
	ended chan struct{}
	err   error // why the goroutine has ended; read it after ended
}

// newUpload calls send for each request; its body is to be read to the end.
func newUpload(send func(body io.ReadCloser) error) *upload {
	u := &upload{
		full: make(chan []byte, uploadQueue), free: make(chan []byte, uploadQueue+2), ended: make(chan struct{}),
	}
	go func() {
		defer close(u.ended)
		for batch := range u.full {
			body := &uploadBody{upload: u, rest: batch, closed: make(chan struct{})}
			u.err = send(body)
			body.Close()
			if u.err != nil {
				return
			}
		}
	}()
	return u
}

// put sends one blob. An error of content is returned as it is, and ends the upload;
// else it is the server's.
func (u *upload) put(d eboot.Digest, size int64, content io.Reader) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bad != nil {
		return u.bad
	}
	var header [blobHeaderSize]byte
	copy(header[:], d[:])
	binary.BigEndian.PutUint64(header[len(d):], uint64(size))
	if cap(u.batch)-len(u.batch) < len(header) {
		if err := u.pass(); err != nil {
			return err
		}
	}
	u.batch = append(u.batch, header[:]...)
	for left := size; left > 0; {
		if len(u.batch) == cap(u.batch) {
			if err := u.pass(); err != nil {
				return err
			}
		}
		n, err := content.Read(u.batch[len(u.batch):min(int64(cap(u.batch)), int64(len(u.batch))+left)])
		u.batch = u.batch[:len(u.batch)+n]
		u.bytes += int64(n)
		if left -= int64(n); err != nil && (err != io.EOF || left > 0) {
			if err == io.EOF {
				err = fmt.Errorf("blob %s: ends %d bytes early: %w", d.Short(), left, eboot.ErrConflict)
			}
			u.bad = err
			return err
		}
	}
	u.blobs++
	return nil
}

// pass hands the batch over to the request, and takes a new one; mu is held.
func (u *upload) pass() error {
	if len(u.batch) > 0 {
		select {
		case u.full <- u.batch:
		case <-u.ended:
			return u.err
		}
	}
	select {
	case u.batch = <-u.free:
	default:
		u.batch = make([]byte, 0, uploadBatch)
	}
	return nil
}

// end sends what is left and waits for the server's answer.
func (u *upload) end() error {
	u.mu.Lock()
	err := u.bad
	if err == nil {
		err = u.pass()
	}
	if !u.closed {
		u.closed, u.bad = true, fmt.Errorf("put blob: upload: %w", os.ErrClosed)
		close(u.full)
	}
	u.mu.Unlock()
	<-u.ended
	if u.err != nil {
		err = u.err
	}
	return err
}

// takeIdle returns the blobs that wait for their batch to become full, and
// whether the stream is at the end of a blob behind them.
func (u *upload) takeIdle() ([]byte, bool) {
	if !u.mu.TryLock() { // one is being put
		return nil, false
	}
	defer u.mu.Unlock()
	if len(u.full) > 0 || u.bad != nil {
		return nil, false
	}
	batch := u.batch
	u.batch = nil
	return batch, true
}

// uploadBody is the body of one request.
type uploadBody struct {
	upload *upload
	batch  []byte // that rest is of
	rest   []byte
	last   bool
	once   sync.Once
	closed chan struct{}
}

// next makes rest the next batch; io.EOF: there is none for this request.
func (b *uploadBody) next() error {
	if b.batch != nil {
		select {
		case b.upload.free <- b.batch[:0]:
		default:
		}
		b.batch = nil
	}
	idle := time.NewTimer(uploadIdle)
	defer idle.Stop()
	for !b.last {
		select {
		case batch, more := <-b.upload.full:
			b.batch, b.rest, b.last = batch, batch, !more
			if more {
				return nil
			}
		case <-idle.C:
			if b.batch, b.last = b.upload.takeIdle(); len(b.batch) > 0 {
				b.rest = b.batch
				return nil
			}
			idle.Reset(uploadIdle)
		case <-b.closed:
			return io.ErrClosedPipe
		}
	}
	return io.EOF
}

func (b *uploadBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// WriteTo saves net/http a copy, and the server a read for each 32 KiB.
func (b *uploadBody) WriteTo(w io.Writer) (written int64, err error) {
	for {
		n, err := w.Write(b.rest)
		written += int64(n)
		if b.rest = b.rest[n:]; err != nil {
			return written, err
		}
		if err := b.next(); err == io.EOF {
			return written, nil
		} else if err != nil {
			return written, err
		}
	}
}

// Close makes a Read that waits return.
func (b *uploadBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}
