package lru

import (
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fill(t *testing.T, c *Cache[int, string], key int, value string, cost int64) {
	t.Helper()
	got, err := c.Load(key, func() (string, int64, error) { return value, cost, nil })
	if err != nil || got != value {
		t.Fatalf("%d: %q, %v", key, got, err)
	}
}

func has(c *Cache[int, string], keys ...int) bool {
	for _, k := range keys {
		if _, ok := c.Get(k); !ok {
			return false
		}
	}
	return true
}

func TestEviction(t *testing.T) {
	c := New[int, string](100, 1, nil)
	for k := range 10 {
		fill(t, c, k, "v", 10)
	}
	if !has(c, 0) || c.Cost() != 100 { // 0 becomes the newest, 1 the oldest
		t.Fatal(c.Cost())
	}
	fill(t, c, 10, "v", 15)
	if has(c, 1) || has(c, 2) || !has(c, 3, 4, 5, 6, 7, 8, 9, 0, 10) || c.Cost() != 95 {
		t.Fatal(c.Cost())
	}
	fill(t, c, 11, "too dear", 101)
	if has(c, 11) || c.Cost() != 95 {
		t.Fatal("a value beyond the limit was kept, or others went for it")
	}
	c.Remove(10)
	c.Remove(10)
	if has(c, 10) || c.Cost() != 80 {
		t.Fatal(c.Cost())
	}
}

func TestErrorIsNotKept(t *testing.T) {
	c := New[int, string](100, 4, func(k int) uint32 { return uint32(k) })
	bad := errors.New("bad")
	if _, err := c.Load(1, func() (string, int64, error) { return "", 1, bad }); err != bad {
		t.Fatal(err)
	}
	fill(t, c, 1, "good", 1)
}

// TestOneLoad: many who ask at once share one load.
func TestOneLoad(t *testing.T) {
	c := New[int, string](100, 1, nil)
	loads, started, release := 0, make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	ask := func() {
		v, err := c.Load(7, func() (string, int64, error) {
			loads++ // the race detector sees a second one
			close(started)
			<-release
			return "seven", 1, nil
		})
		if v != "seven" || err != nil {
			t.Error(v, err)
		}
	}
	wg.Go(ask)
	<-started
	for range 20 {
		wg.Go(ask)
	}
	close(release)
	wg.Wait()
	if loads != 1 || !has(c, 7) {
		t.Fatalf("%d loads", loads)
	}
}

// TestRemoveWhileLoading: who asked gets the value, the cache does not.
func TestRemoveWhileLoading(t *testing.T) {
	c := New[int, string](100, 1, nil)
	v, err := c.Load(7, func() (string, int64, error) {
		c.Remove(7)
		return "seven", 1, nil
	})
	if v != "seven" || err != nil || has(c, 7) || c.Cost() != 0 {
		t.Fatal(v, err, c.Cost())
	}
}
