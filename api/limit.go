package api

import (
	"net"
	"net/netip"
	"sync"
)

// How many connections may be open at the doors that a network reaches.
const (
	MaxConnections           = 1024
	MaxConnectionsPerAddress = 128
)

// Limit returns a listener that closes at once what exceeds a number of open connections,
// in all and from one address.
func Limit(ln net.Listener, total, perAddress int) net.Listener {
	return &limited{Listener: ln, total: total, perAddress: perAddress, addresses: map[netip.Addr]int{}}
}

type limited struct {
	net.Listener
	total, perAddress int

	mu        sync.Mutex
	open      int
	addresses map[netip.Addr]int // that have any
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = network(tcp.AddrPort().Addr())
		}
		if l.enter(from) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

// network is what one sender has at its command: an address, or all of an IPv6 network.
func network(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a
	}
	return netip.PrefixFrom(a, 64).Masked().Addr()
}

func (l *limited) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.total || l.addresses[from] >= l.perAddress {
		return false
	}
	l.open++
	l.addresses[from]++
	return true
}

func (l *limited) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.addresses[from]--; l.addresses[from] == 0 {
		delete(l.addresses, from)
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
