package fleet

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"eboot"
)

const (
	maxEvents    = 1024      // that are remembered, own and others'
	refusedEvery = time.Hour // an event of the same slave and ERTS version
	maxRefusals  = 8         // ERTS versions of one address that are told apart
)

// eventTable is what servers observed, the latest of it. Guarded by Fleet.mu.
type eventTable struct {
	events  []eboot.Event // oldest first
	known   map[string]struct{}
	readers map[chan eboot.Event]struct{}
}

// refusal is when an event last said that there is no bundle for an ERTS version.
type refusal struct {
	erts string
	at   time.Time
}

// Refused notes that slave, which may boot from channel, asked in vain because there is no
// bundle for its ERTS version. An hour must pass before that is an event again.
func (f *Fleet) Refused(slave netip.Addr, erts, channel, text string) {
	slave = slave.Unmap()
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.address(slave)
	erts = printable(erts, maxERTS)
	if i := slices.IndexFunc(a.refused, func(r refusal) bool { return r.erts == erts }); i >= 0 {
		if now.Sub(a.refused[i].at) < refusedEvery {
			return
		}
		a.refused = slices.Delete(a.refused, i, i+1)
	} else if len(a.refused) >= maxRefusals {
		if now.Sub(a.refused[0].at) < refusedEvery {
			return // it asks for whatever comes to its mind
		}
		a.refused = slices.Delete(a.refused, 0, 1)
	}
	a.refused = append(a.refused, refusal{erts, now})
	f.observe(eboot.Event{Kind: eboot.EventSlaveRefused, Slave: slave, Channel: channel, ERTS: erts, Text: text})
}

// Observe enters an event that this server observed of a slave; its ID, time and server are
// filled in.
func (f *Fleet) Observe(e eboot.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.observe(e)
}

func (f *Fleet) observe(e eboot.Event) {
	e.ID, e.At, e.Server = f.newID(), f.options.Now().Round(0).UTC(), f.options.Server
	e.Text = printable(e.Text, maxEvent)
	if f.enterEvent(e) && f.options.OnEvent != nil {
		f.options.OnEvent(e)
	}
}

// enterEvent enters an event at its place, and reports whether it was new and there was room
// for it. The oldest makes room.
func (f *Fleet) enterEvent(e eboot.Event) bool {
	if _, known := f.eventTable.known[e.ID]; known {
		return false
	}
	place, _ := slices.BinarySearchFunc(f.events, e, func(a, b eboot.Event) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
	})
	if len(f.events) >= maxEvents {
		if place == 0 {
			return false
		}
		delete(f.eventTable.known, f.events[0].ID)
		f.events = slices.Delete(f.events, 0, 1)
		place--
	}
	f.events = slices.Insert(f.events, place, e)
	f.eventTable.known[e.ID] = struct{}{}
	for r := range f.readers {
		select {
		case r <- e:
		default: // it reads too slowly: Events has it
		}
	}
	return true
}

// Events returns what servers observed of slaves, oldest first: the latest 1024 events.
func (f *Fleet) Events() []eboot.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// MergeEvents takes in what another server observed, and returns how much of it was new. What is no
// event, and what is older than what there is room for, is left out.
func (f *Fleet) MergeEvents(events []eboot.Event) (entered int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		e.Slave = e.Slave.Unmap()
		if checkEvent(&e) == nil && f.enterEvent(f.names.event(e)) {
			entered++
		}
	}
	return entered
}

// event returns a copy of e that shares no text with it.
func (n names) event(e eboot.Event) eboot.Event {
	e.ID, e.Text, e.At = strings.Clone(e.ID), strings.Clone(e.Text), e.At.Round(0).UTC()
	e.Kind, e.Server, e.Channel, e.ERTS, e.Rollout = eboot.EventKind(n.of(string(e.Kind))), n.of(e.Server), n.of(e.Channel), n.of(e.ERTS), n.of(e.Rollout)
	e.Bundle = eboot.Ref{Name: n.of(e.Bundle.Name), Version: n.of(e.Bundle.Version)}
	return e
}

// FollowEvents delivers every event that this server observes or is told of, as it comes. The
// channel is closed when ctx ends or Run does, and at once when too many follow. A
// reader that falls behind loses events; Events has them.
func (f *Fleet) FollowEvents(ctx context.Context) <-chan eboot.Event {
	r := make(chan eboot.Event, followBuffer)
	f.mu.Lock()
	if f.stopped || len(f.readers) >= f.options.Followers {
		f.mu.Unlock()
		close(r)
		return r
	}
	f.readers[r] = struct{}{}
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.endReader(r)
	})
	return r
}

func (f *Fleet) endReader(r chan eboot.Event) {
	if _, open := f.readers[r]; open {
		delete(f.readers, r)
		close(r)
	}
}
