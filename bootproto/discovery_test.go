package bootproto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// startDiscovery serves discovery on a free port of an address until the test
// ends, and returns the port.
func startDiscovery(t testing.TB, bind string, options DiscoveryOptions) (*Discovery, uint16) {
	t.Helper()
	conn, err := listenDiscovery(netip.MustParseAddr(bind), 0)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDiscovery(options)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return d, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// searcher is the socket of one search.
func searcher(t testing.TB) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func sendQuery(t testing.TB, conn *net.UDPConn, to string, port uint16, datagram string) {
	t.Helper()
	if _, err := conn.WriteToUDPAddrPort([]byte(datagram), netip.AddrPortFrom(netip.MustParseAddr(to), port)); err != nil {
		t.Fatal(err)
	}
}

func receiveAnswer(t testing.TB, conn *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	datagram := make([]byte, 512)
	n, from, err := conn.ReadFromUDPAddrPort(datagram)
	if err != nil {
		t.Fatal(err)
	}
	return string(datagram[:n]), from
}

func alone(Query) (Offer, error) { return Offer{Port: 0x1110}, nil }

func TestDiscoveryAnswersFromTheAddressAsked(t *testing.T) {
	asked := make(chan Query, 1)
	d, port := startDiscovery(t, "0.0.0.0", DiscoveryOptions{Answerer: answererFunc(func(q Query) (Offer, error) {
		asked <- q
		return alone(q)
	})})
	for to, from := range map[string]string{
		"127.0.0.1":       "127.0.0.1",
		"127.0.0.23":      "127.0.0.23",
		"127.0.0.24":      "127.0.0.24",
		"127.255.255.255": "127.0.0.1", // a broadcast, answered from the address in that network
	} {
		conn := searcher(t)
		sendQuery(t, conn, to, port, "EBOOTQ13.1.5")
		answer, source := receiveAnswer(t, conn)
		if want := "EBOOTR\x00\x11\x1013.1.5"; answer != want {
			t.Errorf("to %s: %q, want %q", to, answer, want)
		}
		if source.Addr() != netip.MustParseAddr(from) || source.Port() != port {
			t.Errorf("to %s: answered from %s, want %s", to, source, from)
		}
		q := <-asked
		if q.Asked != netip.MustParseAddr(from) || q.ERTS != "13.1.5" || q.Slave != conn.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("to %s: %+v", to, q)
		}
	}
	eventually(t, "four answers are counted", func() bool { return d.Stats() == DiscoveryStats{Requests: 4, Answers: 4} })
}

func TestDiscoveryIsSilent(t *testing.T) {
	var log bytes.Buffer
	d, port := startDiscovery(t, "127.0.0.1", DiscoveryOptions{
		Logger: hclog.New(&hclog.LoggerOptions{Output: &log}),
		Answerer: answererFunc(func(q Query) (Offer, error) {
			if q.ERTS != "13.1.5" {
				return Offer{}, fmt.Errorf("no bundle for ERTS %s", q.ERTS)
			}
			return alone(q)
		})})
	conn := searcher(t)
	for range 3 {
		for _, junk := range []string{"", "EBOOTQ", "EBOOTQ13 1", "EBOOTR\x00\x00\x0013.1.5", strings.Repeat("x", 2000), "EBOOTQ" + strings.Repeat("1", 2000), "EBOOTQ12.0"} {
			sendQuery(t, conn, "127.0.0.1", port, junk)
		}
	}
	sendQuery(t, conn, "127.0.0.1", port, "EBOOTQ13.1.5")
	if answer, _ := receiveAnswer(t, conn); answer != "EBOOTR\x00\x11\x1013.1.5" {
		t.Errorf("the first answer is %q", answer)
	}
	want := DiscoveryStats{Requests: 4, Answers: 1, Refused: 3, Malformed: 3, Dropped: 15}
	eventually(t, "everything is counted", func() bool { return d.Stats() == want })
	d.refusals.close()
	text := log.String()
	if strings.Count(text, "no bundle for ERTS 12.0") != 1 || !strings.Contains(text, "slave=127.0.0.1") || !strings.Contains(text, "count=2") {
		t.Errorf("log: %s", text)
	}
}

// TestDiscoveryOrder asks three servers as a stock slave does, and dead
// favourites.
func TestDiscoveryOrder(t *testing.T) {
	const pace = 40 * time.Millisecond
	conn := searcher(t)
	var ports []uint16
	for rank := range 3 {
		_, port := startDiscovery(t, "127.0.0.1", DiscoveryOptions{Pace: pace, Answerer: answererFunc(func(Query) (Offer, error) {
			return Offer{Rank: rank, LastRank: 2, Port: uint16(rank)}, nil
		})})
		ports = append(ports, port)
	}
	for round, want := range [][]byte{{2, 1, 0}, {1, 0, 17}, {0, 18, 34}, {19, 35, 51}} {
		began := time.Now()
		for _, port := range ports {
			sendQuery(t, conn, "127.0.0.1", port, "EBOOTQ13.1.5")
		}
		for i, priority := range want {
			answer, _ := receiveAnswer(t, conn)
			if answer[6] != priority || answer[8] != byte(2-i) {
				t.Errorf("round %d, answer %d: %q, want priority %d of rank %d", round, i, answer, priority, 2-i)
			}
			if waited := time.Since(began); waited < time.Duration(i)*pace {
				t.Errorf("round %d: rank %d answered after %v", round, 2-i, waited)
			}
		}
	}
	// Another search begins anew.
	other := searcher(t)
	sendQuery(t, other, "127.0.0.1", ports[2], "EBOOTQ13.1.5")
	if answer, _ := receiveAnswer(t, other); answer[6] != 2 {
		t.Errorf("another search: %q", answer)
	}
}

