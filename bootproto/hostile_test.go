package bootproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// inUse is the memory of this process that is not free: heap and stacks, in bytes.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestFrameLengthBomb promises much and sends little. The memory of a connection grows with
// what was received, and a promise of more than 64 KiB ends it.
func TestFrameLengthBomb(t *testing.T) {
	const connections = 300
	s, addr := startFiles(t, FileServerOptions{Host: newTree()})
	for _, c := range []struct {
		what   string
		bytes  []byte
		closed bool
	}{
		{"4 GiB", []byte{0xff, 0xff, 0xff, 0xff, 131, 104, 2}, true},
		{"64 KiB and a byte", []byte{0, 1, 0, 1, 131}, true},
		{"64 KiB, of which three bytes come", []byte{0, 1, 0, 0, 131, 104, 2}, false},
	} {
		before := inUse()
		var conns []*net.TCPConn
		for range connections {
			conn := dial(t, addr)
			if _, err := conn.Write(c.bytes); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		if c.closed {
			for _, conn := range conns {
				if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("%s: read %d bytes, %v; want the end", c.what, n, err)
				}
			}
		} else {
			eventually(t, "all wait for the rest", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				top := s.places.crowd
				return len(top) == 1 && top[0].silent.Len() == connections && s.places.open == connections
			})
		}
		if grown := inUse() - before; grown > connections*(16<<10)+(4<<20) {
			t.Errorf("%s: %d connections cost %d KiB each", c.what, connections, grown/connections>>10)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
		eventually(t, "all are closed", func() bool { return s.Stats().Connections == 0 })
	}
	if stats := s.Stats(); stats.Malformed != 2*connections || stats.Requests != 0 {
		t.Errorf("stats: %+v", stats)
	}
}

// TestStalledReadersCostNoMemory: slaves that ask for a big file and do not read it. The
// kernel sends it from the page cache, and none of it is in this process.
func TestStalledReadersCostNoMemory(t *testing.T) {
	const readers, size = 500, 32 << 20
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	files := newTree()
	files.open = func(string) (io.ReadCloser, int64, error) {
		f, err := os.Open(path)
		return f, size, err
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	before := inUse()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	header := make([]byte, headerSize)
	for range readers {
		conn, err := dialer.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(ask("get", "/file")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, header); err != nil { // and no more
			t.Fatal(err)
		}
		if n := binary.BigEndian.Uint32(header); n < size {
			t.Fatalf("a reply of %d bytes", n)
		}
	}
	grown := inUse() - before
	t.Logf("%d stalled readers of %d MiB: %d KiB each, both ends", readers, size>>20, grown/readers>>10)
	if grown > readers*(32<<10) {
		t.Errorf("%d stalled readers cost %d MiB", readers, grown>>20)
	}
}

const strangersFrom = 64 // of 127.0.1.1 to 127.0.1.100, those from here on are strangers

// badPackets sends n bad packets of many kinds to a server: junk and requests of strangers and
// of whitelisted slaves for what nobody has over UDP, and malformed frames over TCP.
func badPackets(t *testing.T, n int, udp uint16, tcp string) {
	t.Helper()
	var sockets []*net.UDPConn
	for i := range 100 { // as many addresses
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 1, byte(1+i))})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sockets = append(sockets, conn)
	}
	to := netip.AddrPortFrom(loopback, udp)
	for i := range n / 2 {
		datagram := []byte("EBOOTQ13.1.5")
		switch i % 4 {
		case 1:
			datagram = fmt.Appendf(nil, "EBOOTQ1.%d", i) // another version each time
		case 2:
			datagram = []byte("EBOOTQ\n\x1b[2Jfake log line")
		case 3:
			datagram = []byte("junk\r\nmore junk")
		}
		if _, err := sockets[i%len(sockets)].WriteToUDPAddrPort(datagram, to); err != nil && !errors.Is(err, syscall.ENOBUFS) {
			t.Fatal(err)
		}
	}
	// Malformed frames, many to a connection, the last of which ends it; a stranger's is
	// one bad packet, whatever he sends.
	random := rand.New(rand.NewPCG(uint64(n), 21))
	for sent := 0; sent < n/2; {
		from := byte(1 + random.IntN(100))
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, from)}}
		conn, err := dialer.Dial("tcp4", tcp)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		var frames []byte
		for range 500 {
			switch random.IntN(4) {
			case 0:
				frames = append(frames, packet([]byte{131, 80, 0, 0, 0, 1})...)
			case 1:
				frames = append(frames, ask("frob", "\n\n\n2026-01-01T00:00:00Z [INFO] eboot: forged\x1b[31m")...)
			case 2:
				frames = append(frames, packet(bytes.Repeat([]byte("\n"), random.IntN(50)))...)
			default:
				frames = append(frames, ask("get", "/damaged\n[ERROR] forged \x07"[:9+random.IntN(10)])...)
			}
		}
		if from < strangersFrom {
			sent += 500
		}
		sent++
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		_, _ = conn.Write(append(frames, 0xff, 0xff, 0xff, 0xff)) // a stranger's is closed
		reading.Wait()
		_ = conn.Close()
	}
}

