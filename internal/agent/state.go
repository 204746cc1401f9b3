package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

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
	if cached := v.cached.Load(); cached != nil {
		return cached
	}
	return v.machine.State()
}

// advance lets go of the cached state when the machine knows as much, or
// belongs to another cluster than the cache does. It reports whether the machine's
// state is the one served now.
func (v *stateView) advance(now *fsm.State) bool {
	cached := v.cached.Load()
	if cached == nil {
		return true
	}
	if now.Cluster() == "" {
		return false
	}
	foreign := now.Cluster() != cached.Cluster()
	if foreign {
		v.logger.Warn("serving cache belongs to another cluster; ignoring it", "cached", cached.Cluster(), "cluster", now.Cluster())
	}
	if !foreign && now.Index() < cached.Index() {
		return false
	}
	v.cached.Store(nil)
	return true
}

// followState reacts to every change of the replicated state until ctx ends.
// Several changes in quick succession may be seen as one: only the newest counts.
func (a *Agent) followState(ctx context.Context) error {
	for {
		changed := a.machine.Changed()
		if now := a.machine.State(); a.view.advance(now) {
			a.cache.Offer(now.Index(), now)
			a.serveState(now)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if now := a.machine.State(); a.view.advance(now) {
				a.cache.Offer(now.Index(), now)
			}
			return nil
		}
	}
}

// serveState makes the boot service follow a state.
func (a *Agent) serveState(now *fsm.State) {
	a.trees.follow(now)
	a.listeners.follow(now)
	a.files.Recheck()
}
