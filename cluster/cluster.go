package cluster

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
)

// enqueueTimeout bounds the wait for Raft to take a proposal, when the context
// allows more.
const enqueueTimeout = 10 * time.Second

// Cluster is this server's part in the Raft group.
type Cluster struct {
	options   Options
	machine   *machine
	db        *raftboltdb.BoltStore
	storage   *storage
	transport *raft.NetworkTransport
	raft      *raft.Raft
	book      book
	proposals
	leadership
	formation
	stewardship
	lifetime
}

// proposals bound what waits on Raft.
type proposals struct {
	tokens  chan struct{} // one in it for each proposal under way
	holder  chan struct{} // one in it while writes are held
	restore chan struct{} // one in it while Restore runs, or once Raft may not be asked to
}

// leadership is what the watching goroutine knows of who leads.
type leadership struct {
	notify       chan bool // Raft blocks on it: always drained
	observations chan raft.Observation
	observer     *raft.Observer
	changed      broadcast     // leader or own role
	established  atomic.Uint64 // the term in which this leader has applied all before it
}

// lifetime is how a Cluster ends.
type lifetime struct {
	life       context.Context // ends the goroutines of this package
	cancel     context.CancelFunc
	goroutines sync.WaitGroup
	futures    atomic.Int64       // goroutines that wait for futures, some of which Raft forgets when it ends
	answered   broadcast          // there is one less
	closing    chan struct{}      // closed when Close begins
	ended      chan struct{}      // closed when Close has ended
	shutdown   func() raft.Future // of Raft: only the first one can be waited for
	closeOnce  sync.Once
	closeErr   error
}

// Member is one server of the configuration.
type Member struct {
	ID      string
	Address string // host:port of its peer port
	Voter   bool
}

// Failure says why Raft has stopped on this server; nil while it has not.
func (c *Cluster) Failure() error {
	if err := c.storage.err(); err != nil {
		return err
	}
	return c.machine.err()
}

// Apply proposes a command and returns what the StateMachine answered. Not
// applied: eboot.ErrNoLeader (this server is not the leader), ErrTimeout,
// ErrConflict (a restore came in between). eboot.ErrUnknownOutcome: it
// may be applied, now or later.
func (c *Cluster) Apply(ctx context.Context, command []byte) (any, error) {
	var future raft.ApplyFuture
	err := c.propose(ctx, func(timeout time.Duration) raft.Future {
		future = c.raft.Apply(command, timeout)
		return future
	})
	if err != nil {
		return nil, changeError("apply", err)
	}
	response := future.Response()
	if refused, ok := response.(refusal); ok {
		return nil, changeError("apply", refused.err)
	}
	return response, nil
}

// Barrier returns when everything that was proposed before has been applied on
// this server, which must be the leader.
func (c *Cluster) Barrier(ctx context.Context) error {
	var future raft.Future
	err := c.propose(ctx, func(timeout time.Duration) raft.Future {
		future = c.raft.Barrier(timeout)
		return future
	})
	if err == nil {
		err = c.passed(future)
	}
	return readError("barrier", err)
}

// passed notes that a barrier was reached. Raft does not hand barriers and the
// first entry of a term to the state machine, so nothing else would. A barrier also
// gets past entries that a halted state machine has not applied: that is its error.
func (c *Cluster) passed(barrier raft.Future) error {
	if err := c.machine.err(); err != nil {
		return err
	}
	if f, ok := barrier.(raft.IndexFuture); ok {
		c.machine.advance(f.Index())
	}
	return nil
}

// propose takes a token, has Raft take the proposal, and waits for its future.
func (c *Cluster) propose(ctx context.Context, enqueue func(time.Duration) raft.Future) error {
	select {
	case c.tokens <- struct{}{}:
	case <-c.closing:
		return errClosing
	case <-ctx.Done():
		return errNotProposed
	}
	timeout, err := c.mayPropose(ctx)
	if err != nil {
		<-c.tokens
		return err
	}
	return c.await(ctx, enqueue(timeout), func() { <-c.tokens })
}

func (c *Cluster) mayPropose(ctx context.Context) (time.Duration, error) {
	select {
	case <-c.closing:
		return 0, errClosing
	case <-ctx.Done():
		return 0, errNotProposed
	default:
	}
	if err := c.Failure(); err != nil {
		return 0, fmt.Errorf("%w: %w", errClosing, err)
	}
	timeout := enqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Millisecond, min(timeout, time.Until(deadline)))
	}
	return timeout, nil
}

// await waits for a future, which cannot be given up: a goroutine waits on when
// ctx ends, and calls after in the end.
func (c *Cluster) await(ctx context.Context, future raft.Future, after func()) error {
	done := make(chan error, 1)
	c.futures.Add(1)
	go func() {
		err := future.Error()
		after()
		done <- err
		c.futures.Add(-1)
		c.answered.notify()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errWaitedTooLong
	case <-c.ended:
		return raft.ErrRaftShutdown
	}
}

// VerifiedRead returns when a read of the StateMachine on this server sees every
// change that was acknowledged before the call. It must be the leader:
// eboot.ErrNoLeader.
//
// The order matters (section 6.4 of the Raft dissertation): an entry of this leader's own term is
// committed, the commit index is taken, leadership is confirmed by a majority, the
// term is still the same, and that index has been applied.
func (c *Cluster) VerifiedRead(ctx context.Context) error {
	return readError("verified read", c.verifiedRead(ctx))
}

