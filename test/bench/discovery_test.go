package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// One round asks searches times. It stays below what eboot answers at once, 20,000 in
// all and 1,024 to one address, and refill lets it have all of that again.
const (
	searches      = 10000
	searchSockets = 200
	refill        = time.Second
	searchWorkers = 8 // more at once overflow erl_boot_server, which then drops some
)

// searchAddresses are those of the slaves that search.
func searchAddresses() []string {
	var addresses []string
	for i := range searchSockets {
		addresses = append(addresses, fmt.Sprintf("127.1.0.%d", 1+i))
	}
	return addresses
}

// discoveryLoad holds one socket for each slave.
type discoveryLoad struct {
	sockets []*net.UDPConn
	server  netip.AddrPort
	request []byte
	workers int
}

func newDiscoveryLoad(tb testing.TB, ns *testutil.Namespace, erl testutil.Erlang, server string, slaves []string) *discoveryLoad {
	tb.Helper()
	l := &discoveryLoad{
		server:  netip.AddrPortFrom(netip.MustParseAddr(server), testutil.DiscoveryPort),
		request: []byte("EBOOTQ" + erl.ERTS),
		workers: searchWorkers,
	}
	for _, address := range slaves {
		conn, err := listenUDP(ns, address+":0")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = conn.Close() })
		l.sockets = append(l.sockets, conn)
	}
	return l
}

// ask sends one request and waits for the answer as long as the stock client does.
func (l *discoveryLoad) ask(conn *net.UDPConn) (testutil.Discovered, error) {
	if _, err := conn.WriteToUDPAddrPort(l.request, l.server); err != nil {
		return testutil.Discovered{}, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	var reply [64]byte
	n, _, err := conn.ReadFromUDPAddrPort(reply[:])
	if err != nil {
		return testutil.Discovered{}, err
	}
	return testutil.ParseReply(reply[:n])
}

// run asks `searches` times, as many at once as there are workers, each waiting for its answer.
func (l *discoveryLoad) run(tb testing.TB, pid int) (elapsed, cpu time.Duration, lost int64) {
	tb.Helper()
	var workers sync.WaitGroup
	var missing atomic.Int64
	var failed atomic.Pointer[error]
	used := cpuTime(tb, pid)
	began := time.Now()
	for w := range l.workers {
		workers.Go(func() {
			for i := range searches / l.workers {
				_, err := l.ask(l.sockets[(w+i*l.workers)%len(l.sockets)])
				if errors.Is(err, os.ErrDeadlineExceeded) {
					missing.Add(1)
				} else if err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	workers.Wait()
	elapsed, cpu = time.Since(began), cpuTime(tb, pid)-used
	if err := failed.Load(); err != nil {
		tb.Fatalf("discovery: %v", *err)
	}
	return elapsed, cpu, missing.Load()
}

// BenchmarkDiscovery: answers to slaves that look for a server. Both servers are whole,
// each in a network namespace of its own, because erl_boot_server takes the port on every address.
func BenchmarkDiscovery(b *testing.B) {
	erl := testutil.RequireErl(b)
	testutil.RequireRoot(b)
	ownNetwork, referenceNetwork := testutil.NewNamespace(b), testutil.NewNamespace(b)
	s := startServer(b, serverOptions{Roots: []string{erl.Root}, Namespace: ownNetwork})
	s.publish("otp", "1", erl.Root, "--channel", eboot.DefaultChannel)
	s.filePort(erl)
	slaves := searchAddresses()
	reference := testutil.StartBootServer(b, erl, testutil.BootServerOptions{Namespace: referenceNetwork, Whitelist: slaves})
	own, other := newDiscoveryLoad(b, ownNetwork, erl, ebootAddress, slaves), newDiscoveryLoad(b, referenceNetwork, erl, "127.0.0.1", slaves)
	var rate, otherRate, cpu, otherCPU tally
	var lost, otherLost int64
	round := 0
	pause := time.NewTicker(refill)
	defer pause.Stop()
	for b.Loop() {
		<-pause.C
		<-pause.C // the first may have come long ago
		one := func(l *discoveryLoad, pid int, rate, cpu *tally, lost *int64) func() {
			return func() {
				elapsed, used, missing := l.run(b, pid)
				rate.add(float64(searches-missing), elapsed.Seconds())
				cpu.add(used.Seconds(), float64(searches-missing))
				*lost += missing
			}
		}
		inTurn(round, one(own, s.pid(), &rate, &cpu, &lost), one(other, reference.PID(), &otherRate, &otherCPU, &otherLost))
		round++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(cpu.over(otherCPU).total, "cpu/OTP")
	b.ReportMetric(rate.over(otherRate).total, "answers/OTP")
	summary.note("discovery: CPU per answer, eboot/OTP", fmt.Sprintf("%s: %.1f and %.1f µs", cpu.over(otherCPU), 1e6*cpu.value(), 1e6*otherCPU.value()))
	summary.note("discovery: answers per second, eboot/OTP", fmt.Sprintf("%s: %.0f and %.0f; unanswered %d and %d of %d", rate.over(otherRate), rate.value(), otherRate.value(), lost, otherLost, round*searches))
}