func TestDiscoveryLimits(t *testing.T) {
	d, port := startDiscovery(t, "127.0.0.1", DiscoveryOptions{Answerer: answererFunc(alone), AnswersPerAddress: 1, AnswerBurst: 5})
	conn := searcher(t)
	for range 50 {
		sendQuery(t, conn, "127.0.0.1", port, "EBOOTQ13.1.5")
	}
	eventually(t, "all requests are counted", func() bool { return d.Stats().Requests == 50 })
	if stats := d.Stats(); stats.Answers < 5 || stats.Answers > 7 || stats.Answers+stats.Limited != 50 {
		t.Errorf("stats: %+v", stats)
	}
	other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	sendQuery(t, other, "127.0.0.1", port, "EBOOTQ13.1.5")
	receiveAnswer(t, other)

	all := NewDiscovery(DiscoveryOptions{Answerer: answererFunc(alone), Answers: 3})
	now, answered := time.Now(), 0
	for i := range 10 {
		if _, ok := all.enter(now, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1), Offer{}); ok {
			answered++
		}
	}
	if answered != 3 {
		t.Errorf("%d answers in a moment, the limit is 3 a second", answered)
	}
}

// TestSearchMemory follows the count of one search through time.
func TestSearchMemory(t *testing.T) {
	d := NewDiscovery(DiscoveryOptions{Answerer: answererFunc(alone)})
	now := time.Unix(1000, 0)
	slave := netip.MustParseAddrPort("10.0.0.7:40000")
	for i, c := range []struct {
		wait time.Duration
		n    int
	}{{0, 0}, {500 * time.Millisecond, 1}, {15 * time.Second, 2}, {20 * time.Second, 3}, {20*time.Second + 1, 0}, {time.Hour, 0}, {0, 1}} {
		now = now.Add(c.wait)
		s, ok := d.enter(now, slave, Offer{Rank: i, LastRank: 9})
		if !ok || s.answered != c.n {
			t.Errorf("after %v: repeat %d, %v; want %d", c.wait, s.answered, ok, c.n)
		}
		if s.answered > 0 && s.rank == i || s.answered == 0 && s.rank != i {
			t.Errorf("after %v: paced by rank %d", c.wait, s.rank)
		}
	}
	for i := range 4 * maxSearches {
		now = now.Add(time.Millisecond)
		d.enter(now, netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 1), Offer{})
	}
	if n := len(d.searches.young) + len(d.searches.old); n > 2*maxSearches {
		t.Errorf("%d searches are remembered", n)
	}
	if n := len(d.buckets.young) + len(d.buckets.old); n > 2*maxBuckets {
		t.Errorf("%d buckets are remembered", n)
	}
}

// TestOutboxIsBounded puts more answers than an outbox may hold.
func TestOutboxIsBounded(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := 0
	out := newOutbox(conn, func(error) { sent++ })
	now := time.Now()
	const more = 100
	for range outboxQueue + more { // nobody empties it
		out.put(now, answer{due: now.Add(time.Hour), to: conn.LocalAddr().(*net.UDPAddr).AddrPort(), length: 1})
	}
	if sent != more {
		t.Errorf("%d answers were sent at once, want %d", sent, more)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		out.run(ctx)
		close(ended)
	}()
	eventually(t, "the queue is taken over", func() bool { return len(out.queue) == 0 })
	cancel()
	<-ended
}

func TestRefusalsAreLoggedOnceAMinute(t *testing.T) {
	var log bytes.Buffer
	r := &refusals{logger: hclog.New(&hclog.LoggerOptions{Output: &log})}
	now := time.Unix(1000, 0)
	lines := func() int { return strings.Count(log.String(), "\n") }
	slave := netip.MustParseAddr("10.0.0.7")
	for range 10 {
		r.log(now, slave, "not in the whitelist", "refused", "13.1.5")
		r.log(now, slave, "another reason", "refused", "13.1.5")
	}
	if lines() != 2 {
		t.Errorf("%d lines: %s", lines(), log.String())
	}
	for i := range 100 { // one address that always finds another reason
		r.log(now, slave, fmt.Sprint("reason ", i), "refused", "13.1.5")
	}
	if lines() != refusalLinesOfEach {
		t.Errorf("%d lines of one address: %s", lines(), log.String())
	}
	for i := range 1000 {
		r.log(now, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), "not in the whitelist", "refused", "13.1.5")
	}
	if lines() != refusalLines || len(r.logged) != refusalLines {
		t.Errorf("%d lines, %d remembered", lines(), len(r.logged))
	}
	log.Reset()
	now = now.Add(time.Minute)
	r.log(now, slave, "not in the whitelist", "refused", "13.1.5")
	if want := fmt.Sprintf("count=%d", 18+100+1000-(refusalLines-2)); lines() != 2 || !strings.Contains(log.String(), want) {
		t.Errorf("want %s: %s", want, log.String())
	}
}

func TestDiscoveryEndsWithItsSocket(t *testing.T) {
	conn, err := listenDiscovery(loopback, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := NewDiscovery(DiscoveryOptions{Answerer: answererFunc(alone)}).Serve(t.Context(), conn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want net.ErrClosed", err)
	}
}
