package fleet

import (
	"fmt"
	"net/netip"
	"runtime"
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
