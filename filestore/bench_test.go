package filestore

import (
	"context"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"eboot"
)

const otpRoot = "/usr/lib/erlang"

type sample struct {
	path   string
	digest eboot.Digest
	size   int64
}

func otpFiles(b *testing.B) map[eboot.Digest]sample {
	files := map[eboot.Digest]sample{}
	err := filepath.WalkDir(otpRoot, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		d := eboot.DigestOf(data)
		files[d] = sample{path, d, int64(len(data))}
		return err
	})
	if err != nil {
		b.Skipf("no OTP tree to publish: %v", err)
	}
	return files
}

// BenchmarkPublishOTP puts an installed OTP tree into an empty store, beside a
// plain copy of the same files followed by one sync(2).
func BenchmarkPublishOTP(b *testing.B) {
	files := otpFiles(b)
	b.Run("copy+sync", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			dir := b.TempDir()
			syscall.Sync()
			b.StartTimer()
			if err := os.CopyFS(dir, os.DirFS(otpRoot)); err != nil {
				b.Fatal(err)
			}
			syscall.Sync()
		}
	})
	publish := func(b *testing.B, workers int) {
		for b.Loop() {
			b.StopTimer()
			s := openStore(b, Options{Dir: b.TempDir()})
			syscall.Sync()
			b.StartTimer()
			in := s.Ingest()
			in.Protect(maps.Keys(files))
			next, stop := iter.Pull(maps.Values(files))
			work := make(chan sample)
			var g errgroup.Group
			for range workers {
				g.Go(func() error {
					for f := range work {
						if err := putFile(in, f); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for f, ok := next(); ok; f, ok = next() {
				work <- f
			}
			stop()
			close(work)
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			if err := in.Commit(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "commit-ms")
			if err := in.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("put+commit/1", func(b *testing.B) { publish(b, 1) })
	b.Run("put+commit/2", func(b *testing.B) { publish(b, 2) })
}

func putFile(in *Ingest, f sample) error {
	r, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer r.Close()
	return in.Put(context.Background(), f.digest, f.size, r)
}

func BenchmarkContent(b *testing.B) {
	s := openStore(b, Options{})
	small, large := put(b, s, random(20_000))[0], put(b, s, random(1<<20))[0]
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Content(small, 20_000); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cached-parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Content(small, 20_000); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("uncached", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Read(small); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("file", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c, err := s.Content(large, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			c.File.Close()
		}
	})
	b.Run("verify-1MiB", func(b *testing.B) {
		b.SetBytes(1 << 20)
		for b.Loop() {
			if err := s.Verify(b.Context(), large, 1<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
}
