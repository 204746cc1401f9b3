package testutil

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// DiscoveryPort is the UDP port of EBOOT.
const DiscoveryPort = 4368

// Discovered is one reply to a discovery request.
type Discovered struct {
	From     netip.AddrPort // source of the datagram
	Priority byte
	Port     uint16 // TCP port of the file service
	ERTS     string
	At       time.Duration // after the request was sent
	Raw      []byte
}

// ParseReply reads one reply. The stock client looks at nine bytes and ignores the
// version; so does this, but for handing it out.
func ParseReply(data []byte) (Discovered, error) {
	if len(data) < 9 || string(data[:6]) != "EBOOTR" {
		return Discovered{}, fmt.Errorf("discovery reply %q: want EBOOTR and three bytes", data)
	}
	return Discovered{Priority: data[6], Port: binary.BigEndian.Uint16(data[7:9]), ERTS: string(data[9:]), Raw: data}, nil
}

// Discover sends the request EBOOTQ + erts from conn to each host and collects what
// comes back until window has passed without a new reply, as the stock client does with
// 500 ms. Whatever is no reply fails the test.
func Discover(t testing.TB, conn *net.UDPConn, erts string, window time.Duration, hosts ...string) []Discovered {
	t.Helper()
	for _, h := range hosts {
		to := netip.AddrPortFrom(netip.MustParseAddr(h), DiscoveryPort)
		if _, err := conn.WriteToUDPAddrPort([]byte("EBOOTQ"+erts), to); err != nil {
			t.Fatalf("send discovery to %s: %v", h, err)
		}
	}
	return Collect(t, conn, window)
}

// Collect gathers replies until window has passed without a new one.
func Collect(t testing.TB, conn *net.UDPConn, window time.Duration) []Discovered {
	t.Helper()
	sent := time.Now()
	var replies []Discovered
	buf := make([]byte, 2048)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(window))
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return replies
		}
		if err != nil {
			t.Fatalf("receive discovery reply: %v", err)
		}
		r, err := ParseReply(append([]byte(nil), buf[:n]...))
		if err != nil {
			t.Fatalf("from %s: %v", from, err)
		}
		r.From, r.At = from, time.Since(sent)
		replies = append(replies, r)
	}
}

// ListenUDP opens a UDP socket on address ("127.0.0.1:0") that is closed with the test.
func ListenUDP(t testing.TB, address string) *net.UDPConn {
	t.Helper()
	local, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// FileClient is one connection to a file service. It does what it is told: it is a
// test's tool to send good and bad frames, not a loader.
type FileClient struct {
	conn    net.Conn
	timeout time.Duration
}

// NewFileClient takes conn over; it is closed with the test.
func NewFileClient(t testing.TB, conn net.Conn) *FileClient {
	t.Cleanup(func() { _ = conn.Close() })
	return &FileClient{conn: conn, timeout: 20 * time.Second}
}

// Dial connects to the file service at address.
func Dial(t testing.TB, address string) *FileClient {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", address, 10*time.Second)
	if err != nil {
		t.Fatalf("connect to %s: %v", address, err)
	}
	return NewFileClient(t, conn)
}

// Conn is the connection itself.
func (c *FileClient) Conn() net.Conn { return c.conn }

// Close ends the connection.
func (c *FileClient) Close() { _ = c.conn.Close() }

// Write sends bytes as they are.
func (c *FileClient) Write(data []byte) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	_, err := c.conn.Write(data)
	return err
}

// ReadFrame reads one frame and returns its content. An error that wraps io.EOF or a
// connection reset means that the peer has closed.
func (c *FileClient) ReadFrame() ([]byte, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(c.timeout))
	var header [4]byte
	if _, err := io.ReadFull(c.conn, header[:]); err != nil {
		return nil, fmt.Errorf("read frame header: %w", err)
	}
	content := make([]byte, binary.BigEndian.Uint32(header[:]))
	if _, err := io.ReadFull(c.conn, content); err != nil {
		return nil, fmt.Errorf("read frame of %d bytes: %w", len(content), err)
	}
	return content, nil
}

// Frame puts the length before content.
func Frame(content []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(content)), uint32(len(content))), content...)
}

// Exchange sends one frame and decodes the reply. A closed connection is an error.
func (c *FileClient) Exchange(content []byte) (any, error) {
	if err := c.Write(Frame(content)); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	reply, err := c.ReadFrame()
	if err != nil {
		return nil, err
	}
	return Decode(reply)
}

// Request encodes a term, sends it and decodes the reply.
func (c *FileClient) Request(term any) (any, error) { return c.Exchange(Encode(term)) }
