package bootproto

import (
	"context"
	"sync"
	"syscall"
	"time"
)

const (
	// keepAliveAfter is how long nothing may be written to a connection of our loader while
	// a request is outstanding. It leaves a server that is silent for 1.5 s.
	keepAliveAfter = 250 * time.Millisecond
	// keepAliveTick is how much longer it may take. While nobody waits, it is enough to look
	// each keepAliveAfter.
	keepAliveTick = 50 * time.Millisecond
	// controlBeat is how often an idle connection that is to stay open is written to: so that
	// both ends, and what is between them, know that it is there.
	controlBeat = 20 * time.Second
)

// emptyFrame is a keep-alive: a header that says zero. It is never modified.
var emptyFrame = [headerSize]byte{}

// heartbeat sends keep-alives to the connections of a listener on which our loader asked for
// a session. A frame that is written just then is sign of life enough, so it waits for
// nobody: neither for a reply in progress nor for room in a socket's buffer.
type heartbeat struct {
	epoch time.Time     // stirred is the time since
	wake  chan struct{} // of one: there is a first connection, or a slave to be told something

	mu      sync.Mutex // guards what follows
	beating map[*connection]struct{}
}

func newHeartbeat() *heartbeat {
	return &heartbeat{epoch: time.Now(), wake: make(chan struct{}, 1), beating: make(map[*connection]struct{})}
}

func (h *heartbeat) add(c *connection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beating[c] = struct{}{}
	if len(h.beating) == 1 {
		h.rouse()
	}
}

// rouse has run look at its connections now.
func (h *heartbeat) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *heartbeat) remove(c *connection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.beating, c)
}

// run sends keep-alives until ctx ends. While there is no connection it sleeps.
func (h *heartbeat) run(ctx context.Context) {
	timer := time.NewTimer(forever)
	defer timer.Stop()
	var due []*connection
	for {
		var wait time.Duration
		due, wait = h.due(time.Now(), due[:0])
		for _, c := range due {
			c.keepAlive()
		}
		clear(due)
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-timer.C:
		}
	}
}

// due appends the connections that something is to be written to, and says when to look again.
func (h *heartbeat) due(now time.Time, due []*connection) ([]*connection, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.beating) == 0 {
		return due, forever
	}
	wait := keepAliveAfter
	for c := range h.beating {
		quiet := now.Sub(h.epoch) - time.Duration(c.stirred.Load())
		switch {
		case c.restart.Load():
			wait = keepAliveTick // it may not be taken at once
			due = append(due, c)
		case c.busy.Load():
			wait = keepAliveTick
			if quiet >= keepAliveAfter {
				due = append(due, c)
			}
		case quiet >= controlBeat && c.control.Load():
			due = append(due, c)
		}
	}
	return due, wait
}

// beat begins the keep-alives of a connection. It does so before a session is opened:
// that may take longer than the slave waits for a silent server, and a slave that asks for
// one understands them.
func (c *connection) beat() {
	socket, ok := c.conn.(syscall.Conn)
	if !ok || c.raw != nil {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return // the connection was closed
	}
	c.raw = raw
	c.stir(c.now)
	c.group.heart.add(c)
}

// stir notes that a request began or that something was written.
func (c *connection) stir(now time.Time) {
	if c.raw != nil {
		c.stirred.Store(int64(now.Sub(c.group.heart.epoch)))
	}
}

// keepAlive writes an empty frame, or tells the slave to restart, unless a frame is being
// written or the kernel takes none. What it took of an empty one is ended first by whoever
// writes next. After a frame that was cut short it writes nothing: it might be taken for the
// rest.
func (c *connection) keepAlive() {
	if !c.turn.TryLock() {
		return
	}
	defer c.turn.Unlock()
	if c.broken {
		return
	}
	rest := emptyFrame[:]
	switch {
	case c.owed > 0:
		rest = emptyFrame[:c.owed]
	case c.restart.Load():
		c.tellRestart()
		return
	}
	n := c.sendNow(rest)
	if n <= 0 {
		return // its own goroutine sees an error, too
	}
	c.owed = len(rest) - n
	c.stir(time.Now())
	c.server.count.keepAlives.Add(1)
}
