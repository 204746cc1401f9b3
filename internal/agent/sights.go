package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"eboot"
)

// sights are boots, each as it was last, and events that travel together. None of its maps
// is changed once it was handed out.
type sights struct {
	boots  map[string]eboot.Boot // by their ids
	events map[string]eboot.Event
}

func newSights() sights {
	return sights{boots: map[string]eboot.Boot{}, events: map[string]eboot.Event{}}
}

func (s sights) size() int { return len(s.boots) + len(s.events) }

// and returns what is in either; of a boot, what is in later.
func (s sights) and(later sights) sights {
	if s.size() == 0 {
		return later
	}
	both := sights{boots: maps.Clone(s.boots), events: maps.Clone(s.events)}
	maps.Copy(both.boots, later.boots)
	maps.Copy(both.events, later.events)
	return both
}

// booted has the other servers told how a boot goes, and happened of an event. They are
// called under the lock of the fleet, and wait for nothing.
func (x *exchange) booted(b eboot.Boot) {
	x.see(func() { x.seen.boots[b.ID] = b })
}

func (x *exchange) happened(e eboot.Event) {
	x.see(func() { x.seen.events[e.ID] = e })
}

func (x *exchange) see(enter func()) {
	if len(x.peers.living()) == 0 {
		return
	}
	x.mu.Lock()
	if x.seen.size() <= sightQueue { // beyond it everything is sent anyhow
		enter()
	}
	x.mu.Unlock()
	x.rouse()
}

// sendSights adds to what waits. It is the only one that sends any.
func (l *link) sendSights(seen sights) {
	select {
	case waiting := <-l.seen.queue:
		seen = waiting.and(seen)
	default:
	}
	if seen.size() > sightQueue {
		l.seen.fallBehind()
		return
	}
	l.seen.send(seen)
}

// giveSights tells a server of boots and events, and pauses: a thousand boots at once change
// many times in a moment.
func (x *exchange) giveSights(ctx context.Context, server string, seen sights) error {
	sending, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	err := x.sendSights(sending, server, slices.Collect(maps.Values(seen.boots)), slices.Collect(maps.Values(seen.events)))
	pause := time.NewTimer(sightPause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return err
}

func (x *exchange) sendSights(ctx context.Context, server string, boots []eboot.Boot, events []eboot.Event) error {
	for batch := range slices.Chunk(boots, sightsAtOnce) {
		if err := knownTo(x.peers.rpc.SendBoots(ctx, server, batch)); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(events, sightsAtOnce) {
		if err := knownTo(x.peers.rpc.SendEvents(ctx, server, batch)); err != nil {
			return err
		}
	}
	return nil
}

// levelSights tells a server everything that this one has observed, as that one does when
// this one appears to it; and what that one has told before, which it has forgotten when it was restarted.
func (x *exchange) levelSights(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, levelTimeout)
	defer cancel()
	boots := slices.DeleteFunc(x.fleet.Boots(), func(b eboot.Boot) bool { return b.Server != x.peers.self && b.Server != server })
	return x.sendSights(ctx, server, boots, x.fleet.Events())
}

// TakeBoots merges the boots that another server observed.
func (a *Agent) TakeBoots(boots []eboot.Boot) { a.fleet.MergeBoots(boots) }

// TakeEvents merges what another server observed.
func (a *Agent) TakeEvents(events []eboot.Event) { a.fleet.MergeEvents(events) }
