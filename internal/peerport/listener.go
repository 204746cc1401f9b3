package peerport

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// listener hands out the connections of one protocol.
type listener struct {
	port     *Port
	protocol string
	offered  chan *Conn // unbuffered: it holds nothing
	once     sync.Once
	closed   chan struct{}
}

var _ net.Listener = (*listener)(nil)

func (l *listener) Accept() (net.Conn, error) {
	for {
		select {
		case conn := <-l.offered:
			if conn.accept() == nil {
				l.port.count(func(s *Stats) { s.Accepted++ })
				return conn, nil
			}
			_ = conn.Close() // it went away meanwhile
		case <-l.closed:
			return nil, net.ErrClosed
		case <-l.port.ended:
			return nil, net.ErrClosed
		}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.port.mu.Lock()
		defer l.port.mu.Unlock()
		delete(l.port.listeners, l.protocol)
		close(l.closed)
	})
	return nil
}

// Addr is the name of the protocol: the address belongs to the port.
func (l *listener) Addr() net.Addr { return protocolAddr(l.protocol) }

type protocolAddr string

func (protocolAddr) Network() string  { return "tcp" }
func (a protocolAddr) String() string { return string(a) }

// Conn is a connection that another server opened.
type Conn struct {
	net.Conn          // with TLS, what is said inside
	raw      net.Conn // the connection itself
	port     *Port
	remote   netip.Addr
	from     string
}

var _ interface {
	net.Conn
	io.ReaderFrom
} = (*Conn)(nil)

// From is the id that the other server gave itself; "" when it gave none. Nothing
// proves it.
func (c *Conn) From() string { return c.from }

// Close closes the connection. It may be called again.
func (c *Conn) Close() error {
	c.port.forget(c)
	return c.Conn.Close()
}

// ReadFrom lets files be sent without copying them through this process, where there is no TLS.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite ends the sending half, where the connection can.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// accept tells the other side that the protocol may begin.
func (c *Conn) accept() error {
	// So few bytes fit into the buffer of a connection on which next to nothing was sent.
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.Conn, accepted); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
