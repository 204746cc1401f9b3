package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"eboot"
)

func eventAt(id string, at time.Time) eboot.Event {
	return eboot.Event{ID: id, At: at.Round(0).UTC(), Kind: eboot.EventBootFailed, Text: "it failed", Server: "s2", Slave: slave, Channel: "stable", ERTS: erts, Bundle: bundle.Ref()}
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []eboot.Event
		f := open(t, Options{Server: "s1", Addresses: 10, OnEvent: func(e eboot.Event) { told = append(told, e) }})
		f.Refused(netip.AddrFrom16(slave.As16()), "14.2", "stable", "channel stable has no bundle\x1b for ERTS 14.2")
		e := told[0]
		if e.Kind != eboot.EventSlaveRefused || e.Slave != slave || e.ERTS != "14.2" || e.Channel != "stable" || e.Server != "s1" ||
			!e.At.Equal(time.Now()) || !strings.HasPrefix(e.ID, "s1-") || strings.Contains(e.Text, "\x1b") || checkEvent(&e) != nil {
			t.Errorf("%+v", e)
		}
		count := func(when string, want int) {
			t.Helper()
			if len(told) != want || !slices.Equal(f.Events(), told) {
				t.Errorf("%s: %d events, %d told; want %d", when, len(f.Events()), len(told), want)
			}
		}
		advance(refusedEvery - 1)
		f.Refused(slave, "14.2", "stable", "again")
		count("within the hour", 1)
		f.Refused(slave, "15.0", "stable", "another version")
		f.Refused(other, "14.2", "stable", "another slave")
		count("others", 3)
		advance(1)
		f.Refused(slave, "14.2", "stable", "an hour later")
		count("an hour later", 4)
		for i := range 100 {
			f.Refused(slave, fmt.Sprintf("16.%d", i), "stable", "whatever comes to its mind")
		}
		count("a flood", 4+maxRefusals-2)
		for i := range 100 { // addresses that are forgotten forget this too, and the table is bounded
			f.Refused(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), erts, "stable", "many")
		}
		if s := f.Stats(); s.Addresses != 10 {
			t.Errorf("%+v", s)
		}
	})
}

// What came first makes room, whatever time it says; what made room does not come back.
func TestEventsAreBounded(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }})
	const excess = 100
	var events []eboot.Event
	for i := range maxEvents + excess { // the later they came, the longer ago they happened
		events = append(events, eventAt(fmt.Sprintf("s2-%04d", i), now.Add(-time.Duration(i)*time.Second)))
	}
	if n := f.MergeEvents(events); n != len(events) {
		t.Errorf("%d entered", n)
	}
	got := f.Events()
	if len(got) != maxEvents || got[0].ID != fmt.Sprintf("s2-%04d", maxEvents+excess-1) || got[maxEvents-1].ID != fmt.Sprintf("s2-%04d", excess) {
		t.Errorf("%d events, from %s to %s", len(got), got[0].ID, got[len(got)-1].ID)
	}
	if !slices.IsSortedFunc(got, func(a, b eboot.Event) int { return a.At.Compare(b.At) }) {
		t.Error("not in order")
	}
	if n := f.MergeEvents(events); n != 0 {
		t.Errorf("%d entered again", n)
	}
	for i := range 2 * maxForgotten {
		f.MergeEvents([]eboot.Event{eventAt(fmt.Sprintf("s3-%d", i), now)})
	}
	if n, m := len(f.eventTable.known), len(f.forgotten); n != maxEvents+maxForgotten || m != maxForgotten {
		t.Errorf("%d ids, %d of events that are forgotten", n, m)
	}
}

// A clock that is ahead keeps no events for ever, and one that is behind loses none.
func TestEventsOfOtherClocks(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	told := 0
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }, OnEvent: func(eboot.Event) { told++ }})
	ahead := eventAt("s2-1", now.Add(1))
	f.MergeEvents([]eboot.Event{ahead, eventAt("s2-2", now.Add(time.Hour)), eventAt("s2-3", now)})
	for _, e := range f.Events() {
		if !e.At.Equal(now) {
			t.Errorf("%s at %v, now is %v", e.ID, e.At, now)
		}
	}
	for i := range 2 * maxEvents {
		f.MergeEvents([]eboot.Event{eventAt(fmt.Sprintf("s3-%d", i), now)})
	}
	now = now.Add(-time.Hour)
	f.Observe(eboot.Event{Kind: eboot.EventBootFailed, Text: "own", Slave: slave})
	if e := f.Events()[0]; e.Text != "own" || told != 1 {
		t.Errorf("told %d times, the oldest is %+v", told, e)
	}
	if slices.ContainsFunc(f.Events(), func(e eboot.Event) bool { return strings.HasPrefix(e.ID, "s2-") }) {
		t.Error("the first ones are still there")
	}
}

