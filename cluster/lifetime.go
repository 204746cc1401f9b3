package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// Bounds of the steps of Close.
const (
	closeProposals = 2 * time.Second
	closeRestore   = 10 * time.Second
	closeSnapshot  = 10 * time.Second
	closeRaft      = 10 * time.Second
	closeFutures   = time.Second
)

// run starts the goroutines of this package.
func (c *Cluster) run() {
	c.observer = raft.NewObserver(c.observations, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	c.raft.RegisterObserver(c.observer)
	c.goroutines.Go(c.watch)
	c.goroutines.Go(func() { c.db.RunMetrics(c.life, 0) })
	if c.book.directory != nil {
		c.goroutines.Go(func() { c.book.read(c.life) })
		c.goroutines.Go(func() { c.listen(c.life) })
	}
}

// watch reacts to what Raft tells, and to the failures that stop it. It never
// waits for anything else: Raft waits for it.
func (c *Cluster) watch() {
	stopLeading := func() {}
	defer func() { stopLeading() }()
	storageFailed, halted := c.storage.failed, c.machine.halted
	for {
		select {
		case leading := <-c.notify:
			stopLeading()
			if leading {
				stopLeading = c.lead()
			}
			c.changed.notify()
		case <-c.observations:
			// An observation that found the channel full was dropped; those in
			// it are looked at later than that, and the newest state is seen.
			c.changed.notify()
		case <-storageFailed:
			storageFailed = nil
			err := c.storage.err()
			c.options.Logger.Error("raft is stopped on this server: its disk failed", "error", err)
			c.stopRaft()
			if c.options.OnStorageFailure != nil {
				c.goroutines.Go(func() { c.options.OnStorageFailure(err) })
			}
		case <-halted:
			halted = nil
			c.stopRaft()
		case <-c.life.Done():
			return
		}
	}
}

// lead establishes leadership until stop is called.
func (c *Cluster) lead() (stop func()) {
	term, stop := context.WithCancel(c.life)
	c.goroutines.Go(func() {
		defer stop()
		if c.establish(term) && c.book.directory != nil {
			c.steward(term)
		}
	})
	return stop
}

// stopRaft shuts Raft down without waiting for it.
func (c *Cluster) stopRaft() {
	c.goroutines.Go(func() {
		c.shutdown()
		c.changed.notify()
	})
}

// shutDown ends Raft, after a restore has ended: Raft panics when it is shut down
// in the middle of one.
func (c *Cluster) shutDown() raft.Future {
	select {
	case c.restore <- struct{}{}: // and no other begins
	case <-time.After(closeRestore):
	}
	return c.raft.Shutdown()
}

// establish makes a new leader fit to lead: everything of earlier terms is
// applied here, and its own address in the configuration is right; with a Directory
// the steward sees to that. It is tried until it is done, or leadership lost: false.
func (c *Cluster) establish(ctx context.Context) bool {
	for ctx.Err() == nil {
		term := c.raft.CurrentTerm()
		barrier := c.raft.Barrier(enqueueTimeout)
		err := c.await(ctx, barrier, func() {})
		if err == nil {
			err = c.passed(barrier)
		}
		if err == nil {
			c.established.Store(term)
			c.changed.notify()
			if c.book.directory == nil {
				err = c.correctAddress(ctx)
			}
		}
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			c.options.Logger.Warn("leadership is not established yet; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-c.machine.halted:
			return false
		case <-time.After(time.Second):
		}
	}
	return false
}

// correctAddress enters this leader's address where the configuration has an
// older one: servers vote by id, but are found by address. AddVoter of a voter
// changes its address in place (R8).
func (c *Cluster) correctAddress(ctx context.Context) error {
	id, address := raft.ServerID(c.options.ServerID), c.transport.LocalAddr()
	configuration := c.raft.GetConfiguration()
	for _, server := range configuration.Configuration().Servers {
		if server.ID != id || server.Suffrage != raft.Voter || server.Address == address {
			continue
		}
		c.options.Logger.Info("correcting this server's address", "old", server.Address, "new", address)
		return c.await(ctx, c.raft.AddVoter(id, address, 0, enqueueTimeout), func() {})
	}
	return nil
}

// Close stops Raft on this server, usually at once and always within about 50 s, and may be called again. An
// error says what did not end in time or could not be closed. The other servers see
// a leader or follower that went away; the membership does not change.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.close() })
	return c.closeErr
}

func (c *Cluster) close() error {
	// No proposal begins, and those under way are decided: nobody is left in doubt
	// who need not be. Without a quorum they are not; then Raft gives them up.
	close(c.closing)
	c.drain()
	// A snapshot makes the next start short: no log to replay. Not having it does no harm.
	if c.Failure() == nil {
		if err := within(closeSnapshot, "snapshot", c.Snapshot); err != nil {
			c.options.Logger.Warn("no snapshot at the end", "error", err)
		}
	}
	// Nobody new reaches Raft, then Raft ends, then what it writes to is closed.
	close(c.storage.closing)
	err := c.transport.Close()
	c.transport.CloseStreams()
	c.raft.DeregisterObserver(c.observer)
	stopped := within(closeRestore+closeRaft, "raft", func() error { return c.shutdown().Error() })
	c.cancel()
	close(c.ended)
	if stopped != nil {
		return errors.Join(err, stopped) // Raft may still write: the database stays open
	}
	waited := within(closeRaft, "waiting goroutines", func() error { c.goroutines.Wait(); return nil })
	c.waitFutures()
	return errors.Join(err, waited, within(closeRaft, "database", c.db.Close))
}

// waitFutures waits for those who wait for futures, not for ever: Raft answers none
// that was with its FSM goroutine at the end, and may not answer one of a
// leadership transfer. They hold nothing.
func (c *Cluster) waitFutures() {
	limit := time.After(closeFutures)
	for {
		answered := c.answered.wait()
		if c.futures.Load() == 0 {
			return
		}
		select {
		case <-answered:
		case <-limit:
			c.options.Logger.Debug("raft has left futures unanswered", "futures", c.futures.Load())
			return
		}
	}
}

// drain waits for the proposals under way, and for a restore or who holds writes.
func (c *Cluster) drain() {
	deadline := time.After(closeProposals)
	for range maxProposals {
		select {
		case c.tokens <- struct{}{}:
		case <-deadline:
			return
		}
	}
}

// within bounds a step that cannot be interrupted.
func within(limit time.Duration, what string, step func() error) error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("%s did not end within %v: %w", what, limit, eboot.ErrTimeout)
	}
}
