package bootproto

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseReply(t *testing.T) {
	long := strings.Repeat("1", 32)
	for datagram, want := range map[string]Reply{
		"EBOOTR\x00\x11\x1013.1.5":        {Port: 4368, ERTS: "13.1.5"},
		"EBOOTR\xff\x00\x00":              {Priority: 255}, // nine bytes are all that a stock slave reads
		"EBOOTR\x07\xff\xff" + long:       {Priority: 7, Port: 65535, ERTS: long},
		"EBOOTR\x07\xff\xff" + long + "1": {Priority: 7, Port: 65535},
		"EBOOTR\x01\x00\x01\x1b[31m\n":    {Priority: 1, Port: 1}, // nothing of a stranger is shown that is no version
	} {
		if got, ok := parseReply([]byte(datagram)); !ok || got != want {
			t.Errorf("%q: %+v, %v; want %+v", datagram, got, ok, want)
		}
	}
	for _, datagram := range []string{"", "EBOOTR", "EBOOTR\x00\x11", "EBOOTQ13.1.5xx", "ebootr\x00\x11\x1013.1.5"} {
		if got, ok := parseReply([]byte(datagram)); ok {
			t.Errorf("%q was taken for %+v", datagram, got)
		}
	}
}

func FuzzEbootR(f *testing.F) {
	for _, seed := range []string{"EBOOTR\x00\x11\x1013.1.5", "EBOOTR\x00\x11", "EBOOTQ13.1.5", "EBOOTR\x07\x12\x34\x00", "EBOOTR\x07\x12\x34" + strings.Repeat("9", 33)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		r, ok := parseReply(datagram)
		if !ok {
			return
		}
		if len(r.ERTS) > maxVersion || r.ERTS != "" && !isVersion([]byte(r.ERTS)) {
			t.Fatalf("%q: version %q", datagram, r.ERTS)
		}
		if again := appendReply(nil, r.Priority, r.Port, r.ERTS); !bytes.HasPrefix(datagram, again) {
			t.Fatalf("%q was taken for %q", datagram, again)
		}
	})
}

// fakeServer answers on a loopback port, as reply says.
func fakeServer(t *testing.T, reply func(conn *net.UDPConn, from netip.AddrPort, query string)) uint16 {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		datagram := make([]byte, 100)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(datagram)
			if err != nil {
				return
			}
			reply(conn, from, string(datagram[:n]))
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func openProbe(t *testing.T) *Probe {
	t.Helper()
	local := netip.MustParseAddr("127.0.0.1")
	p, err := OpenProbe([]ProbeTarget{{From: local, To: local}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestProbeHearsAnswers(t *testing.T) {
	queries := make(chan string, 10)
	port := fakeServer(t, func(conn *net.UDPConn, from netip.AddrPort, query string) {
		queries <- query
		for _, reply := range []string{"junk", "EBOOTR", "EBOOTR\x00\x11\x10" + query[6:]} {
			_, _ = conn.WriteToUDPAddrPort([]byte(reply), from)
		}
	})
	p := openProbe(t)
	sources := p.Sources()
	replies, err := p.ask(t.Context(), []string{"13.1.5", "16.0"}, 300*time.Millisecond, port)
	if err != nil {
		t.Fatal(err)
	}
	want := Reply{From: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Port: 4368, ERTS: "13.1.5"}
	if len(replies) != 1 || replies[0] != want {
		t.Errorf("replies %+v, want %+v, once", replies, want)
	}
	if a, b := <-queries, <-queries; a != "EBOOTQ13.1.5" || b != "EBOOTQ16.0" {
		t.Errorf("asked %q and %q", a, b)
	}
	if len(sources) != 1 || sources[0].Addr() != netip.MustParseAddr("127.0.0.1") || sources[0].Port() == 0 {
		t.Errorf("sources %v", sources)
	}
}

// A stranger answers from as many addresses as it likes.
func TestProbeIsBounded(t *testing.T) {
	port := fakeServer(t, func(_ *net.UDPConn, from netip.AddrPort, _ string) {
		for i := range 400 {
			liar, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 7, byte(i>>8), byte(i))})
			if err != nil {
				return
			}
			_, _ = liar.WriteToUDPAddrPort([]byte("EBOOTR\x00\x11\x10"), from)
			_ = liar.Close()
		}
	})
	replies, err := openProbe(t).ask(t.Context(), []string{"13.1.5"}, time.Second, port)
	if err != nil || len(replies) != maxReplies {
		t.Errorf("%d replies, %v; want %d", len(replies), err, maxReplies)
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if replies, _ := openProbe(t).ask(ctx, []string{"13.1.5"}, time.Minute, 9); len(replies) != 0 || time.Since(began) > 10*time.Second {
		t.Errorf("%d replies after %v", len(replies), time.Since(began))
	}
}

// What cannot be sent is said, by network, and each time in the same words: who logs it once knows it
// again, though each probe has a port of its own.
func TestProbeSaysWhatCannotBeAsked(t *testing.T) {
	said := map[string]bool{}
	for range 3 {
		p, err := OpenProbe([]ProbeTarget{{From: netip.MustParseAddr("127.0.0.1"), To: netip.MustParseAddr("203.0.113.255")}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close() //nolint:errcheck // nothing was sent
		// From a loopback address nothing leaves the machine.
		_, err = p.Ask(t.Context(), []string{"13.1.5"}, 10*time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), "203.0.113.255") {
			t.Fatalf("asking a network that cannot be reached: %v", err)
		}
		said[err.Error()] = true
	}
	if len(said) != 1 {
		t.Errorf("the same is said in %d ways: %v", len(said), said)
	}
	if _, err := OpenProbe([]ProbeTarget{{From: netip.MustParseAddr("203.0.113.7")}}); err == nil || !strings.Contains(err.Error(), "203.0.113.7") {
		t.Errorf("asking from an address that is not ours: %v", err)
	}
}
