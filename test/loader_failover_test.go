package test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// points are n of a boot, spread over its time and over its bytes.
func (b *boots) points(embedded bool, n int) []point {
	normal := b.normal[embedded]
	half := max(1, n/2)
	var all []point
	for i := range half {
		all = append(all, point{after: median(normal.took) * time.Duration(i+1) / time.Duration(half+1)})
	}
	for i := range n - half {
		all = append(all, point{share: (float64(i) + 0.5) / float64(n-half)})
	}
	return all
}

// lateness sums up how much later boots were.
type lateness struct {
	what  string
	limit time.Duration
	later []time.Duration
}

func (l *lateness) add(t testing.TB, d disturbed, embedded bool, p point, allowance time.Duration) {
	t.Helper()
	l.later = append(l.later, d.later)
	if d.later > l.limit+allowance {
		t.Errorf("%s boot, %s, %s: %v later than undisturbed, want at most %v; requests %s", modeName(embedded), p, l.what,
			d.later.Round(time.Millisecond), l.limit, d.seen)
	}
}

func (l *lateness) String() string {
	if len(l.later) == 0 {
		return "none " + l.what
	}
	return fmt.Sprintf("%d %s: %v later (median; at most %v, limit %v)", len(l.later), l.what, median(l.later),
		slices.Max(l.later).Round(time.Millisecond), l.limit)
}

// TestAcceptanceLoaderServerKilled kills the server in use at points of a boot, in both
// modes: every boot completes, and how much later than an undisturbed one depends on whose loader
// was in charge.
func TestAcceptanceLoaderServerKilled(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	b := newBoots(t, erl, c, many(3, 15))
	n := many(3, 30)
	for _, embedded := range []bool{false, true} {
		after := &lateness{what: "killed after the takeover", limit: 500 * time.Millisecond}
		before := &lateness{what: "killed before the takeover", limit: 1200 * time.Millisecond}
		for _, p := range b.points(embedded, n) {
			c.WaitFormed(t)
			c.WaitReady(t, erl, bootSlave)
			d := b.Disturb(embedded, p, bootDeadline, func(used *clusterServer, way *testutil.Delay) {
				way.Refuse()
				used.Kill()
			})
			if !d.reached {
				t.Logf("%s, %s: the boot was over", modeName(embedded), p)
				continue
			}
			class := before
			if d.ours {
				class = after
			}
			class.add(t, d, embedded, p, slack()+b.spread(embedded))
			t.Logf("%s, %s: %s, %v later", modeName(embedded), p, class.what, d.later.Round(time.Millisecond))
			d.used.Start(t)
		}
		t.Logf("%s: %s; %s", modeName(embedded), after, before)
	}
}

// TestAcceptanceLoaderServerCutOff drops all packets of the server in use.
func TestAcceptanceLoaderServerCutOff(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	b := newBoots(t, erl, c, many(2, 9))
	cut := func(_ *clusterServer, way *testutil.Delay) {
		if err := way.Cut(); err != nil {
			t.Error(err)
		}
	}
	for _, embedded := range []bool{false, true} {
		after := &lateness{what: "cut off after the takeover", limit: 2500 * time.Millisecond}
		points := []point{{open: true}}
		for i := range many(0, 9) {
			points = append(points, point{share: float64(i+1) / 10})
		}
		for _, p := range points {
			c.WaitReady(t, erl, bootSlave)
			d := b.Disturb(embedded, p, 3*bootDeadline, cut)
			if !d.reached || !d.ours {
				t.Logf("%s, %s: no point after the takeover: %v later", modeName(embedded), p, d.later.Round(time.Millisecond))
				continue
			}
			after.add(t, d, embedded, p, slack()+b.spread(embedded))
			t.Logf("%s, %s: %v later", modeName(embedded), p, d.later.Round(time.Millisecond))
		}
		t.Logf("%s: %s", modeName(embedded), after)
	}
	if !acceptance() {
		return
	}
	// Before the takeover the stock loader waits: 15 s for a connection, 60 s for a reply.
	d := b.Disturb(false, point{share: 0.0001}, 5*bootDeadline, cut)
	t.Logf("cut off before the takeover (ours: %v): %v later", d.ours, d.later.Round(time.Millisecond))
}

// TestAcceptanceLoaderAllServersGone kills all servers in the middle of a boot, with what is
// under way lost. After a while one returns.
func TestAcceptanceLoaderAllServersGone(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	b := newBoots(t, erl, c, 2)
	gone := time.Duration(many(4, 20)) * time.Second
	const limit = 1500 * time.Millisecond
	for _, embedded := range []bool{false, true} {
		c.WaitFormed(t)
		c.WaitReady(t, erl, bootSlave)
		struck := make(chan struct{})
		var once sync.Once
		b.ways.Open(t, func(_ int, opts *testutil.DelayOptions) {
			opts.OnReceived = func(total int64) {
				if 2*total > b.normal[embedded].bytes {
					once.Do(func() {
						close(struck)
						for _, d := range b.ways.open() {
							d.Sever()
						}
					})
				}
			}
		})
		node := b.start(embedded)
		<-struck
		for _, s := range c.servers {
			s.Kill()
		}
		began := time.Now()
		testutil.Poll(t, gone+time.Minute, "servers are to be away", func() bool {
			if node.Exited() {
				t.Fatalf("node ended without servers:\n%s", node.Output())
			}
			return time.Since(began) > gone
		})
		var wentOn time.Time
		var mu sync.Mutex
		b.ways.Open(t, func(_ int, opts *testutil.DelayOptions) {
			opts.OnRequest = func(testutil.Exchanged) {
				mu.Lock()
				defer mu.Unlock()
				if wentOn.IsZero() {
					wentOn = time.Now()
				}
			}
		})
		first := c.servers[0]
		first.Start(t)
		// A slave that is not ours asks: its searches take nothing from the node's.
		var back time.Time
		testutil.Poll(t, formDeadline, "a server is to return", func() bool {
			if len(c.discover(t, erl, "127.0.0.2")) > 0 {
				back = time.Now().Add(-200 * time.Millisecond) // the window of discover
			}
			return !back.IsZero()
		})
		checkNode(t, node, gone+2*bootDeadline)
		done := time.Now()
		b.ways.Close()
		took := wentOn.Sub(back)
		t.Logf("%s: all servers gone for %v; the boot went on %v after the first was back, and was done after %v", modeName(embedded), gone,
			took.Round(time.Millisecond), done.Sub(back).Round(time.Millisecond))
		if took > limit+slack() {
			t.Errorf("%s: the boot went on %v after the first return, want at most %v", modeName(embedded), took, limit)
		}
		for _, s := range c.servers[1:] {
			s.Start(t)
		}
	}
}
