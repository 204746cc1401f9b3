package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// stage is a set of goroutines that stop together: Run ends its stages one
// after another, in the reverse order of their start.
type stage struct {
	name   string
	ctx    context.Context
	cancel context.CancelFunc
	fail   func(error) // a goroutine that ends with an error ends the agent

	mu      sync.Mutex
	stopped bool
	group   sync.WaitGroup
}

// newStage returns a stage whose context carries the values of parent but ends
// only with stop.
func newStage(parent context.Context, name string, fail func(error)) *stage {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	return &stage{name: name, ctx: ctx, cancel: cancel, fail: fail}
}

// run starts f, unless the stage was stopped already; it reports whether it did.
func (s *stage) run(name string, f func(context.Context) error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.group.Add(1)
	go func() {
		defer s.group.Done()
		if err := f(s.ctx); err != nil && !errors.Is(err, context.Canceled) {
			s.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	return true
}

// stop cancels the stage and waits for its goroutines. Stopping twice is fine.
func (s *stage) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	s.group.Wait()
}
