package bench

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// idleWindow is how long a server is watched that has nothing to do.
const idleWindow = 5 * time.Second

// BenchmarkGroupDiscovery: what an answer costs a server that has a rank among three,
// beside one that is alone.
//
// Slaves for whom the server is the last of the three hear it at once, as they hear the one
// that is alone: the difference is the rank. For the others it also holds the answer back.
func BenchmarkGroupDiscovery(b *testing.B) {
	erl := testutil.RequireErl(b)
	g := startGroup(b, erl.Root)
	g.publishOTP(erl)
	member, alone := g.followers()[0], startOTP(b, erl)
	alone.filePort(erl)
	kinds := []discoveryKind{
		{figure: "discovery: CPU per answer, a rank among three / alone", slaves: lastChoice(b, erl, g, member), workers: searchWorkers},
		{figure: "  200 slaves at once, most answers held back", slaves: searchAddresses(), workers: searchSockets},
	}
	for i := range kinds {
		k := &kinds[i]
		for j, s := range []*server{member, alone} {
			k.loads[j] = newDiscoveryLoad(b, nil, erl, s.address, k.slaves)
			k.loads[j].workers = k.workers
		}
	}
	idle := cpuTime(b, member.pid())
	wait := time.NewTimer(idleWindow)
	<-wait.C
	idle = cpuTime(b, member.pid()) - idle
	pause := time.NewTicker(refill)
	defer pause.Stop()
	round := 0
	for b.Loop() {
		for i := range kinds {
			k := &kinds[i]
			<-pause.C
			<-pause.C // the first may have come long ago
			one := func(j int, s *server) func() {
				return func() {
					_, used, lost := k.loads[j].run(b, s.pid())
					k.cpu[j].add(used.Seconds(), float64(searches-lost))
					k.lost[j] += lost
				}
			}
			inTurn(round, one(0, member), one(1, alone))
		}
		round++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(kinds[0].cpu[0].over(kinds[0].cpu[1]).total, "cpu/alone")
	for _, k := range kinds {
		summary.note(k.figure, fmt.Sprintf("%s: %.1f and %.1f µs; unanswered %d and %d of %d",
			k.cpu[0].over(k.cpu[1]), 1e6*k.cpu[0].value(), 1e6*k.cpu[1].value(), k.lost[0], k.lost[1], round*searches))
	}
	summary.note("  CPU of one of three servers, with nothing to do", fmt.Sprintf("%.1f %% of a processor", 100*idle.Seconds()/idleWindow.Seconds()))
}

// discoveryKind is one kind of searching slaves, and what their answers took of the
// member of a group and of the server that is alone.
type discoveryKind struct {
	figure  string
	slaves  []string
	workers int
	loads   [2]*discoveryLoad
	cpu     [2]tally
	lost    [2]int64
}

// lastChoice returns the addresses of searchSockets slaves for whom the server is the last of
// the group. The byte of its first answer to a search says which it is.
func lastChoice(tb testing.TB, erl testutil.Erlang, g *group, s *server) []string {
	tb.Helper()
	const atOnce = 100
	l := newDiscoveryLoad(tb, nil, erl, s.address, nil)
	var found []string
	for wave := 0; len(found) < searchSockets; wave++ {
		if wave == 20*searchSockets/atOnce {
			tb.Fatalf("of %d slaves, the server is the last choice of %d", wave*atOnce, len(found))
		}
		var all sync.WaitGroup
		var addresses [atOnce]string
		var replies [atOnce]testutil.Discovered
		var errs [atOnce]error
		for i := range atOnce {
			addresses[i] = fmt.Sprintf("127.2.%d.%d", wave, 1+i)
			all.Go(func() { replies[i], errs[i] = l.askAs(addresses[i]) })
		}
		all.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			tb.Fatal(err)
		}
		for i, reply := range replies {
			if int(reply.Priority) == len(g.servers)-1 && len(found) < searchSockets {
				found = append(found, addresses[i])
			}
		}
	}
	return found
}

// askAs asks once, from a new port of the slave: it is a new search.
func (l *discoveryLoad) askAs(slave string) (testutil.Discovered, error) {
	conn, err := listenUDP(nil, slave+":0")
	if err != nil {
		return testutil.Discovered{}, err
	}
	defer func() { _ = conn.Close() }()
	reply, err := l.ask(conn)
	if err != nil {
		err = fmt.Errorf("discovery as %s: %w", slave, err)
	}
	return reply, err
}
