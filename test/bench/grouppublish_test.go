package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"eboot/internal/testutil"
)

// BenchmarkGroupPublish: an installed OTP tree into three fresh servers, until all show
// and hold it, beside the same into one.
func BenchmarkGroupPublish(b *testing.B) {
	erl := testutil.RequireErl(b)
	var three, one, threeCPU, oneCPU tally
	measure := func(wall, cpu *tally, through *server, servers ...*server) {
		var pids []int
		for _, s := range servers {
			pids = append(pids, s.pid())
		}
		unix.Sync() // what others left to be written is not ours to pay for
		used, began := cpuTime(b, pids...), time.Now()
		through.publish("otp", "1", erl.Root)
		waitHeld(b, "otp@1", servers...)
		wall.add(time.Since(began).Seconds(), 1)
		cpu.add((cpuTime(b, pids...) - used).Seconds(), 1)
	}
	round := 0
	for b.Loop() {
		inTurn(round, func() {
			g := startGroup(b, erl.Root)
			measure(&three, &threeCPU, g.leader(), g.servers...)
			g.stop()
		}, func() {
			s := startServer(b, serverOptions{Roots: []string{erl.Root}})
			measure(&one, &oneCPU, s, s)
			s.stop()
		})
		round++
	}
	compared := three.over(one)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(compared.total, "time/one-server")
	summary.note("publish an installed OTP to three servers / to one", fmt.Sprintf("%s: %.2f and %.2f s", compared, three.value(), one.value()))
	summary.note("  CPU of all servers", fmt.Sprintf("%s: %.2f and %.2f s", threeCPU.over(oneCPU), threeCPU.value(), oneCPU.value()))
}

// BenchmarkGroupCopy: a new, empty server in the place of the third one catches up with
// a bundle of an installed OTP.
func BenchmarkGroupCopy(b *testing.B) {
	erl := testutil.RequireErl(b)
	g := startGroup(b, erl.Root)
	g.publishOTP(erl)
	var rate, rateFromStart, own, others tally
	var bytes int64
	place := slices.Index(g.servers, g.followers()[0])
	for b.Loop() {
		old := g.servers[place]
		status, err := old.client.Status(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := g.leader().client.RemoveServer(b.Context(), status.Server, false); err != nil {
			b.Fatalf("remove server %s: %v", status.Server, err)
		}
		old.stop()
		sources := slices.Delete(g.pids(), place, place+1)
		unix.Sync()
		used, started := cpuTime(b, sources...), time.Now()
		s := g.launch(place, newDir(b))
		g.servers[place] = s
		var knew time.Time // of the bundle, and began to copy it
		testutil.Poll(b, groupDeadline, "a new server is to hold the bundle", func() bool {
			s.alive()
			bundle, ok := s.bundle("otp@1")
			if ok && knew.IsZero() {
				knew = time.Now()
			}
			return ok && bundle.Disk != nil && bundle.Disk.Missing == 0
		})
		whole := time.Now()
		others.add((cpuTime(b, sources...) - used).Seconds(), 1)
		own.add(cpuTime(b, s.pid()).Seconds(), 1)
		if status, err = s.client.Status(b.Context()); err != nil {
			b.Fatal(err)
		}
		bytes = status.Readiness.Storage.Bytes
		rate.add(float64(bytes)/1e6, whole.Sub(knew).Seconds())
		rateFromStart.add(float64(bytes)/1e6, whole.Sub(started).Seconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate.value(), "MB/s")
	summary.note(fmt.Sprintf("copy of a bundle of %.0f MB to a new server", float64(bytes)/1e6), fmt.Sprintf("%.0f MB/s; CPU %.2f s of the new server, %.2f s of the two that have it",
		rate.value(), own.value(), others.value()))
	summary.note("  from the start of its process", fmt.Sprintf("%.1f MB/s: whole after %.2f s", rateFromStart.value(), float64(bytes)/1e6/rateFromStart.value()))
}
