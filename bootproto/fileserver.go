package bootproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Limits and timeouts where FileServerOptions has zero.
const (
	DefaultConnectionsPerAddress = 1024
	DefaultConnections           = 8192
	DefaultFirstByteTimeout      = 10 * time.Second
	DefaultFrameTimeout          = 10 * time.Second
	DefaultIdleTimeout           = 90 * time.Second
	DefaultProgressTimeout       = 60 * time.Second
	DefaultQuiet                 = time.Second
	DefaultDrain                 = 20 * time.Second
)

// FileServerOptions is what a FileServer is made of. Zero limits and timeouts
// are the defaults above.
type FileServerOptions struct {
	Host   Host
	Holder Holder       // nil: connections end with this process
	Logger hclog.Logger // nil: nothing is logged

	// How many connections may be open, from one address and in all. Many slaves
	// may share one address. A connection beyond them is closed at once, unless it may
	// have the place of one that does nothing (places).
	ConnectionsPerAddress, Connections int

	FirstByteTimeout time.Duration // from connecting to the first byte
	FrameTimeout     time.Duration // from the first byte of a request to its last
	// IdleTimeout is between two requests. It must be longer than the 60 s after
	// which a stock slave closes an idle connection (erl_prim_loader,
	// INET_IDLE_TIMEOUT). It is kept to within an eighth: up to that much earlier. A
	// connection that is to stay open has none (Opened.Control).
	IdleTimeout time.Duration
	// ProgressTimeout ends a connection whose slave takes less than 1 KiB a second
	// of a reply during this time.
	ProgressTimeout time.Duration
	Quiet           time.Duration // how long a slave must be silent to be no more in the middle of something
	Drain           time.Duration // how long slaves that are not quiet are served while draining
}

// FileServerStats counts since New; Connections is how many are open now.
type FileServerStats struct {
	Connections uint64
	Accepted    uint64 // connections accepted
	Rejected    uint64 // of them closed because of a limit
	Displaced   uint64 // of them closed, having done nothing for a while, to make room for others
	Denied      uint64 // of them closed because the Host or a Recheck said so
	Requests    uint64 // frames received
	Errors      uint64 // requests answered with {error,_}
	Malformed   uint64 // frames that are too long, no term, or a malformed request of the extension
	Timeouts    uint64 // connections ended by a timeout
	BytesSent   uint64 // of replies
	Opens       uint64 // sessions opened by our loader
	Fetched     uint64 // files sent to it, several at a request
	KeepAlives  uint64 // empty frames sent to it
}

// FileServer answers the requests of slaves for files. It may serve several
// listeners at once, one for each ERTS version.
type FileServer struct {
	options  FileServerOptions // no zeros
	replies  *errorReplies
	refusals *refusals
	debug    *debugLog
	pieces   sync.Pool // of *piece
	batches  sync.Pool // of *batch
	count    fileCounters

	drained atomic.Pointer[time.Time] // since when; nil: it is not. See Drain

	mu       sync.Mutex // guards what follows
	places   places
	sessions map[*connection]struct{} // open connections that the Host accepted
}

// fileCounters are those of FileServerStats.
type fileCounters struct {
	accepted, rejected, displaced, denied            atomic.Uint64
	requests, errors, malformed, timeouts, bytesSent atomic.Uint64
	opens, fetched, keepAlives                       atomic.Uint64
}

// group is the connections of one call of Serve.
type group struct {
	erts     string
	draining atomic.Bool // Serve is to return
	over     atomic.Bool // now
	running  sync.WaitGroup
	heart    *heartbeat
}

// NewFileServer makes a FileServer. It starts nothing.
func NewFileServer(options FileServerOptions) *FileServer {
	if options.Logger == nil {
		options.Logger = hclog.NewNullLogger()
	}
	options.ConnectionsPerAddress = positive(options.ConnectionsPerAddress, DefaultConnectionsPerAddress)
	options.Connections = positive(options.Connections, DefaultConnections)
	options.FirstByteTimeout = positive(options.FirstByteTimeout, DefaultFirstByteTimeout)
	options.FrameTimeout = positive(options.FrameTimeout, DefaultFrameTimeout)
	options.IdleTimeout = positive(options.IdleTimeout, DefaultIdleTimeout)
	options.ProgressTimeout = positive(options.ProgressTimeout, DefaultProgressTimeout)
	options.Quiet = positive(options.Quiet, DefaultQuiet)
	options.Drain = positive(options.Drain, DefaultDrain)
	return &FileServer{
		options:  options,
		replies:  newErrorReplies(),
		refusals: &refusals{logger: options.Logger},
		debug:    &debugLog{logger: options.Logger},
		pieces:   sync.Pool{New: func() any { return new(piece) }},
		batches:  sync.Pool{New: func() any { return new(batch) }},
		places:   newPlaces(options.ConnectionsPerAddress, options.Connections, options.Quiet),
		sessions: make(map[*connection]struct{}),
	}
}

