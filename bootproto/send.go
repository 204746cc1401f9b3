package bootproto

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// writing is what a connection writes with.
type writing struct {
	turn     sync.Mutex  // held from the first to the last byte of a frame
	owed     int         // bytes of a keep-alive that are still to be written; guarded by turn
	broken   bool        // a frame may have been cut short: nothing may follow; guarded by turn
	out      []byte      // scratch for a reply
	vector   [2][]byte   // backs buffers
	buffers  net.Buffers // what is left to write
	writable time.Time   // deadline of writes
}

// leastRate is how fast a slave must take a reply, in bytes a second, once it
// has not taken all of it within the progress timeout.
const leastRate = 1 << 10

// send writes one frame: header and data with one system call, unless the slave is
// slow. It returns how many bytes were written.
func (c *connection) send(header, data []byte) (int64, error) {
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.turn.Unlock()
	return c.write(header, data)
}

// takeTurn waits until no other goroutine writes, and ends the keep-alive that it
// may not have finished. After an error the turn is not taken.
func (c *connection) takeTurn() error {
	c.turn.Lock()
	if c.owed == 0 {
		return nil
	}
	_, err := c.write(emptyFrame[:c.owed], nil)
	if c.owed = 0; err != nil {
		c.turn.Unlock()
	}
	return err
}

// write writes a part of a frame. The caller has the turn.
func (c *connection) write(header, data []byte) (int64, error) {
	c.vector = [2][]byte{header, data}
	c.buffers = c.vector[:2]
	if len(data) == 0 {
		c.buffers = c.vector[:1]
	}
	sent, err := c.writeBuffers()
	if err != nil {
		c.vector = [2][]byte{}
	}
	return sent, err
}

// writeBuffers writes what is in buffers. The caller has the turn.
func (c *connection) writeBuffers() (sent int64, err error) {
	defer func() { c.broken = c.broken || err != nil }()
	// Now, not when the request was read: the session may have taken its time.
	if err := c.allowWrite(time.Now()); err != nil {
		return 0, err
	}
	for {
		n, err := c.buffers.WriteTo(c.conn)
		sent += n
		if err == nil {
			return sent, nil
		}
		if err := c.stalled(n, err); err != nil {
			c.buffers = nil
			return sent, err
		}
	}
}

// allowWrite sets the deadline of the following writes, unless the one that is
// set has most of its time left.
func (c *connection) allowWrite(now time.Time) error {
	if c.writable.Sub(now) > c.server.options.ProgressTimeout-c.server.options.ProgressTimeout/8 {
		return nil
	}
	c.writable = now.Add(c.server.options.ProgressTimeout)
	if err := c.conn.SetWriteDeadline(c.writable); err != nil {
		return fmt.Errorf("write a reply: %w", err)
	}
	return nil
}

// stalled decides, after a write failed having written n bytes, whether it may go
// on: when only the time ran out, and the slave took something.
func (c *connection) stalled(n int64, err error) error {
	if !timedOut(err) {
		return fmt.Errorf("write a reply: %w", err)
	}
	if n < int64(leastRate*c.server.options.ProgressTimeout.Seconds()) {
		c.server.count.timeouts.Add(1)
		return errProgress
	}
	return c.allowWrite(time.Now())
}

// sendContent writes {get,{ok,Content}} and closes the content.
func (c *connection) sendContent(content Content) (int64, error) {
	if content.Reader == nil {
		content.Size = int64(len(content.Data))
	} else {
		defer content.Reader.Close() //nolint:errcheck // it was read only
	}
	if content.Size < 0 || content.Size > maxContent {
		return 0, errFrameLimit
	}
	c.out = appendContentHeader(c.out[:0], content.Size)
	if content.Reader == nil {
		return c.send(c.out, content.Data)
	}
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.turn.Unlock()
	sent, err := c.write(c.out, nil)
	if err != nil {
		return sent, err
	}
	n, err := c.writeReader(content)
	return sent + n, err
}

// writeReader writes the content of a Reader. The caller has the turn, and closes it.
func (c *connection) writeReader(content Content) (sent int64, err error) {
	defer func() { c.broken = c.broken || err != nil }()
	if content.Size == 0 {
		return 0, nil
	}
	f, isFile := content.Reader.(file)
	tcp, isTCP := c.conn.(*net.TCPConn)
	if isFile && isTCP {
		return c.sendFile(tcp, f, content.Size)
	}
	return c.copyContent(content.Reader, content.Size)
}

// file is what the net package can hand to sendfile(2): an *os.File.
type file interface {
	io.ReadSeeker
	syscall.Conn
}

// sendFile lets the kernel send the next size bytes of a file, by sendfile(2).
func (c *connection) sendFile(tcp *net.TCPConn, f file, size int64) (int64, error) {
	began, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, fmt.Errorf("send a file: %w", err)
	}
	sent := int64(0)
	for sent < size {
		n, err := tcp.ReadFrom(&io.LimitedReader{R: f, N: size - sent})
		sent += n
		switch {
		case err != nil:
			if err := c.stalled(n, err); err != nil {
				return sent, err
			}
			// Where the kernel cannot send this file, it was read ahead of what was
			// written.
			if _, err := f.Seek(began+sent, io.SeekStart); err != nil {
				return sent, fmt.Errorf("send a file: %w", err)
			}
		case sent < size:
			return sent, errWrongSize
		}
	}
	return sent, nil
}

// piece is a buffer that content passes through when the kernel cannot send it.
// A connection holds one only while it sends.
type piece [32 << 10]byte

func (c *connection) copyContent(r io.Reader, size int64) (int64, error) {
	buffer := c.server.pieces.Get().(*piece)
	defer c.server.pieces.Put(buffer)
	sent := int64(0)
	for sent < size {
		n, err := io.ReadFull(r, buffer[:min(int64(len(buffer)), size-sent)])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return sent, errWrongSize
		}
		if err != nil {
			return sent, fmt.Errorf("read content: %w", err)
		}
		c.now = time.Now()
		written, err := c.write(buffer[:n], nil)
		sent += written
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
