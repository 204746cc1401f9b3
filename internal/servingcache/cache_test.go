package servingcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"eboot"
	"eboot/internal/testutil"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text is a state; begun and release, when set, let a test hold its writing up.
type text struct {
	body    string
	begun   chan struct{}
	release chan struct{}
	fail    error
	writes  *atomic.Int64
}

func (s text) WriteTo(w io.Writer) (int64, error) {
	if s.writes != nil {
		s.writes.Add(1)
	}
	if s.begun != nil {
		close(s.begun)
		<-s.release
	}
	if s.fail != nil {
		return 0, s.fail
	}
	n, err := io.WriteString(w, s.body)
	return int64(n), err
}

func start(t *testing.T, c *Cache) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	ended := false
	stop = func() error { ended = true; cancel(); return <-done }
	t.Cleanup(func() {
		if !ended {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return stop
}

func waitFor(t *testing.T, reason string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for: %s", reason)
		}
		<-time.After(time.Millisecond)
	}
}

func TestNewestStateIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	if _, err := Load(path); !errors.Is(err, eboot.ErrNotFound) {
		t.Fatalf("no file: %v", err)
	}
	c := New(Options{Path: path})
	stop := start(t, c)
	var skipped atomic.Int64
	first := text{body: "one", begun: make(chan struct{}), release: make(chan struct{})}
	c.Offer(1, first)
	<-first.begun
	for i := uint64(2); i < 100; i++ {
		c.Offer(i, text{body: fmt.Sprint(i), writes: &skipped})
	}
	c.Offer(100, text{body: "hundred"})
	if c.Lag() <= 0 || c.WrittenIndex() != 0 {
		t.Fatalf("lag %v, written %d", c.Lag(), c.WrittenIndex())
	}
	close(first.release)
	waitFor(t, "the newest state on disk", func() bool { return c.WrittenIndex() == 100 })
	if c.Lag() != 0 || skipped.Load() != 0 {
		t.Fatalf("lag %v, %d older states written", c.Lag(), skipped.Load())
	}
	if body, err := Load(path); err != nil || string(body) != "hundred" {
		t.Fatalf("%q %v", body, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(names) != 1 {
		t.Fatalf("left behind: %v", names)
	}
}

func TestStopWritesTheNewest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := New(Options{Path: path})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.Offer(7, text{body: "seven"})
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if body, err := Load(path); err != nil || string(body) != "seven" || c.WrittenIndex() != 7 {
		t.Fatalf("%q %v index %d", body, err, c.WrittenIndex())
	}
}

func TestFailedWriteLeavesTheOldFileAndIsRepeated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := New(Options{Path: path})
	stop := start(t, c)
	c.Offer(1, text{body: "one"})
	waitFor(t, "the first state on disk", func() bool { return c.WrittenIndex() == 1 })
	full := errors.New("disk full")
	c.Offer(2, text{fail: full})
	waitFor(t, "a failed write and its repetition", func() bool { return c.Failures() >= 2 })
	if body, err := Load(path); err != nil || string(body) != "one" || c.Lag() == 0 {
		t.Fatalf("%q %v lag %v", body, err, c.Lag())
	}
	c.Offer(3, text{body: "three"})
	waitFor(t, "the next state on disk", func() bool { return c.WrittenIndex() == 3 })
	c.Offer(4, text{fail: full})
	if err := stop(); !errors.Is(err, full) {
		t.Fatalf("stop: %v", err)
	}
}

func encoded(t testing.TB, index uint64, body string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cache")
	if err := store(path, index, text{body: body}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDamageIsFound(t *testing.T) {
	good := encoded(t, 5, "the state")
	path := filepath.Join(t.TempDir(), "cache")
	load := func(data []byte) error {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		return err
	}
	if err := load(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if err := load(bad); !errors.Is(err, eboot.ErrDamaged) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if err := load(good[:i]); !errors.Is(err, eboot.ErrDamaged) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
	if err := load(append(bytes.Clone(good), 0)); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("a byte too many: %v", err)
	}
}

// A file is what Run wrote, or damaged; reading it sets nothing aside but for an error.
func FuzzServingCache(f *testing.F) {
	recorded, err := os.ReadFile("testdata/recorded") // of a server that booted slaves
	if err != nil {
		f.Fatal(err)
	}
	f.Add(recorded)
	f.Add(encoded(f, 1, ""))
	f.Add(encoded(f, 1<<40, "the state"))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		var body []byte
		var index uint64
		var err error
		if got := testutil.Allocated(func() { body, index, err = decode(data) }); got > 1<<20 {
			t.Errorf("%d bytes set aside", got)
		}
		if err != nil {
			if !errors.Is(err, eboot.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(encoded(t, index, string(body)), data) {
			t.Fatal("accepted, and not what would be written")
		}
	})
}
