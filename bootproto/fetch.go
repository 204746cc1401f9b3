package bootproto

import (
	"bytes"
	"fmt"
	"iter"
	"math"
	"net"
	"time"
	"unicode/utf8"
)

// Bounds of a batch: it is written when it has reached one of them.
const (
	batchSize   = 256 << 10
	batchParts  = 512 // buffers of one writev
	batchDelay  = 5 * time.Millisecond
	batchFrames = 16 << 10 // bytes that are kept for the next stream
)

// A link that takes less than slowRate bytes a second counts as slow. Less than slowLeast
// bytes say nothing: the kernel takes them at once, or the scheduler was elsewhere.
const (
	slowRate  = 12e6
	slowLeast = 64 << 10
)

// batch is frames that are written together: contents where they are, in the caches of
// the session, and everything between them in frames. A connection has one only while it
// streams.
type batch struct {
	frames []byte
	cut    int // what of frames is in parts already
	parts  [batchParts][]byte
	count  int       // of parts
	size   int64     // of the contents
	since  time.Time // when its first frame came; zero: it is empty
}

// add puts a frame into the batch, whose last bytes are data. frame is what was appended
// to frames.
func (b *batch) add(frames, data []byte) {
	b.frames = frames
	if len(data) == 0 {
		return
	}
	b.parts[b.count], b.parts[b.count+1] = b.frames[b.cut:], data
	b.count += 2
	b.cut = len(b.frames)
	b.size += int64(len(data))
}

// full reports whether it is time to write the batch.
func (b *batch) full(now time.Time) bool {
	if b.since.IsZero() {
		b.since = now
	}
	return b.size+int64(len(b.frames)) >= batchSize || b.count+2 >= batchParts || now.Sub(b.since) >= batchDelay
}

// buffers is all of the batch.
func (b *batch) buffers() net.Buffers {
	if b.cut < len(b.frames) {
		b.parts[b.count] = b.frames[b.cut:]
		b.count++
		b.cut = len(b.frames)
	}
	return b.parts[:b.count]
}

func (b *batch) reset() {
	clear(b.parts[:b.count])
	if cap(b.frames) > batchFrames {
		b.frames = nil
	}
	b.frames, b.cut, b.count, b.size, b.since = b.frames[:0], 0, 0, 0, time.Time{}
}

// stream answers a request for files: a frame for each path, in order, and a last one.
func (c *connection) stream(paths iter.Seq[[]byte]) (int64, error) { return c.streamRest(0, paths) }

// streamRest does so after the frames of count files.
func (c *connection) streamRest(count int, paths iter.Seq[[]byte]) (int64, error) {
	b := c.server.batches.Get().(*batch)
	defer c.server.batches.Put(b)
	defer b.reset()
	sent := int64(0)
	for path := range paths {
		count++
		n, err := c.streamFile(b, path)
		if sent += n; err != nil {
			return sent, err
		}
	}
	b.add(appendDone(b.frames, count), nil)
	n, err := c.flush(b, Content{})
	return sent + n, err
}

// streamFile adds one file to the batch, which it writes when that is full. After an error
// that is not final for the file, what is in the batch is written all the same: it is one
// thing less that the slave asks another server for.
func (c *connection) streamFile(b *batch, path []byte) (int64, error) {
	content, reason, err := c.fetch(path)
	switch {
	case err != nil:
		n, _ := c.flush(b, Content{})
		return n, err
	case reason != "":
		b.add(appendFileError(b.frames, path, reason), nil)
	case content.Reader != nil:
		defer content.Reader.Close() //nolint:errcheck // it was read only
		b.add(appendFile(b.frames, path, content.Packed, content.Size), nil)
		c.server.count.fetched.Add(1)
		return c.flush(b, content)
	default:
		b.add(appendFile(b.frames, path, content.Packed, content.Size), content.Data)
		c.server.count.fetched.Add(1)
	}
	if !b.full(time.Now()) {
		return 0, nil
	}
	return c.flush(b, Content{})
}

// fetch asks the session for a file. A reason is what the slave is told instead.
func (c *connection) fetch(path []byte) (content Content, reason string, err error) {
	if !utf8.Valid(path) || bytes.IndexByte(path, 0) >= 0 {
		return Content{}, faultNames[faultBadarg], nil
	}
	content, err = c.files.Fetch(path, c.slow)
	if err != nil {
		if errno, ok := errnoOf(err); ok {
			return Content{}, posixAtom(errno), nil
		}
		return Content{}, "", fmt.Errorf("fetch %q: %w", path, err)
	}
	if content, err = sized(content); err != nil {
		return Content{}, "", fmt.Errorf("fetch %q: %w", path, err)
	}
	return content, "", nil
}

// sized returns a content with its size, or closes it when that does not fit into a frame.
func sized(content Content) (Content, error) {
	if content.Reader == nil {
		content.Size = int64(len(content.Data))
	}
	// A frame has some dozens of bytes beside the path and the content.
	if content.Size < 0 || content.Size > math.MaxUint32-MaxFrame-100 {
		if content.Reader != nil {
			_ = content.Reader.Close() // it was read only
		}
		return Content{}, errFrameLimit
	}
	return content, nil
}

// flush writes the batch, and the content that its last frame was begun for, if that has
// a Reader.
func (c *connection) flush(b *batch, last Content) (int64, error) {
	defer b.reset()
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.turn.Unlock()
	began := time.Now()
	c.buffers = b.buffers()
	sent, err := c.writeBuffers()
	c.buffers = nil // the batch is another's soon
	c.wrote(sent, began)
	if err != nil || last.Reader == nil {
		return sent, err
	}
	n, err := c.writeReader(last)
	c.stir(time.Now())
	return sent + n, err
}

// wrote notes what was written since began, and when that took too long for a fast link.
func (c *connection) wrote(sent int64, began time.Time) {
	now := time.Now()
	c.stir(now)
	if sent >= slowLeast && now.Sub(began).Seconds() > float64(sent)/slowRate {
		c.slow = true
	}
}
