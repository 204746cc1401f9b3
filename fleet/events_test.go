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

func TestEventsAreBounded(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Server: "s1", Now: func() time.Time { return now }})
	f.Observe(eboot.Event{Kind: eboot.EventSlaveRestarted, Text: "own", Slave: slave})
	var events []eboot.Event
	for i := range maxEvents + 100 { // in any order
		events = append(events, eventAt(fmt.Sprintf("s2-%d", i*7919%(maxEvents+100)), now.Add(time.Duration(i*7919%(maxEvents+100))*time.Second)))
	}
	first := f.MergeEvents(events)
	got := f.Events()
	if len(got) != maxEvents || got[0].ID != "s2-100" || got[maxEvents-1].ID != fmt.Sprintf("s2-%d", maxEvents+99) || first < maxEvents {
		t.Errorf("%d events, %d entered, from %s to %s", len(got), first, got[0].ID, got[len(got)-1].ID)
	}
	if !slices.IsSortedFunc(got, func(a, b eboot.Event) int { return a.At.Compare(b.At) }) {
		t.Error("not in order")
	}
	if n := f.MergeEvents(events); n != 0 {
		t.Errorf("%d entered again", n)
	}
	if n := len(f.eventTable.known); n != maxEvents {
		t.Errorf("%d ids of %d events", n, maxEvents)
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
			f.Observe(eboot.Event{Kind: eboot.EventSlaveRestarted, Text: fmt.Sprint(i)})
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
