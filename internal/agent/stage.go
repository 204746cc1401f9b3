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
	errs    []error // of goroutines that ended with one
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
			err = fmt.Errorf("%s: %w", name, err)
			s.mu.Lock()
			s.errs = append(s.errs, err)
			s.mu.Unlock()
			s.fail(err)
		}
	}()
	return true
}

// stop cancels the stage, waits for its goroutines and returns their errors.
func (s *stage) stop() error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	s.group.Wait()
	return errors.Join(s.errs...)
}
