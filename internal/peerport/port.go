package peerport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"eboot"
)

// maxAcceptPause bounds the wait after a failed accept, as in net/http: descriptors
// come free again.
const maxAcceptPause = time.Second

// Port accepts connections from other servers and hands each to the listener of the
// protocol that it asks for.
type Port struct {
	options  Options
	refusals *refusals
	ended    chan struct{} // closed when Serve has ended
	greeting sync.WaitGroup

	mu        sync.Mutex
	served    bool
	closed    map[string]bool // protocols
	listeners map[string]*listener
	open      map[*Conn]struct{}
	addresses map[netip.Addr]load // that have any
	waiting   int                 // connections not handed over yet
	stats     Stats
}

// load is what one address has open, and how much of that was not handed over yet.
type load struct{ open, waiting int }

// Stats counts connections since New.
type Stats struct {
	Open     int    // now, handed over or not
	Accepted uint64 // handed to a listener
	Refused  uint64
}

// New returns a Port. It starts nothing.
func New(o Options) *Port {
	p := &Port{
		options: o.withDefaults(), ended: make(chan struct{}), closed: map[string]bool{}, listeners: map[string]*listener{},
		open: map[*Conn]struct{}{}, addresses: map[netip.Addr]load{},
	}
	p.refusals = newRefusals(p.options.Logger)
	for _, protocol := range o.Closed {
		p.closed[protocol] = true
	}
	return p
}

// Listener returns the listener of a protocol. Until the first call for it,
// connections that ask for that protocol are refused, and again after Close. It is
// one listener until it is closed; a call after that opens a new one.
//
// Accept returns net.ErrClosed after Close or when Serve has ended. What it returns is
// a *Conn. Close leaves connections that were accepted alone.
func (p *Port) Listener(protocol string) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.listeners[protocol]
	if l == nil {
		l = &listener{port: p, protocol: protocol, offered: make(chan *Conn), closed: make(chan struct{})}
		p.listeners[protocol] = l
	}
	return l
}

// Admit lets connections for a protocol of Options.Closed in from now on.
func (p *Port) Admit(protocol string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.closed, protocol)
}

// Stats returns the counts.
func (p *Port) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Open = len(p.open)
	return s
}

// Serve accepts connections on ln until ctx is done, then returns nil; or an error
// when ln can no longer be accepted from. It closes ln and, at the end, every
// connection that it accepted, handed over or not. A Port serves once.
func (p *Port) Serve(ctx context.Context, ln net.Listener) error {
	p.mu.Lock()
	again := p.served
	p.served = true
	p.mu.Unlock()
	if again {
		return errors.Join(fmt.Errorf("serve peers: this port has served already: %w", eboot.ErrConflict), ln.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() }) // ends Accept
	err := p.acceptAll(ctx, ln)
	cancel() // connections that wait for a listener give up
	if stop() {
		_ = ln.Close()
	}
	close(p.ended) // nobody takes a connection any more
	p.closeAll()
	p.greeting.Wait()
	return err
}

func (p *Port) acceptAll(ctx context.Context, ln net.Listener) error {
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept peers: %w", err)
		}
		if err != nil {
			pause = min(max(2*pause, 5*time.Millisecond), maxAcceptPause)
			p.options.Logger.Warn("cannot accept a connection of a server; trying again", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		pause = 0
		notice(conn)
		p.enter(ctx, conn)
	}
}

// enter begins with a connection, or refuses it when there are too many.
func (p *Port) enter(ctx context.Context, raw net.Conn) {
	conn := &Conn{Conn: p.wrap(raw), raw: raw, port: p, remote: remoteIP(raw)}
	p.mu.Lock()
	var r *refusal
	switch o, of := p.options, p.addresses[conn.remote]; {
	case len(p.open) >= o.Connections:
		r = refuse(eboot.ErrUnavailable, "this server has %d connections of servers open, as many as it takes", len(p.open))
	case of.open >= o.OpenPerAddress:
		r = refuse(eboot.ErrUnavailable, "%d connections from this address are open, as many as this server takes", of.open)
	case p.waiting >= max(1, o.Connections/2):
		r = refuse(eboot.ErrUnavailable, "%d connections have not said what they want, as many as this server waits for", p.waiting)
	case of.waiting >= o.PerAddress:
		r = refuse(eboot.ErrUnavailable, "%d connections from this address have not said what they want, as many as this server waits for", of.waiting)
	default:
		p.open[conn] = struct{}{}
		p.addLoad(conn, 1, 1)
	}
	p.mu.Unlock()
	if r != nil {
		// A new connection has room for the answer: this does not wait. With certificates
		// there is none, as a handshake would.
		answer := raw
		if p.options.Credentials != nil {
			answer = nil
		}
		p.refuse(conn, answer, r)
		return
	}
	p.greeting.Go(func() { p.greet(ctx, conn) })
}

