package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/config"
	"eboot/internal/testutil"
)

func TestFreshness(t *testing.T) {
	ago := func(f *freshness, since, confirmed time.Duration) *freshness {
		f.began = time.Now().Add(-since)
		if confirmed >= 0 {
			f.confirm(since - confirmed)
		}
		return f
	}
	const never = -1
	for _, tc := range []struct {
		name             string
		alone            bool
		maxStale         time.Duration
		since, confirmed time.Duration
		stale, warning   string
	}{
		{name: "AloneForYears", alone: true, maxStale: 5 * time.Second, since: 1e5 * time.Hour, confirmed: never},
		{name: "NoBound", since: 59 * time.Minute, confirmed: never},
		{name: "NoBoundAndOld", since: 61 * time.Minute, confirmed: never, warning: "not confirmed for 1h1m0s"},
		{name: "NoBoundAndFrozen", since: 100 * time.Hour, confirmed: 2 * time.Hour, warning: "a slave that was denied since may still boot here"},
		{name: "NotYetConfirmed", maxStale: 5 * time.Second, since: time.Second, confirmed: never, stale: "has not confirmed yet"},
		{name: "Confirmed", maxStale: 5 * time.Second, since: time.Hour, confirmed: 4 * time.Second},
		{name: "Expired", maxStale: 5 * time.Second, since: time.Hour, confirmed: 6 * time.Second, stale: "longer than whitelist.max_stale (5s)"},
		{name: "ExpiredAndOld", maxStale: 5 * time.Second, since: 3 * time.Hour, confirmed: 2 * time.Hour, stale: "longer than whitelist.max_stale", warning: "serves no slave until it is"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := ago(newFreshness(tc.alone, tc.maxStale), tc.since, tc.confirmed)
			err := f.stale()
			if (err == nil) != (tc.stale == "") || err != nil && (!errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), tc.stale)) {
				t.Errorf("stale: %v, want %q", err, tc.stale)
			}
			if w := f.warning(); (w == "") != (tc.warning == "") || !strings.Contains(w, tc.warning) {
				t.Errorf("warning: %q, want %q", w, tc.warning)
			}
		})
	}
}

// How soon the cluster is asked: often enough to keep serving, at once while slaves wait.
func TestFreshnessAsksInTime(t *testing.T) {
	for _, maxStale := range []time.Duration{5 * time.Second, time.Minute, time.Hour} {
		f := newFreshness(false, maxStale)
		if got := f.next(); got != confirmSoon {
			t.Errorf("%s, not confirmed: again after %s, want %s", maxStale, got, confirmSoon)
		}
		f.began = time.Now().Add(-time.Hour)
		f.confirm(time.Hour)
		if got := f.next(); got < confirmOften || got > maxStale/5 || got > confirmEvery {
			t.Errorf("%s, confirmed: again after %s", maxStale, got)
		}
		f.confirm(time.Hour - maxStale + 100*time.Millisecond)
		if got := f.next(); got > 102*time.Millisecond {
			t.Errorf("%s, about to be stale: again after %s", maxStale, got)
		}
	}
}

func BenchmarkStale(b *testing.B) {
	f := newFreshness(false, time.Hour)
	f.confirm(1)
	b.ReportAllocs()
	for b.Loop() {
		if f.stale() != nil {
			b.Fatal("stale")
		}
	}
}

// A server alone needs nobody to confirm what it knows.
func TestAloneIsFresh(t *testing.T) {
	c := settings(t)
	c.Whitelist.MaxStale = 5 * time.Second
	s := start(t, c)
	s.publish(t, "1", eboot.DefaultChannel)
	s.allow(t, "127.0.0.0/8", eboot.DefaultChannel)
	s.boots(t, "127.0.0.1", "1")
	if age := s.Agent.boot.freshness.age(); age != 0 {
		t.Errorf("age of its state: %v", age)
	}
}

// A member that is left alone serves what it knows; with whitelist.max_stale no longer than that,
// and not when it starts alone. It says so, and takes it back by itself.
func TestStaleStateIsNotServed(t *testing.T) {
	t.Parallel()
	var all []config.Config
	for range 3 {
		c := settings(t)
		a := c.Boot.Bind[0]
		c.TLS.Insecure = true
		c.Cluster.Name, c.Cluster.Expect = "test", 3
		c.Peer.Bind, c.Gossip.Bind = netip.AddrPortFrom(a, 14381), netip.AddrPortFrom(a, 14382)
		all = append(all, c)
	}
	for i := range all {
		all[i].Gossip.Seeds = []string{all[0].Gossip.Bind.String(), all[1].Gossip.Bind.String(), all[2].Gossip.Bind.String()}
	}
	all[0].Whitelist.MaxStale = 5 * time.Second // not on the second one
	first, second, third := start(t, all[0]), start(t, all[1]), start(t, all[2])
	first.publish(t, "1", eboot.DefaultChannel)
	first.allow(t, "127.0.0.0/8", eboot.DefaultChannel)
	first.boots(t, "127.0.0.1", "1")
	open := first.connect(t, "127.0.0.1", patience)
	wantReply(t, open, "get", "bin/start.boot", "script of 1")

	third.stop(t)
	first.boots(t, "127.0.0.1", "1") // two of three confirm each other
	said := func() int { return strings.Count(first.log.String(), "it answers no slave") }
	before := said()
	left := time.Now()
	second.stop(t)
	testutil.Poll(t, patience, "the state is to be older than max_stale", func() bool {
		return first.Agent.boot.freshness.age() > 5*time.Second
	})
	if aged := time.Since(left); aged < 2*time.Second { // the latest confirmation is at most a second and its time old
		t.Errorf("not confirmed for 5s, %v after the others went", aged)
	}
	if _, answers := first.discover(t); answers {
		t.Error("a server whose state is not confirmed serves slaves")
	}
	first.notReady(t, "longer than whitelist.max_stale (5s)")
	if _, err := open.Request(testutil.Tuple{testutil.Atom("get"), testutil.Text(testRoot + "/lib/app-1/ebin/m.beam")}); err == nil {
		t.Error("an open connection is served on by a state that is not confirmed")
	}
	if e, err := first.client.Explain(t.Context(), netip.MustParseAddr("127.0.0.1")); err != nil || e.Boots || !strings.Contains(fmt.Sprint(e.Steps), "whitelist.max_stale") {
		t.Errorf("explained as %+v, %v", e, err)
	}
	testutil.Poll(t, patience, "that it is silent is to be logged", func() bool { return said() > before })
	if n := said() - before; n != 1 {
		t.Errorf("that it is silent is logged %d times, want once", n)
	}

	second = start(t, all[1])
	first.boots(t, "127.0.0.1", "1")
	first.ready(t)

	// It starts alone: nothing is served until somebody confirms it. A server without a bound is.
	first.stop(t)
	second.boots(t, "127.0.0.1", "1")
	second.stop(t)
	first = start(t, all[0])
	first.notReady(t, "has not confirmed yet")
	if _, answers := first.discover(t); answers {
		t.Error("a server that has just started alone serves slaves, with whitelist.max_stale")
	}
	first.stop(t)
	second = start(t, all[1])
	second.boots(t, "127.0.0.1", "1")
	first = start(t, all[0])
	first.boots(t, "127.0.0.1", "1")
}
