package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// Standing says in one sentence why this server is not a working part of a
// cluster, and what can be done; nil when it is a member and knows a leader. It wraps
// eboot.ErrConflict when the other servers say that this one has no place among them, or
// none that can be mended without an operator, else eboot.ErrNoLeader.
func (c *Cluster) Standing() error {
	if err := c.Failure(); err != nil {
		return fmt.Errorf("raft has stopped on this server: %v: %w", err, eboot.ErrNoLeader)
	}
	servers := c.members()
	trouble := c.trouble.Load()
	if len(servers) == 0 {
		if trouble != nil && *trouble != nil {
			return *trouble
		}
		return fmt.Errorf("this server belongs to no cluster yet: %w", eboot.ErrNoLeader)
	}
	if _, ok := find(servers, c.options.ServerID); !ok {
		return removedError(c.options.ServerID, servers)
	}
	if _, leader := c.raft.LeaderWithID(); leader != "" {
		return nil
	}
	if trouble != nil && *trouble != nil {
		return *trouble
	}
	alive, needed := c.Quorum()
	missing := c.missing(servers)
	if len(missing) == 0 {
		return fmt.Errorf("no leader is known; %d of %d voters are alive, an election is due: %w", alive, alive, eboot.ErrNoLeader)
	}
	return fmt.Errorf("no leader is known; %d of %d voters are alive and %d are needed; missing: %s: %w", alive, alive+len(missing), needed, names(missing), eboot.ErrNoLeader)
}

func removedError(id string, servers []Member) error {
	return fmt.Errorf("this server (%s) was removed from the cluster, which now is %s; to join again, %s: %w", id, names(servers), wayOfReset, eboot.ErrConflict)
}

// Quorum counts the voters that are alive, this one included, and says how many
// are needed for writes. Without a Directory the others are not known to be alive.
func (c *Cluster) Quorum() (alive, needed int) {
	alive, needed = c.quorum(c.members())
	return alive, needed
}

// quorum counts for a configuration.
func (c *Cluster) quorum(servers []Member) (alive, needed int) {
	voters := 0
	for _, m := range servers {
		if m.Voter {
			voters++
		}
	}
	return voters - len(c.missing(servers)), voters/2 + 1
}

// missing are the voters that are not alive.
func (c *Cluster) missing(servers []Member) []Member {
	var missing []Member
	for _, m := range servers {
		if m.Voter && !c.alive(m.ID) {
			missing = append(missing, m)
		}
	}
	return missing
}

func (c *Cluster) alive(id string) bool {
	_, ok := c.book.peer(id)
	return ok || id == c.options.ServerID
}

// listen finds out why a member hears of no leader: the others may have removed
// it while it was away, and then nobody tells it (R6b).
func (c *Cluster) listen(ctx context.Context) {
	for {
		if servers := c.members(); len(servers) > 0 {
			var trouble error
			if _, leader := c.raft.LeaderWithID(); leader == "" {
				trouble = c.hearsay(c.ask(ctx, c.book.list()), servers)
			}
			c.setTrouble(trouble)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * c.options.poll()):
		}
	}
}

// hearsay judges what those say who know a leader.
func (c *Cluster) hearsay(a answers, servers []Member) error {
	id := c.options.ServerID
	var removed error
	for _, k := range a.known {
		if k.Leader == "" {
			continue
		}
		if _, ok := find(k.Servers, id); ok {
			return nil
		}
		if overlap(k.Servers, servers, id) {
			removed = removedError(id, k.Servers)
		}
	}
	return removed
}

// Status is what this server knows of its Raft group.
type Status struct {
	Role         string // leader, follower, candidate, shutdown
	Leader       string // id; empty when none is known
	Term         uint64
	LastIndex    uint64 // of the log on this server
	CommitIndex  uint64
	AppliedIndex uint64
	Servers      []Member // in the order of the configuration
	Missing      []Member // voters that are not alive
}

// Status returns at once.
func (c *Cluster) Status() Status {
	_, leader := c.raft.LeaderWithID()
	role := c.raft.State()
	if c.Failure() != nil {
		role = raft.Shutdown // Raft's own state may be overwritten while it ends
	}
	servers := c.members()
	return Status{
		Role: strings.ToLower(role.String()), Leader: string(leader), Term: c.raft.CurrentTerm(),
		LastIndex: c.raft.LastIndex(), CommitIndex: c.raft.CommitIndex(), AppliedIndex: c.Applied(),
		Servers: servers, Missing: c.missing(servers),
	}
}
