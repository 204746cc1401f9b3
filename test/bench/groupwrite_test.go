package bench

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// writesPerRound are made one after the other through each server.
const writesPerRound = 50

// BenchmarkGroupWrite: how long one entry of the whitelist takes through a server that
// hands it on to the leader, beside the leader itself.
func BenchmarkGroupWrite(b *testing.B) {
	erl := testutil.RequireErl(b)
	g := startGroup(b, erl.Root)
	written := 0
	write := func(s *server) time.Duration {
		address := netip.AddrFrom4([4]byte{10, byte(written >> 16), byte(written >> 8), byte(written)})
		written++
		began := time.Now()
		s.allow(eboot.WhitelistEntry{Prefix: netip.PrefixFrom(address, 32), Channel: eboot.DefaultChannel})
		return time.Since(began)
	}
	for _, s := range g.servers {
		write(s) // connects
	}
	var forwarded, direct writeTimes
	round := 0
	for b.Loop() {
		one := func(s *server, t *writeTimes) func() {
			return func() {
				for range writesPerRound {
					t.all = append(t.all, write(s))
				}
				var sum time.Duration
				for _, took := range t.all[len(t.all)-writesPerRound:] {
					sum += took
				}
				t.mean.add(sum.Seconds(), writesPerRound)
			}
		}
		inTurn(round, one(g.followers()[0], &forwarded), one(g.leader(), &direct))
		round++
	}
	compared := forwarded.mean.over(direct.mean)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(compared.total, "time/leader")
	summary.note("a write through a follower / through the leader", fmt.Sprintf("%s: %s and %s", compared, forwarded, direct))
}

// writeTimes are those of one server.
type writeTimes struct {
	mean tally
	all  []time.Duration
}

func (t writeTimes) String() string {
	return fmt.Sprintf("%.1f ms (p50 %s, p99 %s)", 1e3*t.mean.value(), milliseconds(percentile(t.all, 50)), milliseconds(percentile(t.all, 99)))
}
