package bootproto

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		rank, lastRank, n int
		pace              time.Duration
		priority          byte
		delay             time.Duration
	}{
		// A server alone.
		{0, 0, 0, 30 * ms, 0, 0},
		{0, 0, 1, 30 * ms, 17, 0},
		{0, 0, 2, 30 * ms, 34, 0},
		{0, 0, 15, 30 * ms, 255, 0},
		{0, 0, 16, 30 * ms, 16, 0},
		{0, 0, 255, 30 * ms, 239, 0},
		{0, 0, 256, 30 * ms, 0, 0},
		// The first answer: by rank, the best one last.
		{0, 2, 0, 30 * ms, 0, 60 * ms},
		{1, 2, 0, 30 * ms, 1, 30 * ms},
		{2, 2, 0, 30 * ms, 2, 0},
		// Repeats: up to zero, then new bytes, always at the original pace.
		{1, 2, 1, 30 * ms, 0, 30 * ms},
		{1, 2, 2, 30 * ms, 18, 30 * ms},
		{1, 2, 3, 30 * ms, 35, 30 * ms},
		{2, 2, 1, 30 * ms, 1, 0},
		{2, 2, 2, 30 * ms, 0, 0},
		{2, 2, 3, 30 * ms, 19, 0},
		{0, 2, 1, 30 * ms, 17, 60 * ms},
		// Many servers stand closer.
		{0, 40, 0, 30 * ms, 0, 400 * ms},
		{39, 40, 0, 30 * ms, 39, 10 * ms},
		{40, 40, 0, 30 * ms, 40, 0},
		{0, 2, 0, time.Second, 0, 400 * ms},
		// No pace, and nonsense.
		{0, 2, 0, 0, 0, 0},
		{0, 2, 0, -ms, 0, 0},
		{-1, -1, -1, 30 * ms, 0, 0},
		{3, 1, 0, 30 * ms, 3, 0},
		{1000, 2000, 0, 30 * ms, 255, 0},
	} {
		priority, delay := Pace(c.rank, c.lastRank, c.n, c.pace)
		if priority != c.priority || delay != c.delay {
			t.Errorf("rank %d of %d, repeat %d, pace %v: %d after %v, want %d after %v",
				c.rank, c.lastRank, c.n, c.pace, priority, delay, c.priority, c.delay)
		}
	}
}

// TestPaceNewBytes checks what frees a slave from its ignore list: whatever a
// server said before, a new byte comes in each of the next 255 repeats.
func TestPaceNewBytes(t *testing.T) {
	for rank := range 256 {
		seen := make(map[byte]int)
		for n := rank + 1; n <= rank+256; n++ {
			priority, _ := Pace(rank, rank, n, 0)
			if before, again := seen[priority]; again {
				t.Fatalf("rank %d says %d in repeat %d and in repeat %d", rank, priority, before, n)
			}
			seen[priority] = n
		}
	}
}

func TestAging(t *testing.T) {
	now := time.Unix(1000, 0)
	a := aging[int, string]{period: 10 * time.Second, limit: 4}
	a.put(now, 1, "one")
	for _, c := range []struct {
		after time.Duration
		found bool
	}{{0, true}, {9 * time.Second, true}, {19 * time.Second, true}, {40 * time.Second, false}} {
		if v, ok := a.get(now.Add(c.after), 1); ok != c.found || ok && v != "one" {
			t.Errorf("after %v: %q, %v", c.after, v, ok)
		}
	}
	// One that is put again stays.
	now = now.Add(time.Minute)
	for range 10 {
		now = now.Add(9 * time.Second)
		a.put(now, 2, "two")
		if _, ok := a.get(now.Add(9*time.Second), 2); !ok {
			t.Error("forgotten within the period")
		}
	}
	// However many are put, a bounded number is kept, the latest among them.
	for i := range 1000 {
		a.put(now, i, "")
		if n := len(a.young) + len(a.old); n > 8 {
			t.Fatalf("%d entries, the limit is 4 and 4", n)
		}
		for j := max(0, i-3); j <= i; j++ {
			if _, ok := a.get(now, j); !ok {
				t.Fatalf("%d is forgotten at %d", j, i)
			}
		}
	}
}

func TestBucket(t *testing.T) {
	now := time.Unix(1000, 0)
	var b bucket
	take := func(n int) (taken int) {
		for range n {
			if b.take(now, 10, 3) {
				taken++
			}
		}
		return taken
	}
	for _, c := range []struct {
		wait time.Duration
		want int
	}{{0, 3}, {50 * time.Millisecond, 0}, {50 * time.Millisecond, 1}, {200 * time.Millisecond, 2}, {time.Hour, 3}} {
		now = now.Add(c.wait)
		if got := take(5); got != c.want {
			t.Errorf("after %v: took %d, want %d", c.wait, got, c.want)
		}
	}
}
