package testutil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startEcho answers discovery at address and each request with itself, `times` times
// in one frame.
func startEcho(t *testing.T, address string, times int) {
	t.Helper()
	udp := ListenUDP(t, netip.AddrPortFrom(netip.MustParseAddr(address), DiscoveryPort).String())
	tcp, err := net.Listen("tcp4", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		buf := make([]byte, 512)
		port := uint16(tcp.Addr().(*net.TCPAddr).Port)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			reply := binary.BigEndian.AppendUint16([]byte("EBOOTR\x00"), port)
			_, _ = udp.WriteToUDPAddrPort(append(reply, buf[6:n]...), from)
		}
	})
	group.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer func() { _ = conn.Close() }()
				for {
					request, err := readFrame(conn)
					if err != nil {
						return
					}
					if _, err := conn.Write(Frame(bytes.Repeat(request[4:], times))); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_, _ = udp.Close(), tcp.Close()
		group.Wait()
	})
}

func TestDelay(t *testing.T) {
	const server, proxy = "127.0.4.40", "127.0.4.41"
	const roundTrip = 40 * time.Millisecond
	// A busy machine is late, never early: by two round trips, and by more where a megabyte has to
	// pass under the race detector, which a round trip for each buffer of it would still exceed.
	within := func(what string, began time.Time, trips, late int) {
		t.Helper()
		least := time.Duration(trips) * roundTrip
		if took := time.Since(began); took < least || took > least+time.Duration(late)*roundTrip {
			t.Errorf("%s took %v, want %d round trips of %v", what, took, trips, roundTrip)
		}
	}
	const times = 1 << 18
	startEcho(t, server, times)
	d := StartDelay(t, DelayOptions{Address: proxy, Server: server, RoundTrip: roundTrip})

	udp := ListenUDP(t, "127.0.0.1:0")
	replies := Discover(t, udp, "13.1", 3*roundTrip, proxy)
	if len(replies) != 1 || replies[0].ERTS != "13.1" || replies[0].At < roundTrip {
		t.Fatalf("replies %+v, want one after %v", replies, roundTrip)
	}
	address := netip.AddrPortFrom(netip.MustParseAddr(proxy), replies[0].Port).String()

	began := time.Now()
	c := Dial(t, address)
	request := func(text string) {
		t.Helper()
		if err := c.Write(Frame([]byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	reply := func(text string) {
		t.Helper()
		got, err := c.ReadFrame()
		if err != nil || len(got) != times*len(text) || string(got[:len(text)]) != text {
			t.Fatalf("reply of %d bytes, %v; want %d", len(got), err, times*len(text))
		}
	}
	request("a")
	reply("a")
	within("the first request of a connection", began, 2, 2)

	began = time.Now()
	request("bb")
	request("ccc")
	reply("bb")
	reply("ccc")
	within("two requests at once with a megabyte in the replies", began, 1, 8)

	var seen []string
	for _, e := range d.Requests() {
		seen = append(seen, string(e.Request))
	}
	if len(seen) != 3 || seen[2] != "ccc" || d.Connections() != 1 || d.Received() != 6*times+3*4 {
		t.Errorf("the proxy saw %q, %d connections, %d bytes", seen, d.Connections(), d.Received())
	}

	if err := d.Cut(); err != nil {
		t.Fatal(err)
	}
	request("d")
	var timeout net.Error
	_ = c.Conn().SetReadDeadline(time.Now().Add(4 * roundTrip))
	if n, err := c.Conn().Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read of %d bytes over a cut line: %v", n, err)
	}
	if _, err := net.DialTimeout("tcp4", address, 4*roundTrip); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("connection over a cut line: %v", err)
	}
	if replies := Discover(t, udp, "13.1", 4*roundTrip, proxy); len(replies) != 0 {
		t.Errorf("replies over a cut line: %+v", replies)
	}
}

func TestDelaySevered(t *testing.T) {
	const server, proxy = "127.0.4.40", "127.0.4.41"
	startEcho(t, server, 1)
	d := StartDelay(t, DelayOptions{Address: proxy, Server: server})
	udp := ListenUDP(t, "127.0.0.1:0")
	replies := Discover(t, udp, "13.1", 50*time.Millisecond, proxy)
	if len(replies) != 1 {
		t.Fatalf("replies %+v", replies)
	}
	address := netip.AddrPortFrom(netip.MustParseAddr(proxy), replies[0].Port).String()
	c := Dial(t, address)
	if err := c.Write(Frame([]byte("a"))); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadFrame(); err != nil || string(got) != "a" {
		t.Fatalf("reply %q, %v", got, err)
	}
	d.Refuse()
	if _, err := net.DialTimeout("tcp4", address, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connection to a proxy that refuses: %v", err)
	}
	if err := c.Write(Frame([]byte("b"))); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadFrame(); err != nil || string(got) != "b" {
		t.Errorf("reply over a connection from before: %q, %v", got, err)
	}
	d.Sever()
	if _, err := c.ReadFrame(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("read after the death of the server: %v", err)
	}
	if _, err := net.DialTimeout("tcp4", address, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connection after the death of the server: %v", err)
	}
}