func (c *Cluster) verifiedRead(ctx context.Context) error {
	term, err := c.waitEstablished(ctx)
	if err != nil {
		return err
	}
	index := c.raft.CommitIndex()
	err = c.propose(ctx, func(time.Duration) raft.Future { return c.raft.VerifyLeader() })
	if err != nil {
		return err
	}
	if c.raft.CurrentTerm() != term {
		return raft.ErrNotLeader
	}
	return c.machine.waitApplied(ctx, index, c.closing)
}

// waitEstablished returns the term once this leader has applied everything from
// before it.
func (c *Cluster) waitEstablished(ctx context.Context) (uint64, error) {
	for {
		changed := c.changed.wait()
		if c.raft.State() != raft.Leader {
			return 0, raft.ErrNotLeader
		}
		if term := c.raft.CurrentTerm(); c.established.Load() == term {
			return term, nil
		}
		if err := c.pause(ctx, changed); err != nil {
			return 0, err
		}
	}
}

func (c *Cluster) pause(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-c.machine.halted:
		return c.machine.err()
	case <-c.storage.failed:
		return c.storage.err()
	case <-c.closing:
		return errClosing
	case <-ctx.Done():
		return errNotProposed
	}
}

// WaitForLeader returns when a leader is known. eboot.ErrNoLeader: none was until
// ctx ended; ErrUnavailable: Raft has stopped here.
func (c *Cluster) WaitForLeader(ctx context.Context) error {
	for {
		changed := c.changed.wait()
		if _, leader := c.raft.LeaderWithID(); leader != "" {
			return nil
		}
		if err := c.pause(ctx, changed); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("wait for a leader: %w", eboot.ErrNoLeader)
			}
			return readError("wait for a leader", err)
		}
	}
}

// LeaderChanged returns a channel that is closed when the leader or this server's
// role changes. To miss nothing, ask for it before Status.
func (c *Cluster) LeaderChanged() <-chan struct{} { return c.changed.wait() }

// Applied is the index of the last entry that this server has applied. Entries of
// Raft's own count once a later one has passed.
func (c *Cluster) Applied() uint64 { return c.machine.applied.Load() }

// WaitApplied returns when the entry at index has been applied here.
func (c *Cluster) WaitApplied(ctx context.Context, index uint64) error {
	return readError(fmt.Sprintf("wait for entry %d", index), c.machine.waitApplied(ctx, index, c.closing))
}

// Snapshot writes a snapshot now, and shortens the log by what is then too old.
// Without anything new it does nothing.
func (c *Cluster) Snapshot() error {
	if c.machine.latest.Load() == c.machine.snapshotted.Load() {
		return nil
	}
	return readError("snapshot", c.raft.Snapshot().Error())
}

// HoldWrites waits until every proposal under way has been decided and applied,
// and lets no other begin until release is called. What the StateMachine shows on the
// leader in the meantime is what Restore will replace.
func (c *Cluster) HoldWrites(ctx context.Context) (release func(), err error) {
	select {
	case c.holder <- struct{}{}:
	case <-c.closing:
		return nil, readError("hold writes", errClosing)
	case <-ctx.Done():
		return nil, readError("hold writes", errNotProposed)
	}
	taken := 0
	release = sync.OnceFunc(func() {
		for range taken {
			<-c.tokens
		}
		<-c.holder
	})
	for taken < maxProposals {
		select {
		case c.tokens <- struct{}{}:
			taken++
		case <-c.closing:
			release()
			return nil, readError("hold writes", errClosing)
		case <-ctx.Done():
			release()
			return nil, readError("hold writes", errNotProposed)
		}
	}
	return release, nil
}

// Restore replaces the state of the whole cluster by a snapshot of size bytes that
// r yields. This server must be the leader. It is for a new cluster or a disaster: the
// leader goes ahead of the others, who get the state from it afterwards.
//
// The caller has made sure that the StateMachine can restore it, and holds writes:
// Raft gives up what is under way. The index that the state machine will see next
// is greater than all before. Nothing happened: eboot.ErrNoLeader, ErrTimeout,
// ErrUnavailable. ErrUnknownOutcome: anything else. When Restore ends by ctx, r is
// still being read.
func (c *Cluster) Restore(ctx context.Context, size int64, r io.Reader) error {
	timeout, err := c.mayPropose(ctx)
	if err != nil {
		return changeError("restore", err)
	}
	if c.raft.State() != raft.Leader {
		return changeError("restore", raft.ErrNotLeader)
	}
	select {
	case c.restore <- struct{}{}:
	case <-c.closing:
		return changeError("restore", errClosing)
	case <-ctx.Done():
		return changeError("restore", errNotProposed)
	}
	running := &restoreFuture{done: make(chan struct{})}
	c.goroutines.Go(func() {
		running.err = c.runRestore(size, r, timeout)
		close(running.done)
	})
	if err := c.await(ctx, running, func() { <-c.restore }); err != nil {
		return fmt.Errorf("restore: %w: %w", eboot.ErrUnknownOutcome, err)
	}
	return nil
}

func (c *Cluster) runRestore(size int64, r io.Reader, timeout time.Duration) error {
	c.machine.restoring.Store(true)
	defer c.machine.restoring.Store(false)
	// Raft refuses to restore while a configuration entry is yet to be applied.
	if err := c.raft.Barrier(timeout).Error(); err != nil {
		return err
	}
	if err := c.raft.Restore(&raft.SnapshotMeta{Version: snapshotVersion, Size: size}, r, timeout); err != nil {
		return err
	}
	barrier := c.raft.Barrier(timeout)
	if err := barrier.Error(); err != nil {
		return err
	}
	return c.passed(barrier)
}

type restoreFuture struct {
	done chan struct{}
	err  error
}

func (f *restoreFuture) Error() error {
	<-f.done
	return f.err
}
