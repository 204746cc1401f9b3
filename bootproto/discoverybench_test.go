package bootproto

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkDiscoveryReceive is what one datagram costs a server that finds many in its
// socket: a flood. CPU time, which is not that of its neighbours.
func BenchmarkDiscoveryReceive(b *testing.B) {
	const batch = 1000 // fits the buffer of the socket
	for _, c := range []struct {
		what, datagram string
		whitelisted    bool
		burst          int
	}{
		{"answered", "EBOOTQ13.1.5", true, 1 << 30},
		{"over the limit", "EBOOTQ13.1.5", true, 1},
		{"stranger", "EBOOTQ13.1.5", false, 1},
		{"malformed", "EBOOTQ13 1 5", true, 1},
	} {
		b.Run(c.what, func(b *testing.B) {
			host := newTree()
			host.denied.Store(!c.whitelisted)
			conn, err := listenDiscovery(loopback, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			port := conn.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
			from := searcher(b)
			d := NewDiscovery(DiscoveryOptions{AnswersPerAddress: 1, AnswerBurst: c.burst, Answers: 1 << 30, Answerer: answererFunc(func(q Query) (Offer, error) {
				if host.denied.Load() {
					return Offer{}, errors.New("address is not whitelisted")
				}
				return alone(q)
			})})
			total := func() uint64 {
				s := d.Stats()
				return s.Answers + s.Failed + s.Malformed + s.Refused + s.Limited
			}
			out := newOutbox(conn, d.sent)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			b.ReportAllocs()
			want, used := uint64(0), time.Duration(0)
			for b.Loop() {
				b.StopTimer()
				for range batch {
					sendQuery(b, from, "127.0.0.1", port, c.datagram)
				}
				want += batch
				ended := make(chan struct{})
				stop, end := context.WithCancel(ctx)
				began := cpuTime(b)
				b.StartTimer()
				go func() {
					defer close(ended)
					_ = d.receive(stop, conn, out)
				}()
				for total() < want {
					<-time.After(20 * time.Microsecond)
				}
				b.StopTimer()
				end()
				_ = conn.SetReadDeadline(time.Now())
				<-ended
				used += cpuTime(b) - began
				_ = conn.SetReadDeadline(time.Time{})
				b.StartTimer()
			}
			b.ReportMetric(float64(used.Nanoseconds())/float64(want), "cpu-ns/datagram")
		})
	}
}
