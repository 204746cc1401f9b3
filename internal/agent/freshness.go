package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"eboot"
)

// A server serves what it knows, and what it knows gets old when it is cut off. The cluster
// confirms a state when the leader, which a majority confirms as such, has told how far the log goes
// and this server has applied as much, and serves that.

const (
	alarmAge     = time.Hour        // of a state, from when on it is warned of
	confirmEvery = 10 * time.Second // with no bound, and at most
	confirmOften = time.Second
	confirmSoon  = 250 * time.Millisecond // while slaves wait for it
	confirmTime  = time.Second            // for one attempt
)

// freshness is when the cluster has last confirmed what this server serves.
type freshness struct {
	alone    bool          // this server is the cluster: there is nothing newer anywhere
	maxStale time.Duration // whitelist.max_stale
	began    time.Time
	expired  error // what slaves are refused with: one text, so that the log says it once
	unproven error
	at       atomic.Int64 // the latest confirmation, in nanoseconds after began; 0: none yet
}

func newFreshness(alone bool, maxStale time.Duration) *freshness {
	return &freshness{
		alone: alone, maxStale: maxStale, began: time.Now(),
		expired: fmt.Errorf("the cluster has not confirmed for longer than whitelist.max_stale (%s) that what this server knows is the newest; it serves again when it reaches a leader: %w",
			maxStale, eboot.ErrUnavailable),
		unproven: fmt.Errorf("the cluster has not confirmed yet what this server knows, and whitelist.max_stale (%s) is set; it serves when it reaches a leader: %w",
			maxStale, eboot.ErrUnavailable),
	}
}

// age is the time since the latest confirmation, or since the start when there was none. By the
// monotonic clock: who sets the time of day changes nothing.
func (f *freshness) age() time.Duration {
	if f.alone {
		return 0
	}
	return time.Since(f.began) - time.Duration(f.at.Load())
}

// confirm notes that what is served now was the newest at a moment after began.
func (f *freshness) confirm(moment time.Duration) { f.at.Store(int64(max(moment, 1))) }

// confirmed reports whether the state was, since the server started.
func (f *freshness) confirmed() bool { return f.alone || f.at.Load() != 0 }

// stale says why no slave may be served, if none may. It is asked for each search and each
// connection: it reads a number and the clock.
func (f *freshness) stale() error {
	switch {
	case f.maxStale == 0 || f.alone:
		return nil
	case !f.confirmed():
		return f.unproven
	case f.age() > f.maxStale:
		return f.expired
	}
	return nil
}

// left is how long slaves are served without a further confirmation.
func (f *freshness) left() time.Duration { return max(f.maxStale-f.age(), 0) + time.Millisecond }

// next is how long to wait before the cluster is asked again.
func (f *freshness) next() time.Duration {
	switch {
	case f.maxStale == 0:
		return confirmEvery
	case f.stale() != nil:
		return confirmSoon
	}
	return min(max(f.maxStale/5, confirmOften), confirmEvery, f.left())
}

// warning says that the state is old, if it is.
func (f *freshness) warning() string {
	age := f.age()
	if age < alarmAge {
		return ""
	}
	then := "serves what it knew then, and a slave that was denied since may still boot here"
	if f.maxStale > 0 {
		then = "serves no slave until it is (whitelist.max_stale)"
	}
	return fmt.Sprintf("the cluster has not confirmed for %s that what this server knows is the newest: it %s; see `eboot cluster members` for who is missing", age.Round(time.Minute), then)
}

// followFreshness asks the cluster until ctx ends, and tells when the answer makes a difference.
func (a *Agent) followFreshness(ctx context.Context) error {
	f := a.boot.freshness
	if f.alone {
		return nil
	}
	silent, old := f.stale() != nil, false
	said := false // that it is silent
	for {
		moment := time.Since(f.began)
		err := a.confirm(ctx)
		if err == nil {
			f.confirm(moment)
		}
		if now := f.stale() != nil; now != silent {
			silent = now
			a.files.Recheck()
		}
		if tell := silent && f.age() > f.maxStale; tell != said && ctx.Err() == nil {
			said = tell
			if tell {
				a.logger.Error("the state of this server is not confirmed by the cluster; it answers no slave", "max_stale", f.maxStale, "error", err)
			} else {
				a.logger.Info("the state of this server is confirmed by the cluster again; slaves are served")
			}
		}
		if tell := f.age() >= alarmAge; tell != old && ctx.Err() == nil {
			old = tell
			if tell {
				a.logger.Warn(f.warning(), "error", err)
			} else {
				a.logger.Info("what this server knows is confirmed by the cluster again")
			}
		}
		if !a.awaitConfirmation(ctx, f.next()) {
			return nil
		}
	}
}

// awaitConfirmation returns when the cluster is to be asked: after a while, or as soon as there is
// another leader while slaves wait. false: ctx has ended.
func (a *Agent) awaitConfirmation(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.cluster.LeaderChanged():
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

// confirm returns nil when what this server serves is all that was acknowledged before the call.
func (a *Agent) confirm(ctx context.Context) (err error) {
	patience := confirmTime
	if f := a.boot.freshness; f.maxStale > 0 && f.stale() == nil {
		patience = min(patience, f.left()) // when that is over, connections are to be closed
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := a.raftStopped(); err != nil {
		return err
	}
	var index uint64
	switch leader := a.cluster.Status().Leader; leader {
	case "":
		return fmt.Errorf("confirm the state: no leader is known: %w", eboot.ErrNoLeader)
	case a.server:
		index, err = a.ReadIndex(ctx)
	default:
		index, err = a.peers.rpc.ReadIndex(ctx, leader)
	}
	if err == nil {
		err = a.cluster.WaitApplied(ctx, index)
	}
	if err == nil && !a.view.settle() {
		err = fmt.Errorf("confirm the state: what is served is not what the log says: %w", eboot.ErrConflict)
	}
	return err
}
