package bootproto

import (
	"net"
	"time"
)

// A stock slave takes no notice when its connection ends while it waits for
// nothing: it sends its next request to the dead port and waits 60 s for the reply
// (erl_prim_loader, loop/3 drops {tcp_closed,_}). When its connection ends with a
// request outstanding it looks for another server at once. And one that reads many
// modules in one call forgets the server that it finds meanwhile, and waits 60 s for
// each module left (gm_get_mods/7). So a server that wants to be rid of a slave
// serves it until it was quiet for a while, and then ends the connection when the
// slave asks again, with that request unanswered.
//
// A slave that runs our loader takes notice of every end, and goes on with another server
// within milliseconds. So when it opens a session its connection is given back by the
// Holder, and a server that wants to be rid of it ends the connection as soon as it was
// quiet for a while.

// Holder keeps the connections of slaves from ending with this process.
type Holder interface {
	// Hold keeps a duplicate of the connection, so that no close of this process
	// ends it; nil: it does not. It must not wait.
	Hold(conn *net.TCPConn) Held
}

// Held is a connection that a Holder keeps. Its methods must not wait.
type Held interface {
	// Busy says whether a request is outstanding.
	Busy(busy bool)
	// Release leaves the connection to the Holder, which ends it when the slave asks
	// again. false: the Holder cannot, and nothing has changed. The connection is
	// closed afterwards.
	Release() bool
	// Drop says that the connection is not to be kept any longer. One that ends was shut
	// down before.
	Drop()
}

// Drain makes slaves go elsewhere without ending Serve: a request that comes after a
// while of quiet ends its connection unanswered; when the time to drain is over, every
// request does. Slaves that still come have that time for themselves. Drain(false) ends it.
func (s *FileServer) Drain(on bool) {
	if !on {
		s.drained.Store(nil)
		return
	}
	now := time.Now()
	if !s.drained.CompareAndSwap(nil, &now) {
		return
	}
	for _, c := range s.connections(nil) {
		if c.opened.Load() { // one that is opened from now on looks whether we drain
			_ = c.conn.SetReadDeadline(now)
		}
	}
}

// drain waits until the connections of a group have ended: see Serve.
func (s *FileServer) drain(g *group) {
	g.draining.Store(true)
	for _, c := range s.connections(g) {
		// Those that a Holder has, or that are opened, look whether they are quiet. A
		// connection that sets a deadline of its own looks at draining afterwards.
		if c.held != nil || c.opened.Load() {
			_ = c.conn.SetReadDeadline(time.Now())
		}
	}
	ended := make(chan struct{})
	go func() {
		g.running.Wait()
		close(ended)
	}()
	limit := time.NewTimer(s.options.Drain)
	defer limit.Stop()
	select {
	case <-ended:
		return
	case <-limit.C:
	}
	g.over.Store(true)
	for _, c := range s.connections(g) {
		// A request that begins now sees that it is over, or is seen here.
		if c.held == nil || c.busy.Load() {
			c.cut(errDraining)
		} else {
			_ = c.conn.SetReadDeadline(time.Now())
		}
	}
	<-ended
}

// unwelcome reports whether a request that begins now ends the connection.
func (c *connection) unwelcome() bool {
	drained := c.server.drained.Load()
	if drained == nil && !c.group.draining.Load() {
		return false
	}
	if c.group.over.Load() || c.now.Sub(c.quietSince) >= c.server.options.Quiet {
		return true
	}
	if drained == nil {
		return false
	}
	began := *drained
	if began.Before(c.began) {
		began = c.began
	}
	return c.now.Sub(began) >= c.server.options.Drain
}

// leaving reports whether the connection is to end without a request of its slave, when
// it was quiet for a while.
func (c *connection) leaving() bool {
	if c.opened.Load() {
		return c.group.draining.Load() || c.server.drained.Load() != nil
	}
	return c.held != nil && c.group.draining.Load()
}

// holding reports whether a Holder has the connection. Only its own goroutine may ask.
func (c *connection) holding() bool { return c.held != nil && !c.opened.Load() }

// leave ends an opened connection that is quiet, or leaves a stock one to the Holder while
// the server stops, and returns nil when the connection is to go on.
func (c *connection) leave() error {
	over := c.group.over.Load()
	quiet := over || c.now.Sub(c.quietSince) >= c.server.options.Quiet
	switch {
	case c.holding() && c.group.draining.Load() && quiet && c.held.Release():
		return errReleased
	case over || quiet && c.opened.Load() && c.leaving():
		return errDraining
	}
	return nil
}

// untilQuiet is when the connection may be left to the Holder, should it be silent
// until then. After a Holder could not take it, it is asked again later.
func (c *connection) untilQuiet() time.Time {
	quiet := c.server.options.Quiet
	if at := c.quietSince.Add(quiet); at.After(c.now) {
		return at
	}
	return c.now.Add(quiet)
}

// outstanding notes whether a request is.
func (c *connection) outstanding(busy bool) {
	c.stir(c.now)
	c.busy.Store(busy)
	if c.holding() {
		c.held.Busy(busy)
	}
}

// hangUp closes the connection. Where there is or was a duplicate, close(2) alone would end
// nothing.
func (c *connection) hangUp() {
	if tcp, ok := c.conn.(*net.TCPConn); ok && c.held != nil {
		_ = tcp.CloseWrite() // the slave may have closed it
	}
	_ = c.conn.Close()
}