// Stats returns the counters.
func (s *FileServer) Stats() FileServerStats {
	s.mu.Lock()
	open := s.places.open
	s.mu.Unlock()
	return FileServerStats{
		Connections: uint64(open),
		Accepted:    s.count.accepted.Load(),
		Rejected:    s.count.rejected.Load(),
		Displaced:   s.count.displaced.Load(),
		Denied:      s.count.denied.Load(),
		Requests:    s.count.requests.Load(),
		Errors:      s.count.errors.Load(),
		Malformed:   s.count.malformed.Load(),
		Timeouts:    s.count.timeouts.Load(),
		BytesSent:   s.count.bytesSent.Load(),
		Opens:       s.count.opens.Load(),
		Fetched:     s.count.fetched.Load(),
		KeepAlives:  s.count.keepAlives.Load(),
	}
}

// Full reports whether a further connection from addr would be refused by a
// limit. Discovery must then be silent: a slave that is refused does not come
// back to the same answer.
func (s *FileServer) Full(addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.places.room(time.Now(), addr.Unmap())
	return !ok
}

// Serve accepts slaves of one ERTS version on a listener, and closes it. When
// ctx ends it accepts no more, leaves each connection that was quiet for a while to
// the Holder, and returns nil when no connection is left. Those that the Holder does
// not have end when they ask after such a while. When the time to drain is over, the
// Holder gets all that wait for no reply, and the others are closed.
// When the listener fails it drains in the same way and returns the error. Running out
// of descriptors or memory is not a failure: accepting goes on after a pause.
func (s *FileServer) Serve(ctx context.Context, ln net.Listener, erts string) error {
	g := &group{erts: erts, heart: newHeartbeat()}
	accepting, stop := context.WithCancel(ctx)
	var closing sync.WaitGroup
	closing.Go(func() {
		<-accepting.Done()
		_ = ln.Close()
	})
	beating, silence := context.WithCancel(context.WithoutCancel(ctx))
	var heart sync.WaitGroup
	heart.Go(func() { g.heart.run(beating) })
	err := s.accept(accepting, ln, g)
	stop()
	closing.Wait()
	s.drain(g)
	silence()
	heart.Wait()
	s.refusals.close()
	return err
}

func (s *FileServer) accept(ctx context.Context, ln net.Listener, g *group) error {
	var pause backoff
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("accept slaves: %w", err)
			}
			s.options.Logger.Error("accept slaves", "error", err, "open", s.Stats().Connections)
			pause.wait(ctx)
			continue
		}
		pause.reset()
		s.count.accepted.Add(1)
		slave := remote(conn)
		if err := s.options.Host.Admit(slave.Addr()); err != nil {
			_ = conn.Close()
			s.deny(slave.Addr(), g.erts, err)
			continue
		}
		c := &connection{server: s, group: g, conn: conn, slave: slave, began: time.Now()}
		if !s.enter(c) {
			s.count.rejected.Add(1)
			_ = conn.Close()
			s.refusals.log(c.began, slave.Addr(), "too many connections", "slave refused", g.erts)
			continue
		}
		g.running.Go(func() { s.serve(c) })
	}
}

func remote(conn net.Conn) netip.AddrPort {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	addr := tcp.AddrPort()
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// serve is the goroutine of one connection.
func (s *FileServer) serve(c *connection) {
	defer s.leave(c)
	session, err := s.options.Host.Connect(c.slave, c.group.erts)
	if err != nil {
		s.deny(c.slave.Addr(), c.group.erts, err)
		_ = c.conn.Close()
		return
	}
	c.session = session
	if tcp, ok := c.conn.(*net.TCPConn); ok && s.options.Holder != nil {
		c.held = s.options.Holder.Hold(tcp)
	}
	s.mu.Lock()
	s.sessions[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
		c.group.heart.remove(c)
	}()
	// A Recheck or the end of a drain between Connect and now has not seen this
	// connection.
	if err := c.recheck(); err != nil {
		s.deny(c.slave.Addr(), c.group.erts, err)
		c.cut(err)
	}
	if c.group.over.Load() {
		c.cut(errDraining)
	}
	c.run(session)
}

func (s *FileServer) deny(slave netip.Addr, erts string, reason error) {
	s.count.denied.Add(1)
	s.refusals.log(time.Now(), slave, reason.Error(), "slave refused", erts)
}

// enter gives a connection a place, unless a limit is reached.
func (s *FileServer) enter(c *connection) bool {
	s.mu.Lock()
	displaced, ok := s.places.enter(c.began, c)
	s.mu.Unlock()
	if displaced != nil {
		s.count.displaced.Add(1)
		displaced.cut(errDisplaced)
		s.refusals.log(c.began, displaced.slave.Addr(), errDisplaced.Error(), "connection of a slave closed", displaced.group.erts)
	}
	return ok
}

func (s *FileServer) leave(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places.leave(&c.place)
}

// Recheck asks every open session whether its slave is still allowed, and closes
// the connections of those that are not. It does not wait for them to end.
func (s *FileServer) Recheck() {
	for _, c := range s.connections(nil) {
		if err := c.recheck(); err != nil {
			s.deny(c.slave.Addr(), c.group.erts, err)
			c.cut(err)
		}
	}
}

// connections returns the open connections of a group, or all.
func (s *FileServer) connections(g *group) []*connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*connection, 0, len(s.sessions))
	for c := range s.sessions {
		if g == nil || c.group == g {
			list = append(list, c)
		}
	}
	return list
}
