package agent

import (
	"context"
	"slices"

	"eboot"
)

// Events returns what is remembered of changes and of slaves, oldest first. Those of the
// replicated state are the same on every server; what was observed of slaves, servers tell
// each other.
func (a *Agent) Events() []eboot.Event {
	events := append(a.view.State().Events(), a.fleet.Events()...)
	slices.SortStableFunc(events, func(a, b eboot.Event) int { return a.At.Compare(b.At) })
	return events
}

// followEventsBuffer is how far a reader may be behind before the goroutine that feeds it waits.
// What it misses of slaves meanwhile is lost to it; changes are not.
const followEventsBuffer = 64

// FollowEvents delivers events as they happen until ctx ends. One goroutine feeds the
// channel, and closes it.
func (a *Agent) FollowEvents(ctx context.Context) <-chan eboot.Event {
	out := make(chan eboot.Event, followEventsBuffer)
	observed := a.fleet.FollowEvents(ctx)
	since := a.view.State().Index()
	go func() {
		defer close(out)
		send := func(e eboot.Event) bool {
			select {
			case out <- e:
				return true
			case <-ctx.Done():
				return false
			}
		}
		for {
			changed := a.machine.Changed()
			state := a.view.State()
			for _, e := range state.EventsAfter(since) {
				if !send(e) {
					return
				}
			}
			since = state.Index()
			select {
			case <-changed:
			case e, more := <-observed:
				if !more || !send(e) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
