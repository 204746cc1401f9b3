package bench

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

// share is what one round measured of one server: an amount per so much of something
// else, such as seconds of CPU per boots, or boots per seconds.
type share struct{ amount, per float64 }

// tally is the rounds of one server, in their order.
type tally []share

func (t *tally) add(amount, per float64) { *t = append(*t, share{amount, per}) }

// value is the quotient of the totals: a long round counts for more than a short one.
func (t tally) value() float64 {
	var amount, per float64
	for _, s := range t {
		amount += s.amount
		per += s.per
	}
	return amount / per
}

// ratio compares two servers.
type ratio struct{ total, low, high float64 }

// over is t / reference: of the totals, and the lowest and highest of the rounds,
// which were measured in pairs.
func (t tally) over(reference tally) ratio {
	r := ratio{total: t.value() / reference.value(), low: math.Inf(1), high: math.Inf(-1)}
	for i := range min(len(t), len(reference)) {
		one := t[i:i+1].value() / reference[i:i+1].value()
		r.low, r.high = min(r.low, one), max(r.high, one)
	}
	return r
}

func (r ratio) String() string { return fmt.Sprintf("%.2f (%.2f to %.2f)", r.total, r.low, r.high) }

// percentile returns the smallest of times that at least p percent of them do not
// exceed. times is sorted in place and not empty.
func percentile(times []time.Duration, p float64) time.Duration {
	slices.Sort(times)
	rank := int(math.Ceil(p / 100 * float64(len(times))))
	return times[min(max(rank, 1), len(times))-1]
}

// milliseconds writes d for the table.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func TestTally(t *testing.T) {
	var a, b tally
	a.add(1, 10)
	a.add(5, 10)
	b.add(2, 10)
	b.add(5, 10)
	if got := a.value(); got != 0.3 {
		t.Errorf("value %v, want 0.3", got)
	}
	got := a.over(b)
	if math.Abs(got.total-6.0/7) > 1e-9 || got.low != 0.5 || got.high != 1 {
		t.Errorf("ratio %+v, want 6/7 between 0.5 and 1", got)
	}
}

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := 200; i > 0; i-- {
		times = append(times, time.Duration(i))
	}
	for p, want := range map[float64]time.Duration{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := percentile(times, p); got != want {
			t.Errorf("percentile %v of 1 to 200 is %d, want %d", p, got, want)
		}
	}
}
