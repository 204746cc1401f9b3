package mirror

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"eboot/filestore"
)

// tree returns the files of the OTP that is installed, or something like it.
func tree(b *testing.B) corpus {
	c := corpus{}
	err := filepath.WalkDir("/usr/lib/erlang", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		c.add(data)
		return err
	})
	if err == nil && len(c) > 1000 {
		return c
	}
	b.Logf("no OTP tree here, made one up: %v", err)
	for k := range 3000 {
		c.add(noise(1000 + k*20))
	}
	return c.add(noise(4<<20), noise(6<<20))
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPull copies an OTP tree from other stores of the same process over
// loopback into an empty one. CPU is that of both sides.
func BenchmarkPull(b *testing.B) {
	files := tree(b)
	var total int64
	for _, content := range files {
		total += int64(len(content))
	}
	source := openStore(b, filestore.Options{}, files)
	one, two := serve(b, "one", Handler(source, nil)), serve(b, "two", Handler(source, nil))
	sizes := files.sizes()
	files = nil
	for _, bm := range []struct {
		peers    []Peer
		parallel int
	}{
		{[]Peer{one}, 1}, {[]Peer{one}, 2}, {[]Peer{one, two}, 2}, {[]Peer{one, two}, 4},
	} {
		b.Run(fmt.Sprintf("peers=%d/parallel=%d", len(bm.peers), bm.parallel), func(b *testing.B) {
			b.SetBytes(total)
			var spent time.Duration
			var peak uint64
			for b.Loop() {
				b.StopTimer()
				m := New(Options{Store: openStore(b, filestore.Options{Dir: b.TempDir()}), Peers: peers(bm.peers...), Parallel: bm.parallel})
				syscall.Sync()
				runtime.GC()
				before := cpu(b)
				b.StartTimer()
				release, err := m.Pull(b.Context(), sizes, func(Progress) {
					var mem runtime.MemStats
					runtime.ReadMemStats(&mem)
					peak = max(peak, mem.HeapAlloc)
				})
				if err != nil {
					b.Fatal(err)
				}
				release()
				spent += cpu(b) - before
			}
			b.ReportMetric(float64(spent.Milliseconds())/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(peak>>20), "heap-MiB")
		})
	}
}
