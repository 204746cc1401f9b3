package filestore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"eboot"
)

func TestMain(m *testing.M) {
	if os.Getenv("EBOOT_TEST_INGEST_DIR") != "" {
		ingestUntilKilled(os.Getenv("EBOOT_TEST_INGEST_DIR"))
		return
	}
	if dir := os.Getenv("EBOOT_TEST_COMMIT_DIR"); dir != "" {
		commitNumbered(dir, os.Getenv("EBOOT_TEST_COMMIT_BLOBS"), os.Getenv("EBOOT_TEST_COMMIT_AGE"))
		return
	}
	goleak.VerifyTestMain(m)
}

// witness collects what OnDamage is told.
type witness struct {
	mu    sync.Mutex
	found []eboot.DamagedBlob
}

func (w *witness) see(b eboot.DamagedBlob) {
	w.mu.Lock()
	w.found = append(w.found, b)
	w.mu.Unlock()
}

func (w *witness) digests() []eboot.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []eboot.Digest
	for _, b := range w.found {
		out = append(out, b.Digest)
	}
	return out
}

func openStore(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func put(t testing.TB, s *Store, contents ...[]byte) []eboot.Digest {
	t.Helper()
	in := s.Ingest()
	defer in.Close()
	var out []eboot.Digest
	for _, c := range contents {
		d := eboot.DigestOf(c)
		if err := in.Put(t.Context(), d, int64(len(c)), bytes.NewReader(c)); err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	return out
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// read returns what Content gives out for d, as bytes.
func read(s *Store, d eboot.Digest, size int) ([]byte, error) {
	c, err := s.Content(d, int64(size))
	if err != nil {
		return nil, err
	}
	if c.File == nil {
		return c.Data, nil
	}
	defer c.File.Close()
	return io.ReadAll(c.File)
}

func leftovers(t testing.TB, s *Store) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.blobDir(), "*", unfinished+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPutAndRead(t *testing.T) {
	s := openStore(t, Options{CacheFileMax: 1000})
	for _, n := range []int{0, 1, 999, 1000, 1001, chunk - 1, chunk, chunk + 1, 3*chunk + 7} {
		want := random(n)
		d := put(t, s, want)[0]
		for range 2 { // past the cache, and from it
			got, err := read(s, d, n)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes: got %d, %v", n, len(got), err)
			}
		}
		if got, err := s.Read(d); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes: %v", n, err)
		}
		if err := s.Verify(t.Context(), d, int64(n)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Content(d, int64(n+1)); !errors.Is(err, eboot.ErrInvalid) {
			t.Fatalf("wrong size: %v", err)
		}
		if !s.Has(d) {
			t.Fatal("a wrong size in the request took the blob out of service")
		}
	}
	if _, err := s.Content(eboot.DigestOf([]byte("other")), 5); !errors.Is(err, eboot.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := s.Read(eboot.DigestOf([]byte("other"))); !errors.Is(err, eboot.ErrNotFound) {
		t.Fatal(err)
	}
	if sum := s.Summary(); sum.Blobs != 9 || sum.FreeBytes == 0 {
		t.Fatalf("%+v", sum)
	}
}

func TestPutRefuses(t *testing.T) {
	s := openStore(t, Options{})
	content := []byte("some content")
	d, size := eboot.DigestOf(content), int64(len(content))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("connection reset")
	for name, tt := range map[string]struct {
		ctx  context.Context
		size int64
		r    io.Reader
		want error
	}{
		"ErrOtherContent": {nil, size, strings.NewReader("same content"), eboot.ErrInvalid},
		"ErrShort":        {nil, size, strings.NewReader("some"), eboot.ErrInvalid},
		"ErrLong":         {nil, size, strings.NewReader("some content and more"), eboot.ErrInvalid},
		"ErrEndless":      {nil, size, endless{}, eboot.ErrInvalid},
		"ErrReader":       {nil, size, io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken)), broken},
		"ErrCutOff":       {nil, size, io.MultiReader(strings.NewReader("some"), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		"ErrCancelled":    {cancelled, size, bytes.NewReader(content), context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.ctx == nil {
				tt.ctx = t.Context()
			}
			in := s.Ingest()
			defer in.Close()
			if err := in.Put(tt.ctx, d, tt.size, tt.r); !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err := in.Commit(); err != nil || s.Has(d) {
				t.Fatalf("refused content became visible, %v", err)
			}
			if left := leftovers(t, s); left != nil {
				t.Fatal(left)
			}
		})
	}
	t.Run("ErrClosed", func(t *testing.T) {
		in := s.Ingest()
		if err := errors.Join(in.Close(), in.Close()); err != nil {
			t.Fatal(err)
		}
		if err := in.Put(t.Context(), d, size, bytes.NewReader(content)); !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
		if err := in.Commit(); !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
	})
	t.Run("ErrDiskFull", func(t *testing.T) {
		full := openStore(t, Options{MinFree: 1 << 60})
		in := full.Ingest()
		defer in.Close()
		err := in.Put(t.Context(), d, size, bytes.NewReader(content))
		if !errors.Is(err, eboot.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) || leftovers(t, full) != nil {
			t.Fatalf("%v, %v", err, leftovers(t, full))
		}
	})
	if err := func() error {
		in := s.Ingest()
		defer in.Close()
		return errors.Join(in.Put(t.Context(), d, size, iotest.OneByteReader(bytes.NewReader(content))), in.Commit())
	}(); err != nil || !s.Has(d) {
		t.Fatalf("after all that the right content is refused: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestDiskFull fills a real, small file system, where it may be mounted.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, Options{Dir: dir, MinFree: -1})
	kept := put(t, s, random(1000))[0]
	in := s.Ingest()
	defer in.Close()
	big := random(4 << 20)
	err := in.Put(t.Context(), eboot.DigestOf(big), int64(len(big)), bytes.NewReader(big))
	if !errors.Is(err, eboot.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if left := leftovers(t, s); left != nil {
		t.Fatal(left)
	}
	if _, err := read(s, kept, 1000); err != nil {
		t.Fatal(err)
	}
	put(t, s, random(1<<20)) // and space that came back is used
}

func TestPresentIsDrained(t *testing.T) {
	s := openStore(t, Options{})
	content := random(5000)
	d := put(t, s, content)[0]
	in := s.Ingest()
	defer in.Close()
	r := io.MultiReader(bytes.NewReader(content), strings.NewReader("next"))
	if err := in.Put(t.Context(), d, 5000, r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "next" {
		t.Fatalf("reader stands before %q", rest)
	}
	if left := leftovers(t, s); left != nil {
		t.Fatal(left)
	}
}

// TestPresentIsRead: a blob that is there, committed or not, is no reason to
// accept anything.
func TestPresentIsRead(t *testing.T) {
	s := openStore(t, Options{})
	content := random(3 * chunk)
	d, size := put(t, s, content)[0], int64(len(content))
	loose := random(3 * chunk)
	in := s.Ingest()
	defer in.Close()
	if err := in.Put(t.Context(), eboot.DigestOf(loose), size, bytes.NewReader(loose)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("connection reset")
	for _, d := range []eboot.Digest{d, eboot.DigestOf(loose)} {
		if err := in.Put(t.Context(), d, size, bytes.NewReader(content[:size-1])); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("a short content: %v", err)
		}
		if err := in.Put(t.Context(), d, size, io.MultiReader(bytes.NewReader(content[:5]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("a reader that fails: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r := &cancelling{Reader: bytes.NewReader(content), cancel: cancel}
		if err := in.Put(ctx, d, size, r); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if r.Len() == 0 {
			t.Error("cancelled, and read to the end")
		}
		if err := in.Put(t.Context(), d, size, iotest.DataErrReader(bytes.NewReader(content))); err != nil {
			t.Errorf("the whole content: %v", err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.Put(t.Context(), d, size, bytes.NewReader(content)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// cancelling calls cancel at the first read.
type cancelling struct {
	*bytes.Reader
	cancel func()
}

func (c *cancelling) Read(p []byte) (int, error) {
	c.cancel()
	return c.Reader.Read(p)
}

// TestReopen: what was committed is there after a restart, what was not is gone,
// and two processes cannot have the store at once.
func TestReopen(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	s := openStore(t, opts)
	committed := put(t, s, random(100), random(100_000))
	in := s.Ingest()
	loose := random(10)
	if err := in.Put(t.Context(), eboot.DigestOf(loose), 10, bytes.NewReader(loose)); err != nil {
		t.Fatal(err)
	}
	if s.Has(eboot.DigestOf(loose)) {
		t.Fatal("visible before Commit")
	}
	if _, err := Open(opts); !errors.Is(err, eboot.ErrConflict) {
		t.Fatalf("opened twice: %v", err)
	}
	before := s.Summary()
	if err := s.Close(); err != nil { // as a crash would: the ingest is open
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.shardDir(0), "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, opts)
	if left := leftovers(t, s); left != nil {
		t.Fatal(left)
	}
	after := s.Summary()
	if after.Blobs != before.Blobs || after.Bytes != before.Bytes {
		t.Fatalf("%+v, was %+v", after, before)
	}
	for _, d := range committed {
		if !s.Has(d) {
			t.Fatal("lost", d)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamage: every way of ruining a file takes the blob out of service, is told
// once, is quarantined, and is healed by another Put.
func TestDamage(t *testing.T) {
	ruin := map[string]func(path string, content []byte) error{
		"BitFlip": func(path string, content []byte) error {
			other := bytes.Clone(content)
			other[len(other)/2] ^= 1
			return os.WriteFile(path, other, 0o600)
		},
		"Truncated": func(path string, content []byte) error { return os.Truncate(path, int64(len(content)/2)) },
		"Empty":     func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"Longer":    func(path string, content []byte) error { return os.Truncate(path, int64(len(content)+1)) },
		"Missing":   func(path string, _ []byte) error { return os.Remove(path) },
		"Symlink": func(path string, content []byte) error {
			return errors.Join(os.Rename(path, path+".away"), os.Symlink(path+".away", path))
		},
		"Directory": func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	}
	discover := map[string]func(ctx context.Context, s *Store, d eboot.Digest, n int) error{
		"Content": func(_ context.Context, s *Store, d eboot.Digest, n int) error {
			_, err := read(s, d, n)
			return err
		},
		"Read":   func(_ context.Context, s *Store, d eboot.Digest, _ int) error { _, err := s.Read(d); return err },
		"Verify": func(ctx context.Context, s *Store, d eboot.Digest, n int) error { return s.Verify(ctx, d, int64(n)) },
	}
	for _, n := range []int{500, 5000} { // small and large
		for how, ruin := range ruin {
			for by, discover := range discover {
				restarts := []bool{false}
				if by == "Content" {
					restarts = []bool{false, true}
				}
				for _, restart := range restarts {
					t.Run(fmt.Sprintf("%d/%s/%s/restart=%t", n, how, by, restart), func(t *testing.T) {
						var w witness
						opts := Options{Dir: t.TempDir(), CacheFileMax: 1000, OnDamage: w.see}
						s := openStore(t, opts)
						content := random(n)
						d := put(t, s, content)[0]
						if err := ruin(s.path(d), content); err != nil {
							t.Fatal(err)
						}
						if restart {
							s.Close()
							s = openStore(t, opts)
							if !s.Has(d) { // gone, a link or a directory: seen by the listing
								if how != "Missing" && how != "Symlink" && how != "Directory" {
									t.Fatal("a start found the damage without hashing")
								}
								return
							}
						}
						want := eboot.ErrDamaged
						if how == "Missing" {
							want = eboot.ErrNotFound
						}
						for range 2 {
							if err := discover(t.Context(), s, d, n); !errors.Is(err, want) {
								t.Fatalf("got %v, want %v", err, want)
							}
						}
						if s.Has(d) || !slices.Equal(w.digests(), []eboot.Digest{d}) || len(s.Damaged()) != 1 {
							t.Fatalf("has %t, told %v, damaged %v", s.Has(d), w.digests(), s.Damaged())
						}
						if _, err := os.Lstat(s.path(d)); !errors.Is(err, os.ErrNotExist) {
							t.Fatalf("still in place: %v", err)
						}
						if q := s.Summary().Quarantined; (q == 1) != (how != "Missing") {
							t.Fatalf("%d in quarantine", q)
						}
						put(t, s, content)
						if got, err := read(s, d, n); err != nil || !bytes.Equal(got, content) || len(s.Damaged()) != 0 {
							t.Fatalf("not healed: %v, %v", err, s.Damaged())
						}
					})
				}
			}
		}
	}
}

// TestChangedWhileHashed: a large blob that rots behind the reader's back, while it
// is being hashed, is hashed again before it is served.
func TestChangedWhileHashed(t *testing.T) {
	s := openStore(t, Options{})
	content := random(3 * chunk)
	d := put(t, s, content)[0]
	changed := false
	err := s.hash(d, int64(len(content)), func(int) error {
		if changed {
			return nil
		}
		changed = true
		content[0] ^= 1
		long := time.Now().Add(-time.Hour) // the clock of the file system may be coarse
		return errors.Join(os.WriteFile(s.path(d), content, 0o600), os.Chtimes(s.path(d), long, long))
	})
	if err != nil || !changed {
		t.Fatalf("what was read is whole: %v", err)
	}
	if _, err := read(s, d, len(content)); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}

// TestHealedIsLeftAlone: damage found in a file that was replaced meanwhile does
// not hurt the new one.
func TestHealedIsLeftAlone(t *testing.T) {
	s := openStore(t, Options{})
	content := random(100)
	d := put(t, s, content)[0]
	if err := os.Truncate(s.path(d), 1); err != nil {
		t.Fatal(err)
	}
	bad, err := os.Lstat(s.path(d))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(s, d, 100); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
	put(t, s, content)
	if err := s.setAside(d, bad, "found late"); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
	if got, err := read(s, d, 100); err != nil || !bytes.Equal(got, content) {
		t.Fatal(err)
	}
}

// TestPutHealsVanished: a blob whose file is gone or cut is seen when it is put.
func TestPutHealsVanished(t *testing.T) {
	for name, ruin := range map[string]func(string) error{"Gone": os.Remove, "Cut": func(p string) error { return os.Truncate(p, 1) }} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{})
			content := random(100)
			d := put(t, s, content)[0]
			if err := ruin(s.path(d)); err != nil {
				t.Fatal(err)
			}
			put(t, s, content)
			if got, err := read(s, d, 100); err != nil || !bytes.Equal(got, content) {
				t.Fatal(err)
			}
		})
	}
}

func TestQuarantineIsBounded(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	s := openStore(t, opts)
	for range quarantineFiles + 5 {
		content := random(64)
		d := put(t, s, content)[0]
		if err := os.Truncate(s.path(d), 3); err != nil {
			t.Fatal(err)
		}
		if _, err := read(s, d, 64); !errors.Is(err, eboot.ErrDamaged) {
			t.Fatal(err)
		}
	}
	if q := s.Summary().Quarantined; q != quarantineFiles {
		t.Fatalf("%d in quarantine", q)
	}
	s.Close()
	if s = openStore(t, opts); len(s.Damaged()) != quarantineFiles || s.Damaged()[0].Found.IsZero() {
		t.Fatalf("after a restart: %v", s.Damaged())
	}
	if _, err := s.Content(s.Damaged()[0].Digest, 64); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
}

// TestScrub: the scrubber finds rot that no size, mtime or cache shows, within
// its period, and leaves the whole blobs alone.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w witness
		s := openStore(t, Options{CacheFileMax: 1000, OnDamage: w.see, ScrubPeriod: 24 * time.Hour})
		var want []eboot.Digest
		for k := range 40 {
			n := 100 + 200*k
			content := random(n)
			d := put(t, s, content)[0]
			if _, err := read(s, d, n); err != nil {
				t.Fatal(err)
			}
			if k%4 != 0 {
				continue
			}
			want = append(want, d)
			content[k] ^= 0x40
			if err := os.WriteFile(s.path(d), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour+time.Second)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		got := w.digests()
		compare := func(a, b eboot.Digest) int { return bytes.Compare(a[:], b[:]) }
		slices.SortFunc(got, compare)
		slices.SortFunc(want, compare)
		if !slices.Equal(got, want) || s.Summary().Blobs != 30 {
			t.Fatalf("found %d of %d", len(got), len(want))
		}
	})
}

// TestScrubIsPaced: one blob's chunks are spread over its directory's share of the period.
func TestScrubIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, Options{CacheFileMax: 1000})
		content := random(8 * chunk)
		d := put(t, s, content)[0]
		began := time.Now()
		s.scrubShard(t.Context(), d[0], time.Minute)
		if took := time.Since(began); took != time.Minute {
			t.Fatalf("took %v", took)
		}
		began = time.Now()
		s.scrubShard(t.Context(), d[0]+1, time.Minute) // an empty one, too
		if took := time.Since(began); took != time.Minute {
			t.Fatalf("took %v", took)
		}
	})
}

// TestConcurrentReaders: many readers of the same and of other blobs, while
// blobs come, rot and go. Whoever gets content gets the right one.
func TestConcurrentReaders(t *testing.T) {
	s := openStore(t, Options{CacheFileMax: 1000, CacheBytes: 8000})
	var contents [][]byte
	for k := range 20 {
		contents = append(contents, random(100+150*k))
	}
	digests := put(t, s, contents...)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for k := range 200 {
				i := (k*7 + g) % len(contents)
				got, err := read(s, digests[i], len(contents[i]))
				// A file that is cut after it was opened ends early, and its reader sees that.
				cut := len(contents[i]) > 1000 && len(got) < len(contents[i]) && bytes.HasPrefix(contents[i], got)
				if err == nil && !cut && !bytes.Equal(got, contents[i]) {
					t.Error("wrong content")
				}
				// On a busy machine a file may change as often as it is looked at.
				if err != nil && !errors.Is(err, eboot.ErrDamaged) && !errors.Is(err, eboot.ErrNotFound) && !errors.Is(err, eboot.ErrUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for k := range 60 {
			i := k % len(contents)
			_ = os.Truncate(s.path(digests[i]), 1)
			_ = s.Verify(t.Context(), digests[i], int64(len(contents[i])))
			put(t, s, contents[i])
		}
	})
	wg.Wait()
	for i, d := range digests {
		if got, err := read(s, d, len(contents[i])); err != nil || !bytes.Equal(got, contents[i]) {
			t.Fatalf("in the end: %v", err)
		}
	}
	if cost := s.cache.Cost(); cost > 8000 {
		t.Fatalf("cache holds %d bytes", cost)
	}
}

// Keep drops what is not wanted, files included, and Commit takes the rest.
func TestKeep(t *testing.T) {
	s := openStore(t, Options{})
	contents := [][]byte{random(10), random(20), random(30)}
	in := s.Ingest()
	defer in.Close()
	for _, c := range contents {
		if err := in.Put(t.Context(), eboot.DigestOf(c), int64(len(c)), bytes.NewReader(c)); err != nil {
			t.Fatal(err)
		}
	}
	wanted := eboot.DigestOf(contents[1])
	if err := in.Keep(func(d eboot.Digest) bool { return d == wanted }); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); len(left) != 1 {
		t.Errorf("unfinished: %v", left)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := s.Digests(); len(got) != 1 || got[0] != wanted {
		t.Errorf("committed: %v", got)
	}
}

// A batch large enough for the disk to begin early, and for several goroutines to
// rename: a failure of either leaves nothing visible, and without one all is there.
func TestLargeBatch(t *testing.T) {
	contents := make([][]byte, 2*renameAtOnce)
	for i := range contents {
		contents[i] = random(writeBackEach / renameAtOnce)
	}
	last := eboot.DigestOf(contents[len(contents)-1])
	for name, spoil := range map[string]func(s *Store, in *Ingest) error{
		"Good": func(*Store, *Ingest) error { return nil },
		"WriteBack": func(_ *Store, in *Ingest) error {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.failed = syscall.EIO
			return nil
		},
		"Rename": func(s *Store, _ *Ingest) error { return os.Mkdir(s.path(last), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{})
			in := s.Ingest()
			defer in.Close()
			for _, c := range contents {
				if err := in.Put(t.Context(), eboot.DigestOf(c), int64(len(c)), bytes.NewReader(c)); err != nil {
					t.Fatal(err)
				}
			}
			// A sync that is under way is waited for, not joined by another.
			if in.settle(); in.unwritten >= 2*writeBackEach {
				t.Errorf("the disk has not begun: %d bytes wait", in.unwritten)
			}
			if err := spoil(s, in); err != nil {
				t.Fatal(err)
			}
			err, want := in.Commit(), len(contents)
			if name != "Good" {
				want = 0
			}
			if (err == nil) != (name == "Good") || len(s.Digests()) != want || leftovers(t, s) != nil {
				t.Errorf("%v; %d blobs, want %d; unfinished: %v", err, len(s.Digests()), want, leftovers(t, s))
			}
			files, _ := filepath.Glob(filepath.Join(s.blobDir(), "*", "*"))
			if want == 0 && len(files) > 1 { // the directory that stands in the way
				t.Errorf("%d files are left", len(files))
			}
		})
	}
}
