package gossip

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Bounds of connections that others open: memberlist has none, and gives each up to
// its stream timeout.
const (
	maxStreams           = 256
	maxStreamsPerAddress = 32
)

// transport is memberlist's own with bounded streams, all of which end with Shutdown.
type transport struct {
	*memberlist.NetTransport
	life    context.Context // of dialling
	cancel  context.CancelFunc
	streams chan net.Conn
	pump    sync.WaitGroup

	mu        sync.Mutex
	open      map[*stream]struct{}
	byAddress map[netip.Addr]int
	accepted  int
	joins     map[string]*joining // by address
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(inner *memberlist.NetTransport) *transport {
	t := &transport{
		NetTransport: inner, streams: make(chan net.Conn), open: map[*stream]struct{}{}, byAddress: map[netip.Addr]int{}, joins: map[string]*joining{},
	}
	t.life, t.cancel = context.WithCancel(context.Background())
	t.pump.Go(t.admit)
	return t
}

// admit hands accepted connections to memberlist as long as there are not too many.
func (t *transport) admit() {
	for {
		select {
		case conn := <-t.NetTransport.StreamCh():
			s := t.enter(conn)
			if s == nil {
				_ = conn.Close() // refused; its sender tries again or is no server
				continue
			}
			select {
			case t.streams <- s:
			case <-t.life.Done():
				_ = s.Close()
				return
			}
		case <-t.life.Done():
			return
		}
	}
}

// enter counts an accepted connection; nil: there are too many.
func (t *transport) enter(conn net.Conn) *stream {
	s := &stream{Conn: conn, transport: t, accepted: true}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		s.remote = tcp.AddrPort().Addr().Unmap()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.accepted >= maxStreams || t.byAddress[s.remote] >= maxStreamsPerAddress {
		return nil
	}
	t.accepted++
	t.byAddress[s.remote]++
	t.open[s] = struct{}{}
	return s
}

// StreamCh returns the connections that were let in.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout opens a connection that ends with Shutdown.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a connection that ends with Shutdown, and with the join
// that it is for.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.life, timeout)
	defer cancel()
	t.mu.Lock()
	join := t.joins[a.Addr]
	t.mu.Unlock()
	if join != nil {
		defer context.AfterFunc(join.ctx, cancel)()
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	s := &stream{Conn: conn, transport: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life.Err() != nil {
		_ = conn.Close() // Shutdown has passed
		return nil, net.ErrClosed
	}
	t.open[s] = struct{}{}
	if join != nil {
		join.reached = true
		s.detach = context.AfterFunc(join.ctx, func() { _ = s.Close() })
	}
	return s, nil
}

// joining is a join under way. memberlist takes no context and its errors do not say
// whether somebody answered.
type joining struct {
	ctx     context.Context
	reached bool
}

// watch binds what is dialled at an address to ctx until reached is called; false: it
// is bound already.
func (t *transport) watch(ctx context.Context, addr string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.joins[addr] != nil {
		return false
	}
	t.joins[addr] = &joining{ctx: ctx}
	return true
}

// reached reports whether there was a connection since watch.
func (t *transport) reached(addr string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	join := t.joins[addr]
	delete(t.joins, addr)
	return join.reached
}

// Shutdown closes the sockets and every connection.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown() // its listeners may be handing over a last connection: the pump still runs
	t.cancel()
	t.pump.Wait()
	t.mu.Lock()
	open := make([]*stream, 0, len(t.open))
	for s := range t.open {
		open = append(open, s)
	}
	t.mu.Unlock()
	for _, s := range open {
		_ = s.Close() // memberlist's goroutines learn it from their own calls
	}
	return err
}

// stream is a connection that is counted while it is open.
type stream struct {
	net.Conn
	transport *transport
	accepted  bool
	remote    netip.Addr
	detach    func() bool // from the join's context; nil: none
}

func (s *stream) Close() error {
	t := s.transport
	t.mu.Lock()
	if _, ok := t.open[s]; ok {
		delete(t.open, s)
		if s.accepted {
			t.accepted--
			if t.byAddress[s.remote]--; t.byAddress[s.remote] == 0 {
				delete(t.byAddress, s.remote)
			}
		}
	}
	t.mu.Unlock()
	if s.detach != nil {
		s.detach()
	}
	return s.Conn.Close()
}
