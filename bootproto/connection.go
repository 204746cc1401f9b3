package bootproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"eboot/bootproto/etf"
)

// MaxFrame is the longest request that is read, in bytes without the header. A
// longer one ends the connection.
const MaxFrame = 64 << 10

// A connection keeps buffers of these sizes; larger ones are given back after
// the request that needed them.
const (
	smallRead = 1 << 10
	smallName = 512
	smallOut  = 4 << 10
)

// ErrSlaveClosed stands in the reason of a connection's end (Session.Close) when the slave closed
// it in the middle of a request. A reset is a syscall.Errno there.
var ErrSlaveClosed = errors.New("closed by the slave")

// Why a connection ended.
var (
	errFirstByte  = errors.New("the slave sent nothing after connecting")
	errFrameTime  = errors.New("the slave did not complete a request in time")
	errIdle       = errors.New("idle for too long")
	errDisplaced  = errors.New("the slave was silent, and others needed its place")
	errProgress   = errors.New("the slave did not take the reply in time")
	errTooLong    = errors.New("the request is longer than 64 KiB")
	errCutShort   = fmt.Errorf("in the middle of a request: %w", ErrSlaveClosed)
	errDraining   = errors.New("the server is stopping or drained")
	errReleased   = errors.New("the server is stopping; the connection stays open until its slave asks again")
	errWrongSize  = errors.New("the content is shorter than its size")
	errFrameLimit = errors.New("the content does not fit into a frame")
	errFetch      = errors.New("malformed request for files, or none of a slave that opened a session")

	// The slave closed the connection between two requests, as it should.
	errClosed = fmt.Errorf("between two requests: %w", ErrSlaveClosed)
)

// connection is one TCP connection of a slave and the goroutine that serves it:
// one request is read, answered and written at a time.
type connection struct {
	server *FileServer
	group  *group
	conn   net.Conn
	slave  netip.AddrPort
	began  time.Time   // when it was accepted
	held   Held        // nil: nobody keeps it
	busy   atomic.Bool // a request is outstanding
	place  place       // guarded by server.mu

	guard   sync.Mutex            // held while Allowed or Close is called
	session Session               // nil once closed
	ended   atomic.Pointer[error] // why another goroutine closed conn

	reading  // what arrives
	writing  // what leaves
	extended // what our loader adds
}

// reading is the buffer of what was received, and the deadline of the next read.
type reading struct {
	buffer     []byte
	start, end int       // what is not consumed yet
	now        time.Time // when the latest read returned
	quietSince time.Time // when the latest reply was written
	waiting    error     // what has happened when the deadline passes
	deadline   time.Time // that of the connection is earlier while the server stops
	name       []byte    // scratch for the name in a request
}

// run serves the connection until it ends.
func (c *connection) run(session Session) {
	reason := c.serve(session)
	if reason == errReleased {
		_ = c.conn.Close() // the Holder's duplicate keeps it open
	} else {
		c.hangUp()
		if c.holding() {
			c.held.Drop()
		}
	}
	if cause := c.ended.Load(); cause != nil {
		reason = *cause
	}
	c.server.debug.log(time.Now(), "connection of a slave ended", func() []any {
		return []any{"slave", c.slave, "erts", c.group.erts, "reason", oneLine(reason.Error())}
	})
	if reason == errClosed {
		reason = nil
	}
	c.guard.Lock()
	defer c.guard.Unlock()
	c.session = nil
	session.Close(reason)
}

// cut closes the connection from another goroutine.
func (c *connection) cut(reason error) {
	c.ended.CompareAndSwap(nil, &reason)
	c.hangUp()
}

// recheck asks whether the slave is still allowed.
func (c *connection) recheck() error {
	c.guard.Lock()
	defer c.guard.Unlock()
	if c.session == nil {
		return nil
	}
	return c.session.Allowed()
}

func (c *connection) serve(session Session) error {
	c.buffer = make([]byte, smallRead)
	c.now = time.Now()
	c.quietSince = c.now
	c.files, _ = session.(Extended)
	if err := c.expect(errFirstByte, c.server.options.FirstByteTimeout); err != nil {
		return err
	}
	for {
		frame, err := c.next()
		if err != nil {
			return err
		}
		c.server.count.requests.Add(1)
		n, err := c.answer(session, frame)
		c.now = time.Now() // a long reply to a slow slave is no idleness of its
		c.quietSince = c.now
		c.server.count.bytesSent.Add(uint64(n))
		if err != nil {
			return err
		}
		c.stir(c.now)
		if c.start == c.end {
			c.outstanding(false)
		}
		if n > 0 { // a report is not answered
			session.Sent(int(n))
		}
		c.shrink()
	}
}

// next returns the payload of the next frame, valid until it is called again.
func (c *connection) next() ([]byte, error) {
	for {
		have := c.buffer[c.start:c.end]
		if len(have) >= headerSize {
			length := binary.BigEndian.Uint32(have)
			if length > MaxFrame {
				c.server.count.malformed.Add(1)
				return nil, errTooLong
			}
			if len(have) >= headerSize+int(length) {
				c.start += headerSize + int(length)
				c.spoke()
				return have[headerSize : headerSize+int(length)], nil
			}
		}
		if err := c.read(len(have)); err != nil {
			return nil, err
		}
	}
}