// greet reads the preface and hands the connection over.
func (p *Port) greet(ctx context.Context, conn *Conn) {
	defer p.leaveWaiting(conn)
	deadline := time.Now().Add(p.options.Preface)
	_ = conn.SetDeadline(deadline) // fails when the connection has broken; then so does the read
	answer, r := p.secure(ctx, conn)
	if answer == nil && r != nil {
		p.refuse(conn, nil, r)
		return
	}
	if answer != conn.Conn {
		p.refuse(conn, answer, r)
		return
	}
	said, err := readPreface(conn.Conn) // read also when it is refused: an answer is lost when something is unread
	var wrong *refusal
	switch {
	case r != nil:
	case errors.As(err, &wrong):
		r = wrong
	case err != nil:
		// Silence, or gone: there is nobody to answer.
		p.refusals.log("no preface", conn.remote, err.Error())
		p.count(func(s *Stats) { s.Refused++ })
		_ = conn.Close()
		return
	default:
		conn.from = said.from
		r = p.handOver(ctx, conn, said, deadline)
	}
	if r != nil {
		p.refuse(conn, conn.Conn, r)
	}
}

// handOver offers the connection to the listener of its protocol, and returns nil
// when that has taken it.
func (p *Port) handOver(ctx context.Context, conn *Conn, said preface, deadline time.Time) *refusal {
	l, r := p.find(said)
	if r != nil {
		return r
	}
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	select {
	case l.offered <- conn:
		return nil
	case <-timeout.C:
		return refuse(eboot.ErrUnavailable, "this server is too busy to take a connection for %s", said.protocol)
	case <-l.closed:
		return refuse(eboot.ErrUnavailable, "this server does not speak %s any more", said.protocol)
	case <-ctx.Done():
		return refuse(eboot.ErrUnavailable, "this server is stopping")
	}
}

// find returns the listener for a preface, or why there is none.
func (p *Port) find(said preface) (*listener, *refusal) {
	o := p.options
	switch {
	case said.cluster != o.Cluster:
		return nil, refuse(eboot.ErrConflict, "this server belongs to cluster %q, not to %q", o.Cluster, said.cluster)
	case said.to != "" && said.to != o.Server:
		return nil, refuse(eboot.ErrConflict, "the server at this address is %q, not %q", o.Server, said.to)
	case said.from != "" && said.from == o.Server:
		return nil, refuse(eboot.ErrConflict, "the server at this address has the id %q itself: a server dialled itself, or two have one id", o.Server)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed[said.protocol] {
		return nil, refuse(eboot.ErrUnavailable, "this server does not take part in %s yet", said.protocol)
	}
	l := p.listeners[said.protocol]
	if l == nil {
		return nil, refuse(eboot.ErrDenied, "this server does not speak %s", said.protocol)
	}
	return l, nil
}

// refuse answers with the reason over answer, which is nil when nothing can be said, and
// closes the connection.
func (p *Port) refuse(conn *Conn, answer net.Conn, r *refusal) {
	p.refusals.log(r.word(), conn.remote, r.text)
	p.count(func(s *Stats) { s.Refused++ })
	if answer != nil {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = answer.Write(r.encode()) // best effort: it is refused either way
		if r.unread {
			drain(answer)
		}
	}
	_ = conn.Close()
}

func (p *Port) count(f func(*Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.stats)
}

func (p *Port) leaveWaiting(conn *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addLoad(conn, 0, -1)
}

// addLoad counts; p.mu is held.
func (p *Port) addLoad(conn *Conn, open, waiting int) {
	p.waiting += waiting
	of := p.addresses[conn.remote]
	of.open += open
	of.waiting += waiting
	if of == (load{}) {
		delete(p.addresses, conn.remote)
		return
	}
	p.addresses[conn.remote] = of
}

func (p *Port) closeAll() {
	p.mu.Lock()
	open := make([]*Conn, 0, len(p.open))
	for conn := range p.open {
		open = append(open, conn)
	}
	p.mu.Unlock()
	// The protocol that used it learns it from its own calls. Each in its own time: with
	// TLS a goodbye is sent, for which a peer that does not read has five seconds.
	var all sync.WaitGroup
	for _, conn := range open {
		all.Go(func() { _ = conn.Close() })
	}
	all.Wait()
}

func (p *Port) forget(conn *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.open[conn]; !ok {
		return // refused at once, or closed already
	}
	delete(p.open, conn)
	p.addLoad(conn, -1, 0)
}

func remoteIP(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
