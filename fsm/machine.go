package fsm

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"eboot"
)

// Machine is the replicated state machine: it makes each State out of the one
// before and one command.
type Machine struct {
	state atomic.Pointer[State]

	mu      sync.Mutex
	changed chan struct{}

	// requests finds an answer of the newest state by its request id. It is used
	// by the goroutine that applies only.
	requests map[string]*answer
}

// New returns a machine that begins with the given state, or with an empty one for nil.
func New(initial *State) *Machine {
	if initial == nil {
		initial = emptyState()
	}
	m := &Machine{changed: make(chan struct{})}
	m.begin(initial)
	return m
}

// begin makes s the newest state. Its answers and events are clipped: another machine
// may have begun with the same State, and appends to them too.
func (m *Machine) begin(s *State) {
	own := s.successor(s.index)
	own.answers, own.events = slices.Clip(s.answers), slices.Clip(s.events)
	m.requests = make(map[string]*answer, len(own.answers))
	for _, a := range own.answers {
		m.requests[a.Request] = a
	}
	m.publish(own)
}

// State returns the newest state. It may be called at any time.
func (m *Machine) State() *State { return m.state.Load() }

// Changed returns a channel that is closed when the next state is published. To
// miss nothing, ask for it before State.
func (m *Machine) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Machine) publish(s *State) {
	m.state.Store(s)
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// Apply applies the log entry at index, which is greater than the one before,
// and returns a *Result. An entry that cannot be read is a panic with a
// *HaltError, and the state stays as it was: see the package comment.
func (m *Machine) Apply(index uint64, entry []byte) any {
	c, print, halt := decode(entry)
	if halt != nil {
		halt.Index = index
		panic(halt)
	}
	old := m.state.Load()
	if known, ok := m.requests[c.header().RequestID]; ok {
		m.publish(old.successor(index))
		if known.Fingerprint != print {
			return &Result{Index: index, Generation: old.generation,
				Err: newRefusal(fmt.Errorf("request id %s: was used for another change: %w", known.Request, eboot.ErrConflict))}
		}
		result := known.result()
		result.Replayed = true
		return result
	}
	next, result := old.perform(index, c, print)
	m.follow(old, next)
	m.publish(next)
	return result
}

// follow keeps requests in step with the answers of the newest state.
func (m *Machine) follow(old, next *State) {
	if len(next.answers) == 0 || len(old.answers) > 0 && last(old.answers) == last(next.answers) {
		return
	}
	if len(old.answers) == rememberedRequests {
		delete(m.requests, old.answers[0].Request)
	}
	newest := last(next.answers)
	m.requests[newest.Request] = newest
}

func last(answers []*answer) *answer { return answers[len(answers)-1] }

// Restore replaces the state by a snapshot that State.WriteTo wrote. When it
// fails the state stays as it was; errors are those of ReadState, and eboot.ErrInvalid for
// a cluster version that this program does not know: what follows may mean something else.
func (m *Machine) Restore(r io.Reader) error {
	s, err := ReadState(r)
	if err != nil {
		return err
	}
	if s.version > Version {
		return fmt.Errorf("snapshot: is of a cluster at version %d and this program knows %d; install the version that the other servers run: %w", s.version, Version, eboot.ErrInvalid)
	}
	m.begin(s)
	return nil
}
