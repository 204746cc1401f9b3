package bench

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// BenchmarkCuredBoots: slaves that run our loader, 20 at once, boot after boot, beside
// stock ones of OTP's server. Ours search first and end with a report, theirs do neither.
func BenchmarkCuredBoots(b *testing.B) {
	erl := testutil.RequireErl(b)
	reference := referenceTarget(b, erl)
	boots := recordBoots(b, erl, reference)
	s := startOTP(b, erl)
	for _, embedded := range []bool{false, true} { // two boots each: the first one is learned from
		for range 2 {
			slave := testutil.StartSlave(b, erl, testutil.SlaveOptions{Hosts: []string{s.address}, Root: erl.Root, Embedded: embedded, Eval: "halt(0)."})
			if exit := slave.Wait(time.Minute); exit.Status != 0 {
				b.Fatalf("boot ended with %d:\n%s", exit.Status, exit.Output)
			}
		}
	}
	var cpu, otherCPU tally
	perMode := map[string]*[2]tally{}
	bytes := map[string]int64{}
	for _, boot := range boots {
		perMode[boot.mode] = &[2]tally{}
	}
	round := 0
	for b.Loop() {
		for _, boot := range boots {
			mode := perMode[boot.mode]
			ours := func() {
				used, n, received := curedBoots(b, s, erl, boot.mode == "embedded", 3*time.Second)
				mode[0].add(used.Seconds(), float64(n))
				cpu.add(used.Seconds(), float64(n))
				bytes[boot.mode] = received / int64(n)
			}
			theirs := func() {
				r := load{boot: boot, connections: 20, during: 3 * time.Second, prepared: true}.run(b, reference)
				mode[1].add(r.cpu.Seconds(), float64(r.boots))
				otherCPU.add(r.cpu.Seconds(), float64(r.boots))
			}
			inTurn(round, ours, theirs)
		}
		round++
	}
	ratio := cpu.over(otherCPU)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ratio.total, "cpu/OTP")
	summary.atMost("our loader, 20 at once: CPU per boot, eboot/OTP", ratio.total, 0.15, "≤ 0.15", ratio.String())
	for _, boot := range boots {
		m := perMode[boot.mode]
		summary.note(fmt.Sprintf("  %s, %.1f MB (stock %.1f)", boot.mode, float64(bytes[boot.mode])/1e6, float64(boot.ReplyBytes())/1e6),
			fmt.Sprintf("CPU %s: %.1f and %.1f ms", m[0].over(m[1]), 1e3*m[0].value(), 1e3*m[1].value()))
	}
}

// curedBoots boots for a while and returns the CPU time of the server, how many boots
// there were, and what they received. None may switch.
func curedBoots(b *testing.B, s *server, erl testutil.Erlang, embedded bool, during time.Duration) (time.Duration, int, int64) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	var (
		workers  sync.WaitGroup
		mu       sync.Mutex
		boots    int
		received int64
	)
	used := cpuTime(b, s.pid())
	end := time.Now().Add(during)
	for range 20 {
		workers.Go(func() {
			for time.Now().Before(end) {
				session := testutil.NewSession(testutil.SessionOptions{Servers: []string{s.address}, ERTS: erl.ERTS, Root: erl.Root, Embedded: embedded})
				err := session.Boot(ctx, testutil.SimulatedBoot{Script: erl.Root + "/bin/start.boot"})
				session.Close()
				mu.Lock()
				boots++
				received += session.Bytes
				if err != nil || session.Switches > 0 {
					b.Errorf("a boot switched %d times: %v", session.Switches, err)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if boots == 0 {
		b.Fatal("not one boot")
	}
	return cpuTime(b, s.pid()) - used, boots, received
}
