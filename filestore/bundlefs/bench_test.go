package bundlefs

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"eboot"
)

// manyFiles is a tree of n modules in applications of 100, like an OTP release.
func manyFiles(n int) *eboot.Manifest {
	m := &eboot.Manifest{Entries: []eboot.ManifestEntry{
		{Path: "bin", Kind: eboot.KindDirectory},
		{Path: "bin/start.boot", Kind: eboot.KindFile, Size: 1, Digest: eboot.DigestOf([]byte("boot"))},
		{Path: "lib", Kind: eboot.KindDirectory},
	}}
	for i := range n {
		app := fmt.Sprintf("lib/application_%04d-1.2.3", i/100)
		if i%100 == 0 {
			m.Entries = append(m.Entries, eboot.ManifestEntry{Path: app, Kind: eboot.KindDirectory}, eboot.ManifestEntry{Path: app + "/ebin", Kind: eboot.KindDirectory})
		}
		p := fmt.Sprintf("%s/ebin/application_module_%02d.beam", app, i%100)
		m.Entries = append(m.Entries, eboot.ManifestEntry{Path: p, Kind: eboot.KindFile, Size: int64(i), Digest: eboot.DigestOf([]byte(p))})
	}
	m.Sort()
	return m
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func largeTree(b *testing.B, blobs Blobs) *Tree {
	b.Helper()
	m := manyFiles(100_000)
	times := make([]int64, len(m.Entries))
	t, err := New(Options{Roots: []string{"/usr/lib/erlang", "/usr/local/lib/erlang", "/opt/erlang"}, Manifest: m, Times: times, Bundle: eboot.Bundle{BootScript: "bin/start.boot"}, Blobs: blobs})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func BenchmarkNew100k(b *testing.B) {
	m := manyFiles(100_000)
	times := make([]int64, len(m.Entries))
	var t *Tree
	for b.Loop() {
		b.StopTimer()
		t = nil
		before := heap()
		b.StartTimer()
		var err error
		if t, err = New(Options{Roots: []string{"/opt"}, Manifest: m, Times: times, Bundle: eboot.Bundle{BootScript: "bin/start.boot"}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/100_000, "bytes/file")
		b.StartTimer()
	}
	runtime.KeepAlive(t)
}

func BenchmarkLookup100k(b *testing.B) {
	t := largeTree(b, fixed("x"))
	for _, bench := range []struct {
		name, path string
		want       error
	}{
		{"hit", "/opt/erlang/lib/application_0500-1.2.3/ebin/application_module_50.beam", nil},
		{"hit-relative", "lib/application_0500-1.2.3/ebin/application_module_50.beam", nil},
		{"hit-dotdot", "/opt/erlang/lib/../lib/application_0500-1.2.3/ebin/application_module_50.beam", nil},
		{"miss", "/opt/erlang/lib/application_0500-1.2.3/ebin/other_module.beam", syscall.ENOENT},
		{"miss-directory", "/opt/erlang/lib/other-1.2.3/ebin/other_module.beam", syscall.ENOENT},
		{"miss-dotdot", "/opt/erlang/lib/../releases/27/consolidated/other_module.beam", syscall.ENOENT},
		{"outside", "/home/user/ebin/other_module.beam", syscall.ENOENT},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			name := []byte(bench.path)
			for b.Loop() {
				if _, err := t.Get(name); err != bench.want {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("stat", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := t.Stat([]byte("/opt/erlang/lib/application_0500-1.2.3/ebin"), true); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("list-1000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if names, err := t.List([]byte("lib")); err != nil || len(names) != 1000 {
				b.Fatal(err)
			}
		}
	})
}

// TestLookupDoesNotAllocate: the hot paths of a boot, negative answers first.
func TestLookupDoesNotAllocate(t *testing.T) {
	tree, _ := build(t, sample, Options{})
	for _, name := range []string{
		"/opt/erlang/lib/kernel-8/ebin/none.beam", "lib/none/ebin/none.beam", "/opt/erlang/lib/kernel-8/ebin/inet.beam",
		"/opt/erlang/lib/../releases/27/consolidated/none.beam", "/etc/none",
	} {
		n := []byte(name)
		tree.Get(n) // into the cache
		if allocs := testing.AllocsPerRun(100, func() { tree.Get(n); tree.Stat(n, true); tree.Covers(n) }); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}
