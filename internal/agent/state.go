package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/fsm"
	"eboot/internal/servingcache"
)

// stateView is the state that slaves are served by: what the serving cache kept
// until the replicated state has caught up with it, the replicated state from then on.
type stateView struct {
	machine *fsm.Machine
	cached  atomic.Pointer[fsm.State] // nil once the machine has caught up
	logger  hclog.Logger
}

// openStateView loads the serving cache. A damaged or missing cache is no
// failure: the server then serves when Raft has replayed its log.
func openStateView(path string, machine *fsm.Machine, logger hclog.Logger) (*stateView, error) {
	v := &stateView{machine: machine, logger: logger}
	body, err := servingcache.Load(path)
	if err == nil {
		var state *fsm.State
		if state, err = fsm.ReadState(bytes.NewReader(body)); err == nil {
			if state.Cluster() == "" {
				return v, nil // written before the cluster was founded: it says nothing
			}
			v.cached.Store(state)
			logger.Info("serving cache loaded", "index", state.Index(), "generation", state.Generation())
			return v, nil
		}
	}
	switch {
	case errors.Is(err, eboot.ErrNotFound):
	case errors.Is(err, eboot.ErrDamaged), errors.Is(err, eboot.ErrInvalid):
		logger.Warn("serving cache is damaged; slaves are served once the log is replayed", "path", path, "error", err)
	default:
		return nil, fmt.Errorf("serving cache: %w", err)
	}
	return v, nil
}

// State returns the state to serve by; never nil.
func (v *stateView) State() *fsm.State {
	now := v.machine.State()
	if cached := v.cached.Load(); cached != nil && !supersedes(now, cached) {
		return cached
	}
	return now
}

// supersedes reports whether the machine's state is the one to serve: it knows as
// much as the cached one, or belongs to another cluster.
func supersedes(now, cached *fsm.State) bool {
	return now.Cluster() != "" && (now.Cluster() != cached.Cluster() || now.Index() >= cached.Index())
}

// settle lets go of the cached state for good when it can, and reports whether the
// machine's state is the one served.
func (v *stateView) settle() bool {
	cached := v.cached.Load()
	if cached == nil {
		return true
	}
	now := v.machine.State()
	if !supersedes(now, cached) {
		return false
	}
	if now.Cluster() != cached.Cluster() {
		v.logger.Warn("serving cache belongs to another cluster; ignoring it", "cached", cached.Cluster(), "cluster", now.Cluster())
	}
	v.cached.Store(nil)
	return true
}

// followState reacts to every change of the replicated state until ctx ends.
// Several changes in quick succession may be seen as one: only the newest counts.
func (a *Agent) followState(ctx context.Context) error {
	for {
		changed := a.machine.Changed()
		if a.view.settle() {
			now := a.machine.State()
			a.cache.Offer(now.Index(), now)
			a.serveState(now)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if a.view.settle() {
				now := a.machine.State()
				a.cache.Offer(now.Index(), now)
			}
			return nil
		}
	}
}

// startPatience is how long the API waits for Raft when the server starts.
const startPatience = 3 * time.Second

// catchUp waits until this server knows everything that was acknowledged before it
// stopped, so that the API does not deny what it said; without a leader, not for long.
func (a *Agent) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := a.cluster.VerifiedRead(ctx); err != nil {
		a.logger.Warn("the API begins with a state that may not be the newest", "error", err)
	}
}

// serveState makes the boot service follow a state.
func (a *Agent) serveState(now *fsm.State) {
	a.trees.follow(now)
	a.listeners.follow(now)
	a.files.Recheck()
}
