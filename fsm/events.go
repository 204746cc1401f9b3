package fsm

import (
	"fmt"
	"slices"

	"eboot"
)

const (
	// MaxEvents is how many events the state remembers. They are the audit too: the more there
	// are, the more one who may do little must do to push out what he did. With the 1024 of
	// what is observed of slaves they are as many as a client that follows events tells apart.
	MaxEvents = 3072
	// earlierMaxEvents is MaxEvents before operatorsVersion.
	earlierMaxEvents = 512
)

// Events returns the latest changes of the state, oldest first, at most MaxEvents. There are
// none from before the cluster version that brought them.
func (s *State) Events() []eboot.Event { return slices.Clone(s.events) }

// EventsAfter returns the events of log entries after index, oldest first.
func (s *State) EventsAfter(index uint64) []eboot.Event {
	from, _ := slices.BinarySearchFunc(s.events, index, func(e eboot.Event, index uint64) int {
		if e.Index <= index {
			return -1
		}
		return 1
	})
	return slices.Clone(s.events[from:])
}

func (s *State) maxEvents() int {
	if s.Version() < operatorsVersion {
		return earlierMaxEvents
	}
	return MaxEvents
}

// tell notes what a command did; record adds to it what is the same for each.
func (t *transition) tell(e eboot.Event) { t.events = append(t.events, e) }

// record appends the events of one command and forgets the oldest ones. Older states share the
// array, as with remember. A program that does not know events could not read
// a state that has some, so there are none until all programs of the cluster do; the same goes
// for who asked, by which request.
func (s *State) record(h Header, events []eboot.Event) {
	if s.Version() < rolloutVersion || len(events) == 0 {
		return
	}
	limit := s.maxEvents()
	events = events[max(0, len(events)-limit):]
	for i := range events {
		e := &events[i]
		if e.ID = fmt.Sprintf("r%d", s.index); i > 0 {
			e.ID = fmt.Sprintf("r%d.%d", s.index, i+1)
		}
		e.At, e.Generation, e.Index = h.time(), s.generation, s.index
		if s.Version() >= operatorsVersion {
			e.By, e.Request = h.By, h.RequestID
		}
	}
	s.events = s.events[max(0, len(s.events)+len(events)-limit):]
	s.events = append(s.events, events...)
}
