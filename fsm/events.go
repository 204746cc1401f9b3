package fsm

import (
	"fmt"
	"slices"

	"eboot"
)

// MaxEvents is how many events the state remembers.
const MaxEvents = 512

// Events returns the latest changes of the state, oldest first, at most MaxEvents. There are
// none from before the cluster version that brought them.
func (s *State) Events() []eboot.Event { return slices.Clone(s.events) }

// tell notes what a command did; record adds to it what is the same for each.
func (t *transition) tell(e eboot.Event) { t.events = append(t.events, e) }

// record appends the events of one command and forgets the oldest ones. Older states share the
// array, as with remember. A program that does not know events could not read
// a state that has some, so there are none until all programs of the cluster do.
func (s *State) record(t *transition) {
	if s.Version() < rolloutVersion || len(t.events) == 0 {
		return
	}
	events := t.events[max(0, len(t.events)-MaxEvents):]
	for i := range events {
		e := &events[i]
		if e.ID = fmt.Sprintf("r%d", s.index); i > 0 {
			e.ID = fmt.Sprintf("r%d.%d", s.index, i+1)
		}
		e.At, e.Generation, e.Index = t.at, s.generation, s.index
	}
	s.events = s.events[max(0, len(s.events)+len(events)-MaxEvents):]
	s.events = append(s.events, events...)
}
