package bench

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// BenchmarkReplayedBoots: 50 slaves at once, boot after boot.
func BenchmarkReplayedBoots(b *testing.B) {
	erl := testutil.RequireErl(b)
	reference := referenceTarget(b, erl)
	boots := recordBoots(b, erl, reference)
	own := startOTP(b, erl).target(erl, "127.0.0.1")
	type measured struct{ cpu, rate tally }
	var ours, theirs measured
	perMode := map[string]*[2]measured{}
	for _, boot := range boots { // warm both up
		perMode[boot.mode] = &[2]measured{}
		l := load{boot: boot, connections: 50, during: 500 * time.Millisecond, prepared: true}
		l.run(b, own)
		l.run(b, reference)
	}
	round := 0
	for b.Loop() {
		for _, boot := range boots {
			l := load{boot: boot, connections: 50, during: 3 * time.Second, prepared: true}
			one := func(server target, mode *measured, all *measured) func() {
				return func() {
					r := l.run(b, server)
					for _, m := range []*measured{mode, all} {
						m.cpu.add(r.cpu.Seconds(), float64(r.boots))
						m.rate.add(float64(r.boots), r.elapsed.Seconds())
					}
				}
			}
			mode := perMode[boot.mode]
			inTurn(round, one(own, &mode[0], &ours), one(reference, &mode[1], &theirs))
		}
		round++
	}
	cpu, rate := ours.cpu.over(theirs.cpu), ours.rate.over(theirs.rate)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(cpu.total, "cpu/OTP")
	b.ReportMetric(rate.total, "boots/OTP")
	summary.atMost("50 at once: CPU per boot, eboot/OTP", cpu.total, 0.35, "≤ 0.35", cpu.String())
	summary.atLeast("50 at once: boots per second, eboot/OTP", rate.total, 1.7, "≥ 1.7", rate.String())
	for _, boot := range boots {
		m := perMode[boot.mode]
		summary.note(fmt.Sprintf("  %s, %d requests, %.1f MB", boot.mode, boot.Requests(), float64(boot.ReplyBytes())/1e6),
			fmt.Sprintf("CPU %s: %.1f and %.1f ms; rate %s: %.0f and %.0f boots/s", m[0].cpu.over(m[1].cpu), 1e3*m[0].cpu.value(), 1e3*m[1].cpu.value(),
				m[0].rate.over(m[1].rate), m[0].rate.value(), m[1].rate.value()))
	}
}

// BenchmarkBootTimes: how long boots take when 200 slaves are switched on at once.
func BenchmarkBootTimes(b *testing.B) {
	erl := testutil.RequireErl(b)
	reference := referenceTarget(b, erl)
	boots := recordBoots(b, erl, reference)
	own := startOTP(b, erl).target(erl, "127.0.0.1")
	rounds := map[string][]loadResult{}
	theirs := map[string]loadResult{}
	for b.Loop() {
		for _, boot := range boots {
			l := load{boot: boot, connections: 200, during: 3 * time.Second}
			rounds[boot.mode] = append(rounds[boot.mode], l.run(b, own))
			if _, done := theirs[boot.mode]; !done { // one round shows it, and takes patience
				theirs[boot.mode] = l.run(b, reference)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, boot := range boots {
		middle, low, high := middleRound(rounds[boot.mode])
		b.ReportMetric(middle.stall(), "p99/p50-"+boot.mode)
		summary.atMost(fmt.Sprintf("200 at once, %s: p99/p50 of a boot", boot.mode), middle.stall(), 2, "≤ 2",
			fmt.Sprintf("%.2f (%.2f to %.2f): %s", middle.stall(), low, high, middle.percentiles()))
		summary.note("  OTP's", fmt.Sprintf("%.2f: %s; %d boots failed or took more than %v", theirs[boot.mode].stall(),
			theirs[boot.mode].percentiles(), theirs[boot.mode].failed, patience))
	}
}

// stall is by how much the slowest hundredth of the boots of a round are slower than
// the middle one. Rounds are not thrown together: what else the machine does changes from one to the next.
func (r loadResult) stall() float64 {
	return float64(percentile(r.times, 99)) / float64(percentile(r.times, 50))
}

func (r loadResult) percentiles() string {
	return fmt.Sprintf("p50 %s, p99 %s, longest %s of %d boots", milliseconds(percentile(r.times, 50)),
		milliseconds(percentile(r.times, 99)), milliseconds(percentile(r.times, 100)), len(r.times))
}

// middleRound returns the round with the median stall, and the least and the greatest.
func middleRound(rounds []loadResult) (middle loadResult, low, high float64) {
	slices.SortFunc(rounds, func(a, b loadResult) int { return cmp.Compare(a.stall(), b.stall()) })
	return rounds[len(rounds)/2], rounds[0].stall(), rounds[len(rounds)-1].stall()
}