// TestAcceptanceBadPacketsDoNotFillTheLog sends a million (20,000 without EBOOT_TEST_ACCEPTANCE) and counts lines.
func TestAcceptanceBadPacketsDoNotFillTheLog(t *testing.T) {
	count := 20_000
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") != "" {
		count = 1_000_000
	}
	for _, c := range []struct {
		level hclog.Level
		most  func(took time.Duration) int
	}{
		{hclog.Info, func(took time.Duration) int { return 100 * (1 + int(took/refusalPeriod)) }},
		{hclog.Debug, func(took time.Duration) int {
			return 100*(1+int(took/refusalPeriod)) + 2*(debugBurst+int(took.Seconds()*debugRate))
		}},
	} {
		t.Run(c.level.String(), func(t *testing.T) {
			var log lockedBuffer
			logger := hclog.New(&hclog.LoggerOptions{Output: &log, Level: c.level, Name: "eboot"})
			began := time.Now()
			t.Run("send", func(t *testing.T) {
				// Half of the network is strangers.
				host := onlyFrom{newTree(), netip.MustParsePrefix("127.0.1.0/26")}
				d, udp := startDiscovery(t, "127.0.0.1", DiscoveryOptions{Logger: logger, Answerer: answererFunc(func(q Query) (Offer, error) {
					if err := host.Admit(q.Slave.Addr()); err != nil {
						return Offer{}, err
					}
					return Offer{}, fmt.Errorf("no bundle for ERTS %s", q.ERTS)
				})})
				s, tcp := startFiles(t, FileServerOptions{Host: host, Logger: logger})
				badPackets(t, count, udp, tcp)
				eventually(t, "no connection is left", func() bool { return s.Stats().Connections == 0 })
				t.Logf("discovery %+v, files %+v", d.Stats(), s.Stats())
				if files := s.Stats(); files.Malformed == 0 || files.Denied == 0 {
					t.Error("the packets were not as bad as they should be")
				}
			})
			lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
			took := time.Since(began)
			t.Logf("%d bad packets in %v: %d lines of %d bytes", count, took.Round(time.Millisecond), len(lines), len(log.String()))
			if most := c.most(took); len(lines) > most {
				t.Errorf("%d lines, want %d at most", len(lines), most)
			}
			for _, line := range lines {
				if !strings.Contains(line, " eboot: ") || strings.ContainsAny(line, "\x1b\x07\r") || len(line) > 1000 {
					t.Fatalf("a line that this server has not written so: %q", line)
				}
			}
		})
	}
}

// lockedBuffer may be written by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"address is not whitelisted: denied": "address is not whitelisted: denied",
		`get "/lib/é/日本"`:                    `get "/lib/é/日本"`,
		"a\nb":                               `"a\nb"`,
		"\x1b[31m":                           `"\x1b[31m"`,
		"\xff":                               `"\xff"`,
		"\u202e":                             `"\u202e"`,
		strings.Repeat("x", 300):             strings.Repeat("x", maxRemoteText) + " …",
		strings.Repeat("é", 200) + "\n":      strings.Repeat("é", 128) + " …",
		"\n" + strings.Repeat("日", 200):      `"\n` + strings.Repeat("日", 85) + `" …`,
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
