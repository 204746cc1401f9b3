package bootproto

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// otherAddress is a connection in memory that comes from an address of its own.
type otherAddress struct {
	net.Conn
	from netip.AddrPort
}

func (c otherAddress) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

func (p *pipes) dialFrom(address string) net.Conn {
	client, server := net.Pipe()
	p.accept <- otherAddress{server, netip.AddrPortFrom(netip.MustParseAddr(address), 40000)}
	return client
}

// closed reports whether the server has closed a connection that it owes nothing.
func closed(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if errors.Is(conn.SetReadDeadline(time.Now().Add(time.Millisecond)), io.ErrClosedPipe) {
		return true
	}
	_, err := conn.Read(make([]byte, 1))
	if err == nil {
		t.Fatal("something was sent unasked")
	}
	return errors.Is(err, io.EOF)
}

// Connections that do nothing fill all places: a slave of another address has one at once,
// and loses it to none of those, however many they are.
func TestFairShare(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	inBubble(t, FileServerOptions{Host: newTree(), ConnectionsPerAddress: 6, Connections: 10}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
		many, few, slave := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
		var silent []net.Conn
		for i := range 10 {
			from := many
			if i >= 6 {
				from = few
			}
			conn := ln.dialFrom(from.String())
			defer conn.Close()
			if i == 1 { // stuck in a request, and silent for less long than the first
				send(t, conn, request[:7])
			}
			silent = append(silent, conn)
			synctest.Wait()
			pass(time.Millisecond)
		}
		if !s.Full(slave) {
			t.Error("connections that may be about to ask make room for others")
		}
		pass(DefaultQuiet)
		if s.Full(slave) || s.Full(many) || s.Full(few) {
			t.Error("connections that are silent make no room for others")
		}
		booting := ln.dialFrom(slave.String())
		defer booting.Close()
		exchange(t, booting, request)
		if !closed(t, silent[0]) {
			t.Error("the connection that was silent for longest, of the address with the most, is open")
		}
		for i, conn := range silent[1:] {
			if closed(t, conn) {
				t.Errorf("connection %d was closed, too", i+1)
			}
		}
		for range 8 { // the newcomers of an address take the places of its own
			pass(DefaultQuiet)
			conn := ln.dialFrom(many.String())
			defer conn.Close()
			synctest.Wait()
		}
		exchange(t, booting, request)
		for i, conn := range silent[6:] {
			if closed(t, conn) {
				t.Errorf("connection %d, of an address with fewer, was closed", 6+i)
			}
		}
		if stats := s.Stats(); stats.Displaced != 9 || stats.Connections != 10 || stats.Rejected != 0 || stats.Timeouts != 0 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

// A connection that was used keeps its place: a stock slave whose idle connection is closed
// waits a minute at its next module.
func TestUsedConnectionsKeepTheirPlaces(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	inBubble(t, FileServerOptions{Host: newTree(), ConnectionsPerAddress: 4, Connections: 4}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
		var used []net.Conn
		for range 4 {
			conn := ln.dialFrom("10.0.0.1")
			defer conn.Close()
			exchange(t, conn, request)
			used = append(used, conn)
		}
		pass(30 * time.Second)
		if !s.Full(netip.MustParseAddr("10.0.0.2")) || !s.Full(netip.MustParseAddr("10.0.0.1")) {
			t.Error("it is not full, and all places are taken by slaves that use them")
		}
		late := ln.dialFrom("10.0.0.2")
		defer late.Close()
		synctest.Wait()
		if !closed(t, late) {
			t.Error("a connection beyond the limit is open")
		}
		for _, conn := range used {
			exchange(t, conn, request)
		}
		// One of them stops in the middle of a request.
		send(t, used[2], request[:5])
		pass(DefaultQuiet)
		late = ln.dialFrom("10.0.0.2")
		defer late.Close()
		exchange(t, late, request)
		if !closed(t, used[2]) {
			t.Error("the connection that is stuck in a request is open")
		}
		if stats := s.Stats(); stats.Displaced != 1 || stats.Rejected != 1 || stats.Connections != 4 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

// onlyFrom is a Host whose whitelist has one network.
type onlyFrom struct {
	*tree
	prefix netip.Prefix
}

func (h onlyFrom) Admit(slave netip.Addr) error {
	if !h.prefix.Contains(slave) {
		return errors.New("not in the whitelist")
	}
	return nil
}

// A stranger costs no slave its place, however often he comes.
func TestStrangersTakeNoPlaces(t *testing.T) {
	host := onlyFrom{newTree(), netip.MustParsePrefix("10.0.0.0/24")}
	inBubble(t, FileServerOptions{Host: host, ConnectionsPerAddress: 2, Connections: 2}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
		first, second := ln.dialFrom("10.0.0.1"), ln.dialFrom("10.0.0.1")
		defer first.Close()
		defer second.Close()
		pass(2 * DefaultQuiet) // they could lose their places
		for i := range 1000 {
			conn := ln.dialFrom(fmt.Sprintf("10.9.%d.%d", i/250, i%250))
			synctest.Wait()
			if !closed(t, conn) {
				t.Fatal("a stranger's connection is open")
			}
			_ = conn.Close()
		}
		exchange(t, first, ask("get", "/bin/start.boot"))
		exchange(t, second, ask("get", "/bin/start.boot"))
		if stats := s.Stats(); stats.Denied != 1000 || stats.Displaced != 0 || stats.Connections != 2 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

// TestPlaces does random things and compares with what is counted in the simplest way.
func TestPlaces(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		p := newPlaces(5, 20, time.Second)
		now := time.Unix(1000, 0)
		var all []*connection
		var silent = map[*connection]time.Time{}
		forget := func(c *connection) {
			delete(silent, c)
			for i, other := range all {
				if other == c {
					all = append(all[:i], all[i+1:]...)
					return
				}
			}
			t.Fatalf("seed %d: a connection that is not open lost its place", seed)
		}
		for range 2000 {
			now = now.Add(time.Duration(random.IntN(200)) * time.Millisecond)
			switch random.IntN(4) {
			case 0, 1:
				c := &connection{slave: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(8))}), 1)}
				own, most := 0, map[netip.Addr]int{}
				for _, other := range all {
					most[other.slave.Addr()]++
				}
				own = most[c.slave.Addr()]
				_, room := p.room(now, c.slave.Addr())
				displaced, ok := p.enter(now, c)
				switch {
				case room != ok:
					t.Fatalf("seed %d: room %v, entered %v", seed, room, ok)
				case ok && displaced == nil && (own >= 5 || len(all) >= 20):
					t.Fatalf("seed %d: a place beyond the limits", seed)
				case !ok && own < 5 && len(all) < 20:
					t.Fatalf("seed %d: refused where there is room", seed)
				case displaced != nil:
					since, is := silent[displaced]
					of := displaced.slave.Addr()
					if !is || now.Sub(since) < time.Second || of != c.slave.Addr() && most[of] <= own+1 {
						t.Fatalf("seed %d: %s with %d connections took a place of %s with %d, silent %v", seed, c.slave, own, of, most[of], is)
					}
					for other, began := range silent {
						if other.slave.Addr() == of && began.Before(since) {
							t.Fatalf("seed %d: another was silent for longer", seed)
						}
					}
					forget(displaced)
				}
				if ok {
					all = append(all, c)
				}
			case 2:
				if len(all) > 0 {
					c := all[random.IntN(len(all))]
					p.leave(&c.place)
					forget(c)
					p.leave(&c.place) // nothing happens
				}
			default:
				if len(all) > 0 {
					c := all[random.IntN(len(all))]
					if _, is := silent[c]; is && random.IntN(3) == 0 {
						p.speak(&c.place)
						delete(silent, c)
					} else if !is {
						p.hush(now, &c.place)
						silent[c] = now
					}
				}
			}
			count := 0
			for i, h := range p.crowd {
				if count += h.open; h.index != i || i > 0 && h.silent.Len() > p.crowd[(i-1)/2].silent.Len() || h.open == 0 || p.holders[h.addr] != h {
					t.Fatalf("seed %d: the heap is out of order", seed)
				}
			}
			if count != len(all) || p.open != len(all) || len(p.crowd) != len(p.holders) {
				t.Fatalf("seed %d: %d open, %d counted, %d held", seed, len(all), p.open, count)
			}
		}
	}
}

// BenchmarkPlaces is what places cost a connection, of which the kernel and the runtime cost some 20 µs:
// with thousands of addresses, all places taken, and one of a stuck connection needed each time.
func BenchmarkPlaces(b *testing.B) {
	for _, full := range []bool{false, true} {
		b.Run(fmt.Sprintf("full=%v", full), func(b *testing.B) {
			p := newPlaces(DefaultConnectionsPerAddress, DefaultConnections, time.Second)
			now := time.Now()
			open := DefaultConnections
			if !full {
				open--
			}
			for i := range open {
				address := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
				if i%8 == 0 {
					address = netip.AddrFrom4([4]byte{10, 1, 0, 1})
				}
				c := &connection{slave: netip.AddrPortFrom(address, 1)}
				if _, ok := p.enter(now, c); !ok {
					b.Fatal("full")
				}
				p.hush(now, &c.place)
			}
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Second)
				c := &connection{slave: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, 0, 1}), 1)}
				displaced, ok := p.enter(now, c)
				if !ok {
					b.Fatal("refused")
				}
				p.hush(now, &c.place)
				p.speak(&c.place)
				p.leave(&c.place)
				if displaced != nil { // it comes again
					if _, ok := p.enter(now, displaced); !ok {
						b.Fatal("refused")
					}
					p.hush(now, &displaced.place)
				}
			}
		})
	}
}
