package bench

import (
	"fmt"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// BenchmarkGroupMemory: resident memory of each of three servers with one OTP bundle,
// idle and while 200 slaves boot at once, spread over them.
func BenchmarkGroupMemory(b *testing.B) {
	erl := testutil.RequireErl(b)
	g := startGroup(b, erl.Root)
	g.publishOTP(erl)
	publishing := greatest(readAllResident(b, g.pids()))
	afterPublish := greatest(allSettled(b, g.pids()))
	g.restart()
	own := g.target(erl, "127.0.0.1")
	restarted := greatest(allSettled(b, g.pids()))
	boots := recordBoots(b, erl, referenceTarget(b, erl))
	for _, pid := range g.pids() {
		resetPeak(pid)
	}
	for b.Loop() {
		for _, boot := range boots {
			load{boot: boot, connections: 200, during: 2 * time.Second}.run(b, own)
		}
	}
	busy := greatest(readAllResident(b, g.pids()))
	idle := max(afterPublish.now, restarted.now)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mebibytes(idle), "MiB-idle")
	b.ReportMetric(mebibytes(busy.peak), "MiB-200-boots")
	summary.note("resident memory of the greatest of three, idle", fmt.Sprintf("%.1f MiB after the publish (peak in it %.1f), %.1f after a restart, of which %.1f are not of files",
		mebibytes(afterPublish.now), mebibytes(publishing.peak), mebibytes(restarted.now), mebibytes(restarted.anon)))
	summary.note("  200 boots at once over all three, peak", fmt.Sprintf("%.1f MiB", mebibytes(busy.peak)))
}

// greatest is the most that any of the processes has, of each kind of memory.
func greatest(all []resident) resident {
	var g resident
	for _, r := range all {
		g = resident{now: max(g.now, r.now), peak: max(g.peak, r.peak), anon: max(g.anon, r.anon)}
	}
	return g
}
