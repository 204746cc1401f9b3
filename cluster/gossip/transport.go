package gossip

import (
	"context"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Bounds of connections that others open: memberlist has none, and gives each up to
// its stream timeout. A server has few at a time and they are short; one that is
// refused tries again.
const (
	maxStreams           = 32
	maxStreamsPerAddress = 4
)

// transport is memberlist's own with bounded streams, all of which end with Shutdown,
// and without the messages that no server sends.
type transport struct {
	*memberlist.NetTransport
	ring      *memberlist.Keyring // nil: nothing is encrypted
	encrypted bool                // what is not is refused by memberlist
	logger    *log.Logger
	life      context.Context // ends with the beginning of Shutdown
	cancel    context.CancelFunc
	pumps     context.Context // of admit and sift
	end       context.CancelFunc
	streams   chan net.Conn
	packets   chan *memberlist.Packet
	pump      sync.WaitGroup

	streamTable
}

// streamTable is what is open, for whom.
type streamTable struct {
	mu        sync.Mutex
	open      map[*stream]struct{}
	byAddress map[netip.Addr]int
	accepted  int
	joins     map[string]*joining // by address
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(inner *memberlist.NetTransport, ring *memberlist.Keyring, logger *log.Logger) *transport {
	t := &transport{
		NetTransport: inner, ring: ring, encrypted: ring != nil, logger: logger,
		streams: make(chan net.Conn), packets: make(chan *memberlist.Packet),
		streamTable: streamTable{open: map[*stream]struct{}{}, byAddress: map[netip.Addr]int{}, joins: map[string]*joining{}},
	}
	t.life, t.cancel = context.WithCancel(context.Background())
	t.pumps, t.end = context.WithCancel(context.Background())
	t.pump.Go(t.admit)
	t.pump.Go(t.sift)
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
			}
		case <-t.pumps.Done():
			return
		}
	}
}

// sift hands packets to memberlist, but for those that no server sends.
func (t *transport) sift() {
	for {
		select {
		case packet := <-t.NetTransport.PacketCh():
			if !t.encrypted {
				if err := checkPacket(packet.Buf); err != nil {
					t.logger.Printf("[WARN] gossip: packet dropped: %v %s", err, memberlist.LogAddress(packet.From))
					continue
				}
			}
			select {
			case t.packets <- packet:
			case <-t.life.Done():
			}
		case <-t.pumps.Done():
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

// PacketCh returns the packets that servers may have sent.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

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
	t.cancel()
	err := t.NetTransport.Shutdown() // its listeners may be handing something over: the pumps still run
	t.end()
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

// stream is a connection that is counted while it is open, and over which one checked
// message comes.
type stream struct {
	net.Conn
	transport *transport
	accepted  bool
	remote    netip.Addr
	detach    func() bool // from the join's context; nil: none

	received bool // once: what is left of it, or why there is none
	message  []byte
	err      error
}

// Read returns what came when it has come whole and is what a server may send.
func (s *stream) Read(b []byte) (int, error) {
	if !s.received {
		s.received = true
		s.message, s.err = readMessage(s.Conn, s.accepted, s.transport.encrypted) // answers have no label
	}
	if s.err != nil {
		return 0, s.err
	}
	if len(s.message) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.message)
	s.message = s.message[n:]
	return n, nil
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
