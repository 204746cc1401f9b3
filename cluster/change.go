package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// memberChange is one change of the configuration that stands at index previous.
type memberChange func(r *raft.Raft, previous uint64, timeout time.Duration) raft.IndexFuture

// changeTimeout bounds the wait for the change before it and for a majority.
const changeTimeout = 10 * time.Second

// committed is the newest configuration that is committed and was applied here, and its
// index.
func (c *Cluster) committed() (uint64, []Member) {
	if known := c.machine.configuration.Load(); known != nil {
		return known.index, membersOf(known.servers)
	}
	return 0, nil
}

// lockMembers keeps others from changing the membership until unlock.
func (c *Cluster) lockMembers(ctx context.Context) (unlock func(), err error) {
	select {
	case c.changing <- struct{}{}:
		return func() { <-c.changing }, nil
	case <-c.closing:
		return nil, errClosing
	case <-ctx.Done():
		return nil, errNotProposed
	}
}

// changeMembers makes one change to the configuration at index, when this server
// surely leads and that configuration is still the newest (R6). It waits until the
// change is committed and applied here.
func (c *Cluster) changeMembers(ctx context.Context, index uint64, change memberChange) error {
	unlock, err := c.lockMembers(ctx)
	if err != nil {
		return changeError("change the members", err)
	}
	defer unlock()
	return c.changeLocked(ctx, index, change)
}

func (c *Cluster) changeLocked(ctx context.Context, index uint64, change memberChange) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := c.surelyLeads(ctx); err != nil {
		return readError("change the members", err)
	}
	if now, _ := c.committed(); now != index {
		return fmt.Errorf("change the members: they were changed in the meantime: %w", eboot.ErrConflict)
	}
	err := c.propose(ctx, func(timeout time.Duration) raft.Future { return change(c.raft, index, timeout) })
	return changeError("change the members", err)
}

// surelyLeads: this leader has applied everything from before its term, and a
// majority has just confirmed it. A leader that is cut off proposes nothing.
func (c *Cluster) surelyLeads(ctx context.Context) error {
	if _, err := c.waitEstablished(ctx); err != nil {
		return err
	}
	return c.propose(ctx, func(time.Duration) raft.Future { return c.raft.VerifyLeader() })
}

// Remove takes a server out of the configuration; on the leader only, which may
// remove itself and then leads no longer. It returns when the change is committed. This
// process does not add the server again; that the next leader does not either is up to
// Options.Removed, which should know of it before the call, at the latest right after.
//
// eboot.ErrNotFound: no such member. ErrConflict: it is the last voter, or too few of
// the voters that would remain are alive to go on. ErrNoLeader: this server does not
// lead. ErrUnknownOutcome: ask again.
func (c *Cluster) Remove(ctx context.Context, id string) error {
	unlock, err := c.lockMembers(ctx)
	if err != nil {
		return changeError("remove", err)
	}
	defer unlock()
	if err := c.surelyLeads(ctx); err != nil {
		return readError("remove", err)
	}
	return c.remove(ctx, id)
}

func (c *Cluster) remove(ctx context.Context, id string) error {
	index, members := c.committed()
	if err := c.mayRemove(members, id); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	// Before the change: the steward would have it back at once.
	_, before := c.gone.Swap(id, true)
	err := c.changeLocked(ctx, index, func(r *raft.Raft, previous uint64, timeout time.Duration) raft.IndexFuture {
		return r.RemoveServer(raft.ServerID(id), previous, timeout)
	})
	if err == nil {
		c.options.Logger.Info("removed a server", "server", id)
		return nil
	}
	if _, still := find(c.members(), id); still && !before {
		c.gone.Delete(id)
	}
	return fmt.Errorf("remove: %w", err)
}

// mayRemove refuses what would leave a cluster that cannot write.
func (c *Cluster) mayRemove(members []Member, id string) error {
	m, ok := find(members, id)
	if !ok {
		return fmt.Errorf("server %s is not a member: %w", id, eboot.ErrNotFound)
	}
	if !m.Voter {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(members), func(other Member) bool { return other.ID == id })
	if !slices.ContainsFunc(rest, func(other Member) bool { return other.Voter }) {
		return fmt.Errorf("server %s is the last voter: %w", id, eboot.ErrConflict)
	}
	if alive, needed := c.quorum(rest); alive < needed {
		return fmt.Errorf("without server %s only %d of the other voters would be alive and %d are needed; missing: %s: %w",
			id, alive, needed, names(c.missing(rest)), eboot.ErrConflict)
	}
	return nil
}

// Replace removes the member old, which is gone for good, and lets the server in
// that waits at its address. Errors are those of Remove; eboot.ErrConflict also: old is
// alive, or no server waits there that could be added.
func (c *Cluster) Replace(ctx context.Context, old string) error {
	unlock, err := c.lockMembers(ctx)
	if err != nil {
		return changeError("replace", err)
	}
	defer unlock()
	if err := c.surelyLeads(ctx); err != nil {
		return readError("replace", err)
	}
	successor, err := c.successor(ctx, old)
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if err := c.remove(ctx, old); err != nil {
		return err
	}
	index, _ := c.committed()
	if err := c.changeLocked(ctx, index, addNonvoter(successor.ID, successor.Address)); err != nil {
		// Its address is free now: the steward of this or the next leader adds it.
		c.options.Logger.Warn("the old server was removed, and the new one will be added soon", "old", old, "new", successor.ID, "error", err)
	}
	return nil
}

// successor is the server that waits at the address of a member.
func (c *Cluster) successor(ctx context.Context, old string) (Peer, error) {
	_, members := c.committed()
	m, ok := find(members, old)
	if !ok {
		return Peer{}, fmt.Errorf("server %s is not a member: %w", old, eboot.ErrNotFound)
	}
	if c.alive(old) {
		return Peer{}, fmt.Errorf("server %s is alive; only one that is gone is replaced: %w", old, eboot.ErrConflict)
	}
	peers := c.book.list()
	i := slices.IndexFunc(peers, func(p Peer) bool {
		_, member := find(members, p.ID)
		return p.Address == m.Address && !member
	})
	if i < 0 {
		return Peer{}, fmt.Errorf("no other server waits at %s, the address of %s; start one there, or remove %s without replacing it: %w", m.Address, old, old, eboot.ErrConflict)
	}
	rest := slices.DeleteFunc(slices.Clone(members), func(other Member) bool { return other.ID == old })
	if reason := c.objection(rest, peers[i], c.ask(ctx, peers[i:i+1])); reason != "" {
		return Peer{}, fmt.Errorf("server %s, which waits at %s, cannot be added: %s: %w", peers[i].ID, m.Address, reason, eboot.ErrConflict)
	}
	return peers[i], nil
}
