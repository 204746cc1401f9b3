package bench

import (
	"fmt"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// settled waits until the memory of a process has not changed by more than 1 MiB for
// five seconds, or for 40 s in all: the Go runtime gives memory back in the background.
func settled(tb testing.TB, pid int) resident {
	tb.Helper()
	return allSettled(tb, []int{pid})[0]
}

// allSettled waits as settled does, for all of the processes at the same time.
func allSettled(tb testing.TB, pids []int) []resident {
	tb.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	latest, since := readAllResident(tb, pids), began
	for {
		<-tick.C
		now := readAllResident(tb, pids)
		for i, r := range now {
			if difference := r.now - latest[i].now; max(difference, -difference) > 1<<20 {
				latest, since = now, time.Now()
			}
		}
		if time.Since(since) > 5*time.Second || time.Since(began) > 40*time.Second {
			return now
		}
	}
}

// BenchmarkMemory: resident memory of a server with one OTP bundle, idle and while 200
// slaves boot at once.
func BenchmarkMemory(b *testing.B) {
	erl := testutil.RequireErl(b)
	options := serverOptions{Dir: newDir(b), Roots: []string{erl.Root}}
	s := startServer(b, options)
	s.publish("otp", "1", erl.Root, "--channel", eboot.DefaultChannel)
	publishing := readResident(b, s.pid())
	afterPublish := settled(b, s.pid())
	s.stop()
	s = startServer(b, options)
	own := s.target(erl, "127.0.0.1")
	restarted := settled(b, s.pid())
	reference := referenceTarget(b, erl)
	boots := recordBoots(b, erl, reference)
	resetPeak(s.pid())
	resetPeak(reference.pids[0])
	for b.Loop() {
		for _, boot := range boots {
			l := load{boot: boot, connections: 200, during: 2 * time.Second}
			l.run(b, own)
			l.run(b, reference)
		}
	}
	busy, theirs := readResident(b, s.pid()), readResident(b, reference.pids[0])
	afterBoots := settled(b, s.pid())
	idle := max(afterPublish.now, restarted.now)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mebibytes(idle), "MiB-idle")
	b.ReportMetric(mebibytes(busy.peak), "MiB-200-boots")
	summary.atMost("resident memory, one OTP bundle, idle", mebibytes(idle), 64, "< 64 MiB",
		fmt.Sprintf("%.1f MiB after the publish (peak in it %.1f), %.1f after a restart, of which %.1f are not of files", mebibytes(afterPublish.now),
			mebibytes(publishing.peak), mebibytes(restarted.now), mebibytes(restarted.anon)))
	summary.atMost("resident memory, 200 boots at once, peak", mebibytes(busy.peak), 160, "< 160 MiB",
		fmt.Sprintf("%.1f MiB; idle again %.1f; OTP's peak %.1f", mebibytes(busy.peak), mebibytes(afterBoots.now), mebibytes(theirs.peak)))
}
