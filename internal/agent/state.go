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
// until the replicated state has caught up with it, the replicated state from then on. It never
// goes back: a log, or a snapshot of the leader, that has less than what was served already is not
// followed.
type stateView struct {
	machine *fsm.Machine
	founded string // the cluster that this server is known to belong to; "": none
	// cached is what was served latest: by the process before this one until the machine has
	// caught up with that. nil: nothing yet.
	cached atomic.Pointer[fsm.State]
	logger hclog.Logger
}

// openStateView loads the serving cache. founded is the cluster that the data directory
// is known to belong to: another one never takes its cache over. A damaged or missing cache is no
// failure: the server then serves when Raft has replayed its log.
func openStateView(path, founded string, machine *fsm.Machine, logger hclog.Logger) (*stateView, error) {
	v := &stateView{machine: machine, founded: founded, logger: logger}
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
	if cached := v.cached.Load(); cached != nil && !v.supersedes(now, cached) {
		return cached
	}
	return now
}

// supersedes reports whether the machine's state is the one to serve: it knows as
// much as the cached one, or that is of a cluster that this server does not belong to. A
// state of another cluster than the server's own never is: the cache may be the last copy.
// A log that went another way after an old data directory was put back may be the longer one;
// what slaves boot by it is older all the same as long as its generation is.
func (v *stateView) supersedes(now, cached *fsm.State) bool {
	switch now.Cluster() {
	case "":
		return false
	case cached.Cluster():
		return now.Index() >= cached.Index() && now.Generation() >= cached.Generation()
	}
	return cached.Cluster() != v.founded
}

// settle takes the machine's state for the one that was served latest when it may, and
// reports whether it is the one served.
func (v *stateView) settle() bool {
	for {
		cached, now := v.cached.Load(), v.machine.State()
		switch {
		case cached == nil && now.Cluster() == "", cached == now:
			return true
		case cached != nil && !v.supersedes(now, cached):
			return false
		case !v.cached.CompareAndSwap(cached, now):
			continue // another goroutine was faster
		}
		if cached != nil && now.Cluster() != cached.Cluster() {
			v.logger.Warn("serving cache belongs to another cluster; ignoring it", "cached", cached.Cluster(), "cluster", now.Cluster())
		}
		return true
	}
}

// followState reacts to every change of the replicated state until ctx ends.
// Several changes in quick succession may be seen as one: only the newest counts.
func (a *Agent) followState(ctx context.Context) error {
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		changed := a.machine.Changed()
		if a.view.settle() {
			now := a.view.State()
			a.cache.Offer(now.Index(), now)
		}
		again := retry.C
		if a.serveState() {
			again = nil
		}
		select {
		case <-changed:
		case <-again: // a port or a tree that was not to be had may be now
		case answer := <-a.pulse:
			// A lock that is never given back shows here.
			_, _, _ = a.store.Summary(), a.fleet.Stats(), a.files.Stats()
			close(answer)
		case <-ctx.Done():
			if a.view.settle() {
				now := a.view.State()
				a.cache.Offer(now.Index(), now)
			}
			return nil
		}
	}
}

// behindCache says that the log lacks what this server has served already, as after
// an old raft directory was put back. To serve the log would be to go back silently;
// to write to it, to confirm what nobody would see.
//
// In a group only the leader can say so: another server may not have been told yet. But a log
// that is as long as what was served, and of a lower generation, is another one whoever sees it.
//
// A log of another cluster than the one of the cache is never followed, by any server.
func (a *Agent) behindCache() error {
	if a.view.settle() {
		return nil
	}
	cached, now := a.view.cached.Load(), a.machine.State()
	if cached == nil || a.view.supersedes(now, cached) {
		return nil // settled in between
	}
	if now.Cluster() != "" && now.Cluster() != cached.Cluster() {
		return fmt.Errorf("the raft log is of cluster %s, and this server belongs to %s, serves what it knows of that, and takes no writes; put the right raft directory back, or save what is served with `eboot snapshot save FILE` and run `eboot cluster reset` on this server: %w",
			now.Cluster(), cached.Cluster(), eboot.ErrNoLeader)
	}
	if now.Cluster() != "" && now.Index() >= cached.Index() {
		return fmt.Errorf("the raft log went another way: at index %d it is at generation %d, this server has served generation %d and goes on with that, taking no writes, as if old data directories were put back; save what is served with `eboot snapshot save FILE`, or remove serving-cache to go back to the log: %w",
			now.Index(), now.Generation(), cached.Generation(), eboot.ErrNoLeader)
	}
	if a.config.Clustered() && a.cluster.Status().Role != roleLeader {
		return nil
	}
	return fmt.Errorf("the raft log ends at index %d, this server has served index %d (generation %d) and goes on with that, taking no writes; put the newest raft directory back, or remove serving-cache to go back to the log: %w",
		now.Index(), cached.Index(), cached.Generation(), eboot.ErrNoLeader)
}

// retryEvery is how long the server waits before it tries again to open a port or to
// read a manifest that it could not.
const retryEvery = 5 * time.Second

// serveState makes the boot service follow the state. Who is denied goes first:
// loading a tree takes time. It reports whether everything could be had.
func (a *Agent) serveState() bool {
	a.files.Recheck()
	a.files.Drain(a.view.State().Drained(a.server))
	trees := a.followTrees(false)
	a.forgetPlans()
	return a.listeners.follow(a.view.State()) && trees
}

// recount looks at what is on disk again, after blobs came or were lost.
func (a *Agent) recount() {
	a.copies.gained()
	a.followTrees(true)
}

// forgetPlans drops what was learned of bundles that were here and are gone. Another server
// may have told of one that this one has not heard of yet.
func (a *Agent) forgetPlans() {
	known := a.bundles
	a.bundles = map[eboot.Digest]bool{}
	for _, b := range a.view.State().Bundles() {
		a.bundles[b.Manifest] = true
	}
	a.fleet.KeepPlans(func(manifest eboot.Digest) bool { return a.bundles[manifest] || !known[manifest] })
}

func (a *Agent) followTrees(recount bool) bool {
	return a.trees.follow(a.view.State, func() map[eboot.Digest]bool {
		pinned := map[eboot.Digest]bool{}
		for _, p := range a.fleet.Pins() {
			pinned[p.Manifest] = true
		}
		return pinned
	}, recount)
}