// A flood of one kind leaves the others alone.
func TestEventQuotas(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }})
	count := func() map[eboot.EventKind]int {
		n := map[eboot.EventKind]int{}
		for _, e := range f.Events() {
			n[e.Kind]++
		}
		return n
	}
	f.MergeEvents([]eboot.Event{eventAt("s2-1", now)})
	for i := range 2 * maxEvents {
		now = now.Add(time.Second)
		for _, kind := range []eboot.EventKind{eboot.EventSlaveRefused, eboot.EventSlaveRestarted} {
			e := eventAt(fmt.Sprintf("s3-%s-%d", kind, i), now)
			e.Kind = kind
			f.MergeEvents([]eboot.Event{e})
		}
	}
	if n := count(); n[eboot.EventSlaveRefused] != maxOfKind || n[eboot.EventSlaveRestarted] != maxOfKind || n[eboot.EventBootFailed] != 1 {
		t.Errorf("%v", n)
	}
	if e := f.Events()[1]; e.ID != fmt.Sprintf("s3-%s-%d", eboot.EventSlaveRefused, 2*maxEvents-maxOfKind) {
		t.Errorf("the oldest refusal is %s", e.ID)
	}
	for i := range maxEvents {
		f.MergeEvents([]eboot.Event{eventAt(fmt.Sprintf("s4-%d", i), now)})
	}
	if n := count(); len(n) != 1 || n[eboot.EventBootFailed] != maxEvents {
		t.Errorf("%v", n)
	}
}

// However many slaves are refused, at most 60 events a minute come of it. What is left out is said.
func TestRefusedPace(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	var told []eboot.Event
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }, OnEvent: func(e eboot.Event) { told = append(told, e) }})
	next := slave
	refuse := func(n int) {
		for range n {
			next = next.Next()
			f.Refused(next, erts, "stable", strings.Repeat("x", maxEvent))
		}
	}
	const each, text = 100 * time.Millisecond, "; 970 more were refused since"
	refuse(1000)
	if len(told) != refusedBurst || strings.Contains(told[refusedBurst-1].Text, "since") {
		t.Fatalf("%d told at once: %+v", len(told), told[len(told)-1])
	}
	now = now.Add(refusedPace)
	refuse(1)
	if e := told[len(told)-1]; len(told) != refusedBurst+1 || !strings.HasSuffix(e.Text, "x"+text) || len(e.Text) != maxEvent || checkEvent(&e) != nil {
		t.Errorf("%d told, the last: %+v", len(told), e)
	}
	for range 3 * time.Minute / each {
		now = now.Add(each)
		refuse(1)
	}
	for i, e := range told {
		if i >= 60 && e.At.Sub(told[i-60].At) < time.Minute {
			t.Fatalf("61 events in %v", e.At.Sub(told[i-60].At))
		}
	}
	if n := len(told); n != refusedBurst+1+90 {
		t.Errorf("%d told", n)
	}
	refuse(19)
	now = now.Add(time.Hour)
	told = nil
	refuse(2)
	if len(told) != 2 || !strings.HasSuffix(told[0].Text, "; 19 more were refused since") || strings.Contains(told[1].Text, "since") {
		t.Errorf("after an hour: %+v", told)
	}
	refuse(100)
	now = now.Add(-24 * time.Hour) // the clock was set
	refuse(1)
	now, told = now.Add(time.Minute), nil
	refuse(1)
	if len(told) != 1 {
		t.Error("refusals wait for the time that was")
	}
}

func TestBadEventsAreLeftOut(t *testing.T) {
	f := open(t, Options{Server: "s1"})
	for name, change := range map[string]func(*eboot.Event){
		"id":      func(e *eboot.Event) { e.ID = "" },
		"kind":    func(e *eboot.Event) { e.Kind = "BOOT" },
		"nothing": func(e *eboot.Event) { e.Kind = "boot." },
		"text":    func(e *eboot.Event) { e.Text = "\x1b" },
		"long":    func(e *eboot.Event) { e.Text = strings.Repeat("x", maxEvent+1) },
		"time":    func(e *eboot.Event) { e.At = time.Time{} },
		"log":     func(e *eboot.Event) { e.Index = 4 },
		"address": func(e *eboot.Event) { e.Slave = netip.MustParseAddr("::1") },
		"server":  func(e *eboot.Event) { e.Server = "\n" },
		"bundle":  func(e *eboot.Event) { e.Bundle.Name = "" },
	} {
		e := eventAt("s2-1", time.Now())
		change(&e)
		if n := f.MergeEvents([]eboot.Event{e}); n != 0 || len(f.Events()) != 0 {
			t.Errorf("%s: entered", name)
		}
	}
	e := eventAt("s2-1", time.Now())
	e.Kind = "slave.moved_house" // kinds may be added
	if n := f.MergeEvents([]eboot.Event{e}); n != 1 {
		t.Error("a good one was left out")
	}
}

func TestFollowEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Server: "s1", Followers: 2})
		stop := run(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		one, two := f.FollowEvents(ctx), f.FollowEvents(t.Context())
		if _, open := <-f.FollowEvents(t.Context()); open {
			t.Error("a third follower of two was let in")
		}
		f.Refused(slave, erts, "stable", "no bundle")
		f.MergeEvents([]eboot.Event{eventAt("s2-1", time.Now()), eventAt("s2-1", time.Now())})
		if a, b := <-one, <-one; a.Kind != eboot.EventSlaveRefused || b.ID != "s2-1" || len(one) != 0 {
			t.Errorf("%+v, %+v", a, b)
		}
		cancel()
		if _, open := <-one; open {
			t.Error("open after its context ended")
		}
		for i := range 2 * followBuffer { // nobody reads two
			f.Observe(eboot.Event{Kind: eboot.EventBootFailed, Text: fmt.Sprint(i)})
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for range two { // closed by the end of Run
			n++
		}
		if n != followBuffer || len(f.Events()) != 2*followBuffer+2 {
			t.Errorf("the slow one got %d of %d", n, len(f.Events()))
		}
		if _, open := <-f.FollowEvents(t.Context()); open {
			t.Error("a follower was let in after Run")
		}
	})
}