// read waits for more bytes. have is how many of the next frame are there.
func (c *connection) read(have int) error {
	switch {
	case have > 0 && c.waiting != errFrameTime:
		if err := c.expect(errFrameTime, c.server.options.FrameTimeout); err != nil {
			return err
		}
	case have == 0 && c.waiting == nil:
		if err := c.expect(errIdle, c.idleLimit()); err != nil {
			return err
		}
	}
	c.room(have)
	n, err := c.conn.Read(c.buffer[c.end:])
	c.now = time.Now()
	c.end += n
	switch {
	case n > 0 && have == 0:
		c.outstanding(true)
		if c.unwelcome() {
			return errDraining
		}
		return nil // an error comes again
	case n > 0 || err == nil:
		return nil
	case timedOut(err) && c.now.Before(c.deadline): // the server stops
		if have == 0 {
			if err := c.leave(); err != nil {
				return err
			}
		}
		return c.arm(have)
	case timedOut(err):
		c.server.count.timeouts.Add(1)
		return c.waiting
	case errors.Is(err, io.EOF) && have > 0:
		return errCutShort
	case errors.Is(err, io.EOF):
		return errClosed
	default:
		return fmt.Errorf("read a request: %w", err)
	}
}

// timedOut reports whether a deadline passed.
func timedOut(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// room makes space behind what was received. The buffer grows with what arrived,
// not with what a header promises.
func (c *connection) room(have int) {
	if c.end < len(c.buffer) && have > 0 {
		return
	}
	switch {
	case have == 0:
		c.start, c.end = 0, 0
		if len(c.buffer) > smallRead {
			c.buffer = make([]byte, smallRead)
		}
	case c.start > 0:
		c.end = copy(c.buffer, c.buffer[c.start:c.end])
		c.start = 0
	default:
		larger := make([]byte, min(2*len(c.buffer), headerSize+MaxFrame))
		copy(larger, c.buffer[:c.end])
		c.buffer = larger
	}
}

// expect sets the deadline of the following reads; what is the error when it
// passes. Setting it costs more than the rest of a small request, so an idle
// deadline that has most of its time left is kept.
func (c *connection) expect(what error, limit time.Duration) error {
	if c.waiting = what; what != errIdle {
		c.server.mu.Lock()
		c.server.places.hush(c.now, &c.place)
		c.server.mu.Unlock()
	}
	if left := c.deadline.Sub(c.now); what == errIdle && left <= limit && left > limit-limit/8 {
		return nil
	}
	c.deadline = c.now.Add(limit)
	return c.arm(c.end - c.start)
}

// spoke notes that a request is whole. Most are when their first byte is seen, and cost
// nothing here.
func (c *connection) spoke() {
	if c.waiting == errFirstByte || c.waiting == errFrameTime {
		c.server.mu.Lock()
		c.server.places.speak(&c.place)
		c.server.mu.Unlock()
	}
	c.waiting = nil
}

// arm sets the deadline of the next read. have is how many bytes of a request are there.
func (c *connection) arm(have int) error {
	for {
		leaving := have == 0 && c.leaving()
		deadline := c.deadline
		if quiet := c.untilQuiet(); leaving && quiet.Before(deadline) {
			deadline = quiet
		}
		if err := c.conn.SetReadDeadline(deadline); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		// A drain that began meanwhile has set its deadline before us.
		if leaving || have > 0 || !c.leaving() {
			return nil
		}
	}
}

// answer handles one request and returns the length of the reply.
func (c *connection) answer(session Session, frame []byte) (int64, error) {
	r := parseRequest(frame, c.name[:0])
	c.name = r.name
	replies := c.server.replies
	if r.op > operations && c.files != nil {
		if what := extensionOf(frame); what != "" {
			return c.answerExtended(what, frame)
		}
	}
	switch {
	case r.op == opUndecodable:
		c.server.count.malformed.Add(1)
		c.server.count.errors.Add(1)
		return c.send(replies.undecodable, nil)
	case r.op == opUnknown:
		c.server.count.errors.Add(1)
		c.server.debug.log(c.now, "unknown request", func() []any {
			text, _ := etf.Format(frame)
			return []any{"slave", c.slave, "request", oneLine(text)}
		})
		return c.send(replies.unknown, nil)
	case r.fault != faultNone:
		c.server.count.errors.Add(1)
		return c.send(replies.fault[r.op][r.fault], nil)
	}
	switch r.op {
	case opGet:
		content, err := session.Get(r.name)
		if err != nil {
			return c.refuse(r, err)
		}
		return c.sendContent(content)
	case opListDir:
		names, err := session.List(r.name)
		if err != nil {
			return c.refuse(r, err)
		}
		c.out = appendNames(c.out[:0], names)
	case opReadFileInfo, opReadLinkInfo:
		info, err := session.Stat(r.name, r.op == opReadFileInfo)
		if err != nil {
			return c.refuse(r, err)
		}
		c.out = appendInfo(c.out[:0], r.op, info)
	case opGetCwd:
		c.out = appendCwd(c.out[:0], session.WorkingDirectory())
	}
	return c.send(c.out, nil)
}

// refuse answers a POSIX error, or ends the connection: what a slave is told is
// final, so only what is true of the bundle may be told.
func (c *connection) refuse(r request, err error) (int64, error) {
	errno, ok := errnoOf(err)
	if !ok {
		return 0, fmt.Errorf("%s %q: %w", r.op, r.name, err)
	}
	c.server.count.errors.Add(1)
	return c.send(c.server.replies.posix(r.op, errno), nil)
}

// errnoOf finds a POSIX error in a chain.
func errnoOf(err error) (syscall.Errno, bool) {
	if errno, ok := err.(syscall.Errno); ok { // the hot path: no such file
		return errno, true
	}
	return errors.AsType[syscall.Errno](err)
}

// shrink gives large scratch buffers back.
func (c *connection) shrink() {
	if cap(c.name) > smallName {
		c.name = nil
	}
	if cap(c.out) > smallOut {
		c.out = nil
	}
}
