package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"eboot"
)

// Transfer hands leadership to a voter that is alive: to this one, or with "" to
// the one that has applied the most. It returns when another leader is known, and within twice
// the election timeout in any case: a transfer inside Raft cannot be
// interrupted, and this server refuses writes while it lasts (R16).
//
// eboot.ErrNoLeader: this server does not lead. ErrNotFound: to is not a member.
// ErrConflict: it cannot vote. ErrUnavailable: no other voter is alive, or the transfer
// came to nothing and this server leads on. ErrTimeout: nobody is known to lead yet.
func (c *Cluster) Transfer(ctx context.Context, to string) error {
	if c.raft.State() != raft.Leader {
		return readError("transfer", raft.ErrNotLeader)
	}
	if to == c.options.ServerID {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.options.heartbeatTimeout())
	defer cancel()
	targets, err := c.heirs(ctx, to)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	var failed error
	for _, m := range targets {
		if err := c.transfer(ctx, m); err != nil {
			failed = fmt.Errorf("to %s: %w", m.ID, err)
		}
		if c.raft.State() != raft.Leader {
			return c.waitForOther(ctx)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("transfer: this server leads on: %w: %w", eboot.ErrUnavailable, failed)
}

// transfer hands leadership to one server. The future of Raft may never be
// answered when leadership is lost at the wrong moment.
func (c *Cluster) transfer(ctx context.Context, to Member) error {
	return c.await(ctx, c.raft.LeadershipTransferToServer(raft.ServerID(to.ID), raft.ServerAddress(to.Address)), func() {})
}

// heirs are the servers that may lead next, the best one first.
func (c *Cluster) heirs(ctx context.Context, to string) ([]Member, error) {
	members := c.members()
	if to != "" {
		m, ok := find(members, to)
		switch {
		case !ok:
			return nil, fmt.Errorf("server %s is not a member: %w", to, eboot.ErrNotFound)
		case !m.Voter:
			return nil, fmt.Errorf("server %s is not a voter yet: %w", to, eboot.ErrConflict)
		case c.book.directory != nil && !c.alive(to):
			return nil, fmt.Errorf("server %s is not alive: %w", to, eboot.ErrUnavailable)
		}
		return []Member{m}, nil
	}
	var heirs []Member
	var peers []Peer
	for _, m := range members {
		peer, alive := c.book.peer(m.ID)
		if m.Voter && m.ID != c.options.ServerID && (alive || c.book.directory == nil) {
			heirs = append(heirs, m)
			peers = append(peers, peer)
		}
	}
	if len(heirs) == 0 {
		return nil, fmt.Errorf("no other voter is alive: %w", eboot.ErrUnavailable)
	}
	if c.book.directory != nil && len(heirs) > 1 {
		ctx, cancel := context.WithTimeout(ctx, c.options.heartbeatTimeout()/2)
		defer cancel()
		known := c.ask(ctx, peers).known
		slices.SortStableFunc(heirs, func(a, b Member) int { return cmp.Compare(known[b.ID].Applied, known[a.ID].Applied) })
	}
	return heirs, nil
}

// waitForOther returns when another leader is known.
func (c *Cluster) waitForOther(ctx context.Context) error {
	if err := c.WaitForLeader(ctx); err != nil {
		if errors.Is(err, eboot.ErrNoLeader) {
			return fmt.Errorf("transfer: this server leads no longer, and no other is known to: %w", eboot.ErrTimeout)
		}
		return err
	}
	return nil
}
