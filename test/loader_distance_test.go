package test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// maxLoaderRequests is how many requests a minimal boot may need on the wire.
const maxLoaderRequests = 12

// distance is how far away the servers are, and how long a minimal boot may take then, from
// the second boot of a bundle on. The stock loader took 18.3 s and 11.6 s (embedded) at 50 ms,
// 4.4 s and 3.1 s at 10 ms.
var distances = []struct{ roundTrip, limit time.Duration }{
	{50 * time.Millisecond, 1400 * time.Millisecond},
	{10 * time.Millisecond, 800 * time.Millisecond},
	{0, 0}, // as fast as stock
}

// farBoots is what minimal boots over some ways were like.
type farBoots struct {
	took     []time.Duration
	requests []testutil.Exchanged // of the latest
	bytes    int64
}

func (b farBoots) String() string {
	return fmt.Sprintf("%v (median of %d; %v to %v), %d bytes, requests %s", median(b.took), len(b.took),
		slices.Min(b.took).Round(time.Millisecond), slices.Max(b.took).Round(time.Millisecond), b.bytes, commands(b.requests))
}

// bootFar boots n minimal nodes, one after another. They end as soon as they are up:
// -s erlang halt needs no module that the boot did not.
func bootFar(t testing.TB, erl testutil.Erlang, w *ways, roundTrip time.Duration, embedded bool, n int) farBoots {
	t.Helper()
	var b farBoots
	for range n {
		w.Open(t, func(_ int, opts *testutil.DelayOptions) { opts.RoundTrip = roundTrip })
		exit := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: w.addresses, Root: slaveRoot, Embedded: embedded,
			Args: []string{"-s", "erlang", "halt"}}).Wait(bootDeadline)
		if exit.Status != 0 {
			t.Fatalf("node ended with status %d:\n%s", exit.Status, exit.Output)
		}
		if len(b.took) > 0 && exit.Took > 2*median(b.took) {
			t.Logf("a boot took %v; requests %s; its output:\n%s", exit.Took, w, exit.Output)
		}
		b.took = append(b.took, exit.Took)
		b.requests, b.bytes = w.Requests(), w.Received()
	}
	return b
}

// TestAcceptanceLoaderDistance measures minimal boots from distant servers, in both modes: the first
// of a bundle, of which the servers have learned nothing yet, and the following.
func TestAcceptanceLoaderDistance(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	w := newWays(t, c)
	n := many(1, 15)
	for i, d := range distances {
		// Another bundle, which nobody has booted.
		tree := smallTree(t, erl)
		write(t, tree+"/releases/distance", d.roundTrip.String())
		publishTree(t, c.client, erl, eboot.Ref{Name: "far", Version: fmt.Sprint(i)}, tree)
		c.WaitReady(t, erl, bootSlave)
		for _, embedded := range []bool{false, true} {
			name := fmt.Sprintf("%v round trip, %s", d.roundTrip, modeName(embedded))
			first := bootFar(t, erl, w, d.roundTrip, embedded, 1)
			if !opened(first.requests) {
				t.Fatalf("%s: the loader is not ours; requests %s", name, commands(first.requests))
			}
			t.Logf("%s: first boot %v", name, first)
			later := bootFar(t, erl, w, d.roundTrip, embedded, n)
			t.Logf("%s: later boots %v", name, later)
			if got := len(later.requests); got > maxLoaderRequests {
				t.Errorf("%s: %d requests, want at most %d", name, got, maxLoaderRequests)
			}
			if took := median(later.took); d.limit > 0 && took > d.limit+slack() {
				t.Errorf("%s: boots take %v, want at most %v", name, took, d.limit)
			}
			if !acceptance() && d.roundTrip > 0 {
				continue // the stock loader takes half a minute for it
			}
			setLoader(t, c.client, eboot.LoaderStock)
			stock := bootFar(t, erl, w, d.roundTrip, embedded, min(n, stockTrials(d.roundTrip)))
			setLoader(t, c.client, eboot.LoaderEboot)
			t.Logf("%s: with the stock loader %v", name, stock)
			if opened(stock.requests) {
				t.Errorf("%s: the loader of a channel with the stock one is ours", name)
			}
			if acceptance() && median(later.took) > median(stock.took) {
				t.Errorf("%s: boots take %v, with the stock loader %v", name, median(later.took), median(stock.took))
			}
		}
	}
}

// stockTrials is how often the stock loader is measured: over a distance it is slow, and
// always as slow.
func stockTrials(roundTrip time.Duration) int {
	if roundTrip > 0 {
		return 1
	}
	return 15
}
