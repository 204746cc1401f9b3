package fleet

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"eboot"
)

func TestSlaves(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }})
	f.Discovered(netip.MustParseAddr("10.0.0.1"), erts, "not in the whitelist") // it never booted
	boot := func(a netip.Addr, version string, at time.Duration, failure string) {
		b := remoteBoot(1, now.Add(at))
		b.ID, b.Slave, b.ERTS, b.Failure = fmt.Sprintf("s2-%s-%s-%v", a, version, at), a, version, failure
		b.Cured.Number = uint64(at)
		if f.MergeBoots([]eboot.Boot{b}) != 1 {
			t.Fatalf("left out: %+v", b)
		}
	}
	boot(other, erts, time.Second, "")
	boot(slave, erts, 3*time.Second, "")
	boot(slave, erts, time.Second, "it failed") // told later
	boot(slave, "14.0", 2*time.Second, "it failed")
	c := f.Connect(other, erts)
	now = now.Add(time.Minute)
	boots(c)
	defer c.Closed(false)
	type row struct {
		slave           netip.Addr
		erts            string
		began           time.Duration
		boots, failures int
	}
	start := now.Add(-time.Minute)
	want := []row{{slave, erts, 3 * time.Second, 2, 1}, {slave, "14.0", 2 * time.Second, 1, 1}, {other, erts, time.Minute, 2, 0}}
	for i, r := range f.Slaves() {
		got := row{r.Slave, r.ERTS, r.Latest.Began.Sub(start), r.Boots, r.Failures}
		if i >= len(want) || got != want[i] {
			t.Errorf("row %d: %+v, want %+v", i, got, want[i:])
		}
	}
	if n := len(f.Slaves()); n != len(want) {
		t.Errorf("%d rows", n)
	}
}

func TestRolloutBoots(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }})
	number := 0
	boot := func(a netip.Addr, version, rollout string, at int) {
		number++
		b := remoteBoot(number, now.Add(time.Duration(at)*time.Second))
		b.Slave, b.ERTS, b.Rollout = a, version, rollout
		if f.MergeBoots([]eboot.Boot{b}) != 1 {
			t.Fatalf("left out: %+v", b)
		}
	}
	boot(slave, erts, "r1", 3) // told in no order
	boot(slave, erts, "r1", 1)
	boot(slave, erts, "", 2)
	boot(slave, erts, "r2", 4)
	boot(slave, "14.0", "r1", 5)
	boot(other, erts, "r1", 6)
	boot(other, erts, "r3", 7)
	now = now.Add(time.Hour)
	c := f.Connect(other, erts)
	c.BootBegan("stable", bundle, "r1")
	loads(c)
	defer c.Closed(false)
	type ids map[string]bool
	for _, tc := range []struct {
		ids  ids
		want map[string][]string
	}{
		{nil, map[string][]string{}},
		{ids{"": true, "r4": true, "r1": false}, map[string][]string{}},
		{ids{"r3": true, "r2": true}, map[string][]string{"r2": {"10.1.2.3 13.1.5 4"}, "r3": {"10.1.2.4 13.1.5 7"}}},
		{ids{"r1": true, "r2": true}, map[string][]string{"r1": {"10.1.2.3 13.1.5 1 3", "10.1.2.3 14.0 5", "10.1.2.4 13.1.5 6 3600"}, "r2": {"10.1.2.3 13.1.5 4"}}},
		{ids{"r1": true}, map[string][]string{"r1": {"10.1.2.3 13.1.5 1 3", "10.1.2.3 14.0 5", "10.1.2.4 13.1.5 6 3600"}}},
	} {
		got := map[string][]string{}
		for id, slaves := range f.RolloutBoots(tc.ids) {
			for _, boots := range slaves {
				line := fmt.Sprint(boots[0].Slave, " ", boots[0].ERTS)
				for _, b := range boots {
					line += fmt.Sprint(" ", b.Began.Sub(now.Add(-time.Hour)).Seconds())
					if b.Requests == 0 {
						t.Errorf("no snapshot: %+v", b)
					}
				}
				got[id] = append(got[id], line)
			}
			slices.Sort(got[id])
		}
		if !maps.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%v: %v, want %v", tc.ids, got, tc.want)
		}
	}
}

const fleetSize = 10_000

// merged is a fleet of slaves that other servers told of.
func merged(b *testing.B, slaves int) (*Fleet, []eboot.Boot) {
	b.Helper()
	f, err := New(Options{Server: "s1"})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	told := make([]eboot.Boot, slaves)
	for i := range told {
		told[i] = remoteBoot(i, now.Add(time.Duration(i*7919%slaves)*time.Millisecond))
	}
	if n := f.MergeBoots(told); n != slaves {
		b.Fatalf("%d boots merged", n)
	}
	return f, told
}

func BenchmarkBoots(b *testing.B) {
	f, _ := merged(b, fleetSize)
	b.ReportAllocs()
	for b.Loop() {
		if len(f.Boots()) != fleetSize {
			b.Fatal("some are missing")
		}
	}
}

func BenchmarkSlaves(b *testing.B) {
	f, _ := merged(b, fleetSize)
	b.ReportAllocs()
	for b.Loop() {
		if len(f.Slaves()) != fleetSize {
			b.Fatal("some are missing")
		}
	}
}

// BenchmarkMergeBoots merges a change of each of 10,000 boots.
func BenchmarkMergeBoots(b *testing.B) {
	f, told := merged(b, fleetSize)
	b.ReportAllocs()
	for b.Loop() {
		for i := range told {
			told[i].Revision++
		}
		if f.MergeBoots(told) != fleetSize {
			b.Fatal("some are missing")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*fleetSize), "ns/boot")
}

// BenchmarkMemory reports how much a boot takes that another server observed, the latest of
// its slave, which runs a loader of ours; and each further one.
func BenchmarkMemory(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		before := heap()
		f, told := merged(b, fleetSize)
		clear(told)
		first := heap()
		b.ReportMetric((first-before-float64(len(told))*float64(unsafe.Sizeof(eboot.Boot{})))/fleetSize, "B/slave")
		now := time.Now()
		for i := range fleetSize {
			boot := remoteBoot(i, now.Add(time.Hour))
			boot.ID += "-2"
			boot.Cured.Number += fleetSize
			f.MergeBoots([]eboot.Boot{boot})
		}
		b.ReportMetric((heap()-first)/fleetSize, "B/boot")
		runtime.KeepAlive(f)
		runtime.KeepAlive(told)
	}
}

// BenchmarkRolloutBoots looks for the boots of a rollout among 10,000 slaves of 8 boots.
func BenchmarkRolloutBoots(b *testing.B) {
	const each, id = 8, "3f1c8a52-7f5e-4a86-9a52-1f4f0d0a5b11"
	f, err := New(Options{Server: "s1"})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	for i := range each * fleetSize {
		boot := remoteBoot(i%fleetSize, now.Add(time.Duration(i)*time.Millisecond))
		boot.ID, boot.Cured.Number, boot.Rollout = fmt.Sprintf("s2-%d", i), uint64(i+1), id
		f.MergeBoots([]eboot.Boot{boot})
	}
	for _, bench := range []struct {
		name, id string
		slaves   int
	}{{"all", id, fleetSize}, {"none", "4" + id[1:], 0}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n := len(f.RolloutBoots(map[string]bool{bench.id: true})[bench.id]); n != bench.slaves {
					b.Fatal(n)
				}
			}
		})
	}
}
