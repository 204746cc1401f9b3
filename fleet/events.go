package fleet

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"eboot"
)

const (
	maxEvents    = 1024          // that are remembered, own and others'
	maxOfKind    = 256           // of them, of a kind that strangers or a rollout can cause without end
	maxForgotten = 4 * maxEvents // ids of those that were, which are not entered again
	refusedEvery = time.Hour     // an event of the same slave and ERTS version
	maxRefusals  = 8             // ERTS versions of one address that are told apart
	refusedBurst = 30            // own events of refusals at once: with those of refusedPace, 60 in any minute
	refusedPace  = 2 * time.Second
)

// eventTable is what servers observed, the latest of it. Guarded by Fleet.mu.
type eventTable struct {
	events    []*eboot.Event      // as they came
	known     map[string]struct{} // ids of them, and those of forgotten
	forgotten []string            // ids of events that made room, as they went: other servers tell of them again
	readers   map[chan eboot.Event]struct{}
	refusing  bucket // of own events of refusals
	unsaid    int    // refusals since the latest event of one, for which there was none
}

// bucket holds refusedBurst tokens, and gets one each refusedPace. The zero bucket is full.
type bucket struct{ fullAt time.Time }

// take takes a token, when there is one.
func (b *bucket) take(now time.Time) bool {
	missing := min(max(b.fullAt.Sub(now), 0), refusedBurst*refusedPace) // the clock may have been set
	if missing > (refusedBurst-1)*refusedPace {
		b.fullAt = now.Add(missing)
		return false
	}
	b.fullAt = now.Add(missing + refusedPace)
	return true
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
	now := f.options.Now()
	more := ""
	if e.Kind == eboot.EventSlaveRefused {
		if !f.refusing.take(now) {
			f.unsaid++
			return
		}
		if f.unsaid > 0 {
			more = fmt.Sprintf("; %d more were refused since", f.unsaid)
			f.unsaid = 0
		}
	}
	e.ID, e.At, e.Server = f.newID(), now.Round(0).UTC(), f.options.Server
	e.Text = printable(e.Text, maxEvent-len(more)) + more
	f.enterEvent(e)
	if f.options.OnEvent != nil {
		f.options.OnEvent(e)
	}
}

// enterEvent enters an event, which makes the one go that came first; of a kind that has too
// many, the one of that kind. It reports whether the event was new.
func (f *Fleet) enterEvent(e eboot.Event) bool {
	if _, known := f.eventTable.known[e.ID]; known {
		return false
	}
	switch e.Kind {
	case eboot.EventSlaveRefused, eboot.EventSlaveRestarted, eboot.EventRogueFound:
		first, n := 0, 0
		for i, other := range slices.Backward(f.events) {
			if other.Kind == e.Kind {
				first = i
				n++
			}
		}
		if n >= maxOfKind {
			f.forgetEvent(first)
		}
	}
	if len(f.events) >= maxEvents {
		f.forgetEvent(0)
	}
	f.events = append(f.events, &e)
	f.eventTable.known[e.ID] = struct{}{}
	for r := range f.readers {
		select {
		case r <- e:
		default: // it reads too slowly: Events has it
		}
	}
	return true
}

func (f *Fleet) forgetEvent(i int) {
	if len(f.forgotten) >= maxForgotten {
		delete(f.eventTable.known, f.forgotten[0])
		f.forgotten = slices.Delete(f.forgotten, 0, 1)
	}
	f.forgotten = append(f.forgotten, f.events[i].ID)
	f.events = slices.Delete(f.events, i, i+1)
}

// Events returns what servers observed of slaves, oldest first: the latest 1024 events that
// this server observed or was told of, and of refusals, restarts and rogues the latest 256 each.
func (f *Fleet) Events() []eboot.Event {
	f.mu.Lock()
	events := make([]eboot.Event, 0, len(f.events))
	for _, e := range f.events {
		events = append(events, *e)
	}
	f.mu.Unlock()
	return sorted(events, func(a, b *eboot.Event) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
}

// MergeEvents takes in what another server observed, and returns how much of it was new. What
// is no event is left out, and so is what was known and had to make room. What happened later
// than now, by the clock of its server, happened now.
func (f *Fleet) MergeEvents(events []eboot.Event) (entered int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.options.Now().Round(0).UTC()
	for _, e := range events {
		e.Slave = e.Slave.Unmap()
		if checkEvent(&e) != nil {
			continue
		}
		if e.At.After(now) {
			e.At = now
		}
		if f.enterEvent(f.names.event(e)) {
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
