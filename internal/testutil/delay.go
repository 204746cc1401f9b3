package testutil

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// DelayOptions say where a delay proxy stands.
type DelayOptions struct {
	// Address is a loopback IPv4 address of its own, which slaves name in -hosts.
	Address string
	// Server is the IPv4 address of the server behind it.
	Server string
	// RoundTrip is what the way to the server and back takes. Zero: no delay.
	RoundTrip time.Duration
	// OnRequest, when set, is told each request before it is forwarded, by the goroutine
	// that forwards: the request waits meanwhile. Its Reply is -1.
	OnRequest func(Exchanged)
	// OnReceived, when set, is told how many bytes the server has sent to slaves until
	// now, frame headers included, before the latest of them are forwarded.
	OnReceived func(total int64)
}

// Delay is the way to a distant server: a proxy for UDP discovery and for TCP, which
// forwards everything after half a round trip. It has unlimited bandwidth and keeps the order. A
// connection costs a round trip, too: what a slave sends on it leaves as late as if it had
// waited for the server to accept.
//
// The server sees the slave's own address, which must be one of 127/8.
type Delay struct {
	opts   DelayOptions
	udp    *net.UDPConn
	tcp    *net.TCPListener
	group  sync.WaitGroup
	ended  chan struct{} // closed by Sever: nothing is forwarded any more
	silent atomic.Bool   // Cut: everything is swallowed

	mu       sync.Mutex
	port     uint16 // of the server's file service, as its latest reply said
	conns    map[io.Closer]bool
	searches map[netip.AddrPort]*search
	requests []Exchanged
	opened   int
	received int64
	severed  bool
	filling  []net.Conn // those that fill the accept queue of a proxy that was cut off
}

// StartDelay starts a proxy; it ends with the test, or at Close.
func StartDelay(t testing.TB, opts DelayOptions) *Delay {
	t.Helper()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.ParseIP(opts.Address)})
	if err != nil {
		t.Fatalf("delay proxy: %v", err)
	}
	d := &Delay{
		opts: opts, tcp: tcp, ended: make(chan struct{}),
		conns: map[io.Closer]bool{}, searches: map[netip.AddrPort]*search{},
	}
	d.udp = ListenUDP(t, netip.AddrPortFrom(netip.MustParseAddr(opts.Address), DiscoveryPort).String())
	d.group.Go(d.answer)
	d.group.Go(d.accept)
	t.Cleanup(d.Close)
	return d
}

// Close ends everything and waits for the goroutines of the proxy.
func (d *Delay) Close() {
	d.Sever()
	d.group.Wait()
}

// Refuse refuses new connections, as the host of a server does whose program has died; those
// that there are go on. Without it, such a slave would be accepted by the proxy, and reset when the
// server is not there: a stock loader may miss that, and wait for a minute.
func (d *Delay) Refuse() { _ = d.tcp.Close() }

// Sever is the death of the server's program as slaves see it: connections are reset, new
// ones refused, discovery goes unanswered. It may be called repeatedly.
func (d *Delay) Sever() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.severed {
		return
	}
	d.severed = true
	close(d.ended)
	_, _ = d.udp.Close(), d.tcp.Close()
	for c := range d.conns {
		reset(c)
	}
	for _, s := range d.searches {
		_ = s.conn.Close()
		s.up.Close()
		s.down.Close()
	}
	for _, c := range d.filling {
		_ = c.Close()
	}
}

// Cut cuts the line without a word: nothing passes any more, both ways, what is under way
// included. Connections stay open, and new ones are neither accepted nor refused.
func (d *Delay) Cut() error {
	d.silent.Store(true)
	// The kernel drops the requests for connections to a listener whose queue is full
	// (listen(2), tcp(7)): the queue is made as short as can be, nobody takes from it any more, and it is filled.
	raw, err := d.tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	var listenError error
	if err := raw.Control(func(fd uintptr) { listenError = syscall.Listen(int(fd), 0) }); err != nil || listenError != nil {
		return fmt.Errorf("cut: %w", errors.Join(err, listenError))
	}
	if err := d.tcp.SetDeadline(time.Now()); err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	for range 16 {
		conn, err := net.DialTimeout("tcp4", d.tcp.Addr().String(), 50*time.Millisecond)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cut: %w", err)
		}
		d.mu.Lock()
		d.filling = append(d.filling, conn)
		d.mu.Unlock()
	}
	return errors.New("cut: the proxy takes connections still")
}

// Requests returns a copy of what slaves have sent, in order. The replies are not looked
// at: Reply is -1 in all of them.
func (d *Delay) Requests() []Exchanged {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.requests)
}

// Connections is how many connections slaves have opened.
func (d *Delay) Connections() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.opened
}

// Received is how many bytes the server has sent to slaves.
func (d *Delay) Received() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.received
}

// Forget forgets the requests, connections and bytes until now.
func (d *Delay) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests, d.opened, d.received = nil, 0, 0
}

// halfWay is when something that enters the line now leaves it.
func (d *Delay) halfWay() time.Time { return time.Now().Add(d.opts.RoundTrip / 2) }

// reset closes what is a TCP connection with RST.
func reset(c io.Closer) {
	if conn, ok := c.(*net.TCPConn); ok {
		_ = conn.SetLinger(0)
	}
	_ = c.Close()
}

// search is the datagrams of one client: one port, as the server sees it, too.
type search struct {
	conn     *net.UDPConn // to the server
	up, down *delayLine
}

// answer takes discovery requests.
func (d *Delay) answer() {
	buf := make([]byte, 2048)
	for {
		n, from, err := d.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || d.silent.Load() {
			continue
		}
		s, err := d.search(from)
		if err != nil {
			continue // a datagram that is lost
		}
		request := slices.Clone(buf[:n])
		s.up.Put(d.halfWay(), func() {
			if !d.silent.Load() {
				_, _ = s.conn.Write(request)
			}
		})
	}
}

// search returns that of the client at from.
func (d *Delay) search(from netip.AddrPort) (*search, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.searches[from]; s != nil {
		return s, nil
	}
	if d.severed {
		return nil, net.ErrClosed
	}
	server := netip.AddrPortFrom(netip.MustParseAddr(d.opts.Server), DiscoveryPort)
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr(), 0)), net.UDPAddrFromAddrPort(server))
	if err != nil {
		return nil, err
	}
	s := &search{conn: conn, up: newDelayLine(), down: newDelayLine()}
	d.searches[from] = s
	d.group.Go(func() { s.up.Run(d.ended) })
	d.group.Go(func() { s.down.Run(d.ended) })
	d.group.Go(func() { d.reply(s, from) })
	return s, nil
}

// reply forwards the replies to one client. Their port becomes that of the proxy.
func (d *Delay) reply(s *search, to netip.AddrPort) {
	own := uint16(d.tcp.Addr().(*net.TCPAddr).Port)
	buf := make([]byte, 2048)
	for {
		n, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // ECONNREFUSED: the server is not there
		}
		datagram := slices.Clone(buf[:n])
		if r, err := ParseReply(datagram); err == nil {
			d.mu.Lock()
			d.port = r.Port
			d.mu.Unlock()
			binary.BigEndian.PutUint16(datagram[7:], own)
		}
		s.down.Put(d.halfWay(), func() {
			if !d.silent.Load() {
				_, _ = d.udp.WriteToUDPAddrPort(datagram, to)
			}
		})
	}
}
