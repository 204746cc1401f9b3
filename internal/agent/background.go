package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/cluster"
	"eboot/fsm"
)

// collectEvery is how often blobs that no bundle names are looked for, beside
// after every removal.
const collectEvery = time.Hour

// stateMachine lets Raft drive the fsm, whose snapshots are its states.
type stateMachine struct{ *fsm.Machine }

var _ cluster.StateMachine = stateMachine{}

// Snapshot captures the state by its pointer: it is immutable.
func (m stateMachine) Snapshot() (io.WriterTo, error) { return m.State(), nil }

// found gives a new cluster its identity, once it has a leader.
func (a *Agent) found(ctx context.Context) error {
	for {
		known, led := a.machine.Changed(), a.cluster.LeaderChanged()
		if cluster := a.machine.State().Cluster(); cluster != "" {
			err := a.data.markFounded(cluster)
			if err == nil {
				return a.raiseAlone(ctx)
			}
			a.logger.Error("that this server belongs to a cluster could not be written down; trying again", "error", err)
		}
		if a.cluster.Failure() != nil {
			return nil // readiness says so
		}
		if a.cluster.Status().Role == roleLeader {
			if err := a.tryFound(ctx); err != nil && ctx.Err() == nil {
				a.logger.Warn("cluster has no identity yet; trying again", "error", err)
			}
		}
		select {
		case <-known:
		case <-led:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

// raiseAlone has a cluster of one server use what that server knows. In a group, who follows
// the peers does it.
func (a *Agent) raiseAlone(ctx context.Context) error {
	if a.config.Clustered() {
		return nil
	}
	for {
		led := a.cluster.LeaderChanged()
		if a.machine.State().Version() >= fsm.Version || a.cluster.Failure() != nil {
			return nil
		}
		if err := a.raiseVersion(ctx); err != nil && ctx.Err() == nil {
			a.logger.Debug("cluster version not raised yet; trying again", "error", err)
		}
		select {
		case <-led:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *Agent) tryFound(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := a.cluster.Barrier(ctx); err != nil {
		return err
	}
	if a.machine.State().Cluster() != "" {
		return nil
	}
	_, err := a.propose(ctx, fsm.Init{
		Header: a.ownHeader(), ClusterID: uuid.NewString(), Name: a.config.Cluster.Name,
	})
	return err
}

// errLogGone is what a server says that had a log once and has none.
var errLogGone = fmt.Errorf("the raft log is gone and no writes are taken; put the raft directory back, or %s: %w", beginAnew, eboot.ErrNoLeader)

// beginAnew is the way on for a server that has lost its log for good: what it serves
// is what can be saved.
const beginAnew = "begin anew: `eboot snapshot save FILE`, stop the server, move raft, serving-cache and founded away, start it, `eboot snapshot restore FILE`"

// raftStopped says why Raft does not run on this server, if it does not: no leader
// will come, whoever waits.
func (a *Agent) raftStopped() error {
	if err := a.live(); err != nil {
		return err
	}
	if err := a.cluster.Failure(); err != nil {
		return err
	}
	if a.config.Clustered() {
		err := a.cluster.Standing()
		if len(a.cluster.Status().Servers) > 0 && !errors.Is(err, eboot.ErrConflict) {
			return nil // a member, perhaps without a leader for the moment
		}
		return err
	}
	if len(a.cluster.Status().Servers) == 0 {
		return errLogGone
	}
	return nil
}

// clusterID is the UUID of the cluster that this server belongs to, or belonged to when
// its log is gone: what it serves is that cluster's, and no other may take it over. Empty:
// it has never been in one.
func (a *Agent) clusterID() string {
	if id := a.machine.State().Cluster(); id != "" {
		return id
	}
	if a.view.founded != "" {
		return a.view.founded
	}
	return a.view.State().Cluster()
}

// raftFailure says why this server cannot take writes, if it cannot.
func (a *Agent) raftFailure() error {
	if err := a.raftStopped(); err != nil {
		return err
	}
	return a.behindCache()
}

// damaged is told by the store; it must not block.
func (a *Agent) damaged(eboot.DamagedBlob) {
	select {
	case a.damage <- struct{}{}:
	default: // a recount is due already
	}
}

func (a *Agent) requestCollection() {
	select {
	case a.collect <- struct{}{}:
	default:
	}
}

// recounter recounts after damage, so that discovery falls silent at once.
func (a *Agent) recounter(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.damage:
			a.copies.lost()
			a.recount()
		}
	}
}

// collector removes blobs that nothing names.
func (a *Agent) collector(ctx context.Context) error {
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.collect:
		case <-ticker.C:
			if len(a.machine.State().Bundles()) == 0 {
				continue // a new cluster on an old store: its snapshot may be yet to be restored
			}
		}
		if err := a.collectBlobs(ctx); err != nil && ctx.Err() == nil {
			a.logger.Error("blobs were not collected", "error", err)
		}
	}
}

// collectBlobs keeps what the bundles of the index name. A manifest that cannot
// be read stops the collection: what it names is not known.
func (a *Agent) collectBlobs(ctx context.Context) error {
	// An index that is not the newest does not name what newer bundles need: the log
	// may still be replayed, or have stopped.
	if err := a.Fresh(ctx); err != nil {
		return err
	}
	if err := a.raftFailure(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The state is taken inside: a bundle that becomes visible after that is safe by
	// its publish, which the store remembers until the collection ends.
	result, err := a.store.Collect(ctx, func(yield func(eboot.Digest) bool) {
		if err := a.liveBlobs(yield); err != nil {
			cancel(err)
		}
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err == nil && result.Removed > 0 {
		a.logger.Info("blobs collected", "removed", result.Removed, "bytes", result.RemovedBytes)
	}
	return err
}

func (a *Agent) liveBlobs(yield func(eboot.Digest) bool) error {
	for _, b := range a.machine.State().Bundles() {
		manifest, err := a.trees.readManifest(b)
		if err != nil {
			return err
		}
		more := yield(b.Manifest) && yield(b.Times)
		for _, e := range manifest.Entries {
			if e.Kind == eboot.KindFile {
				more = more && yield(e.Digest)
			}
		}
		if !more {
			return nil
		}
	}
	return nil
}
