package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// votersLag is how many entries a server may be behind the leader and become a voter.
	votersLag = 250
	// maxServers bounds what gossip can make of the configuration.
	maxServers = 32
)

// stewardship is what a leader does about the membership.
type stewardship struct {
	changing chan struct{} // one in it while the membership is changed
	gone     sync.Map      // ids that were removed by this process
	waiting  atomic.Pointer[[]Candidate]
	learning atomic.Pointer[[]Candidate]
}

// Waiting lists, on the leader, the servers that are alive and not members, and
// why, by id. Nil elsewhere.
func (c *Cluster) Waiting() []Candidate { return load(&c.waiting) }

// Learning lists, on the leader, the non-voters that are alive and why they do not
// vote yet, by id. Nil elsewhere.
func (c *Cluster) Learning() []Candidate { return load(&c.learning) }

func load(p *atomic.Pointer[[]Candidate]) []Candidate {
	if list := p.Load(); list != nil {
		return *list
	}
	return nil
}

// steward keeps the configuration in step with what gossip shows and the servers
// confirm, while this server leads: one change at a time. It never removes anybody: a
// server that is away may come back.
func (c *Cluster) steward(ctx context.Context) {
	defer c.waiting.Store(nil)
	defer c.learning.Store(nil)
	since := map[string]sighting{}
	told := ""
	for ctx.Err() == nil {
		changed := c.book.changed.wait()
		plan := c.plan(ctx, since)
		if ctx.Err() != nil {
			return
		}
		c.waiting.Store(&plan.waiting)
		c.learning.Store(&plan.learning)
		if plan.change != nil {
			c.options.Logger.Info("changing the cluster", "change", plan.what)
			err := c.changeMembers(ctx, plan.index, plan.change)
			if err == nil {
				told = ""
				continue
			}
			if err.Error() != told && ctx.Err() == nil {
				told = err.Error()
				c.options.Logger.Warn("the cluster was not changed; trying again", "change", plan.what, "error", err)
			}
		}
		select {
		case <-changed:
		case <-time.After(c.options.poll()):
		case <-ctx.Done():
		}
	}
}

// sighting is since when a server has been alive at an address without a break.
type sighting struct {
	address string
	since   time.Time
}

// plan is what the steward does next and what it tells.
type plan struct {
	index    uint64 // of the configuration that it was made for
	change   memberChange
	what     string
	waiting  []Candidate
	learning []Candidate
}

// do takes the first change that is found.
func (p *plan) do(what string, change memberChange) {
	if p.change == nil {
		p.what, p.change = what, change
	}
}

func addNonvoter(id, address string) memberChange {
	return func(r *raft.Raft, previous uint64, timeout time.Duration) raft.IndexFuture {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), previous, timeout)
	}
}

func addVoter(id, address string) memberChange {
	return func(r *raft.Raft, previous uint64, timeout time.Duration) raft.IndexFuture {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(address), previous, timeout)
	}
}

// plan compares the configuration with what is seen. Only servers about which
// something may have to be done are asked.
func (c *Cluster) plan(ctx context.Context, since map[string]sighting) plan {
	index, members := c.committed()
	p := plan{index: index}
	peers := c.book.list()
	var asked []Peer
	now := time.Now()
	for _, peer := range peers {
		m, ok := find(members, peer.ID)
		if !ok || !m.Voter || m.Address != peer.Address {
			asked = append(asked, peer)
		}
		if since[peer.ID].address != peer.Address {
			since[peer.ID] = sighting{peer.Address, now}
		}
	}
	a := c.ask(ctx, asked)
	for id := range since {
		_, alive := c.book.peer(id)
		if _, silent := a.silent[id]; silent || !alive {
			delete(since, id)
		}
	}
	c.planAddresses(&p, members, peers, a)
	for _, peer := range peers {
		m, ok := find(members, peer.ID)
		switch {
		case !ok:
			c.planEntry(&p, members, peer, a)
		case !m.Voter && m.Address == peer.Address:
			c.planVote(&p, members, peer, a, since)
		}
	}
	return p
}

// planAddresses corrects the addresses of members, this server included: servers
// are found by gossip, and by these addresses when gossip does not know (R8).
// No two members may have one address in Raft, so one that stands in the way, because
// addresses were swapped or because it is away, gets one that nobody has.
func (c *Cluster) planAddresses(p *plan, members []Member, peers []Peer, a answers) {
	right := map[string]string{c.options.ServerID: string(c.transport.LocalAddr())}
	for _, peer := range peers {
		if m, ok := find(members, peer.ID); ok && m.Address != peer.Address {
			if _, confirmed := a.known[peer.ID]; confirmed {
				right[peer.ID] = peer.Address
			}
		}
	}
	blocked := Member{}
	for _, m := range members {
		address, ok := right[m.ID]
		if !ok || address == m.Address {
			continue
		}
		i := slices.IndexFunc(members, func(other Member) bool { return other.Address == address })
		if i < 0 {
			p.do(fmt.Sprintf("server %s moved from %s to %s", m.ID, m.Address, address), addNonvoter(m.ID, address))
			continue
		}
		if peer, _ := c.book.peer(members[i].ID); peer.Address != address && right[members[i].ID] != address {
			blocked = members[i] // and not somebody who says that the address is its own
		}
	}
	if blocked.ID != "" {
		p.do(fmt.Sprintf("server %s is no longer at %s, where another member is", blocked.ID, blocked.Address), addNonvoter(blocked.ID, nowhere(blocked.ID)))
	}
}

// nowhere is an address that is nobody's (RFC 6761).
func nowhere(id string) string { return id + ".invalid:1" }

// planEntry lets a server in as a non-voter, or says why not.
func (c *Cluster) planEntry(p *plan, members []Member, peer Peer, a answers) {
	if reason := c.objection(members, peer, a); reason != "" {
		k, answered := a.known[peer.ID]
		passing := !answered || k.Cluster != "" && c.clusterID() == ""
		p.waiting = append(p.waiting, Candidate{ID: peer.ID, Address: peer.Address, Reason: reason, Passing: passing && !c.wasRemoved(peer.ID)})
		return
	}
	p.do(fmt.Sprintf("server %s at %s joins as a non-voter", peer.ID, peer.Address), addNonvoter(peer.ID, peer.Address))
}

// objection says why a server may not be added; "" when it may.
func (c *Cluster) objection(members []Member, peer Peer, a answers) string {
	k, ok := a.known[peer.ID]
	f := decodeFounding(k.Founding)
	own := c.clusterID()
	at := slices.IndexFunc(members, func(m Member) bool { return m.Address == peer.Address })
	switch {
	case c.wasRemoved(peer.ID):
		return "it was removed from this cluster; " + wayOfReset
	case !ok:
		return fmt.Sprintf("it does not answer on its peer port: %v", a.silent[peer.ID])
	case k.Cluster != "" && own == "": // this cluster was founded a moment ago, and gets its UUID next
		return fmt.Sprintf("it belongs to cluster %s, and which one this is is not known yet", k.Cluster)
	case k.Cluster != "" && k.Cluster != own:
		return fmt.Sprintf("it belongs to another cluster of this name, %s, and this is %s; what it serves may be the last copy: save it with `eboot snapshot save FILE` there, and %s", k.Cluster, own, wayOfReset)
	case len(k.Servers) > 0 && !overlap(k.Servers, members, peer.ID):
		return fmt.Sprintf("it belongs to another cluster, of %s; %s", names(k.Servers), wayOfReset)
	case len(k.Servers) > 0 && !sameHistory(k, members):
		return "it was a member of this cluster, which was changed or recovered without it, and may have applied what was lost; " + wayOfReset
	case len(k.Servers) == 0 && f.Promised:
		return fmt.Sprintf("it has promised to found a cluster of %s; %s", names(f.members()), wayOfReset)
	case at >= 0 && c.alive(members[at].ID):
		return fmt.Sprintf("server %s of this cluster has the same address", members[at].ID)
	case at >= 0:
		return fmt.Sprintf("server %s of this cluster was at this address; if that is gone for good, run `eboot cluster remove --replace %s`", members[at].ID, members[at].ID)
	case len(members) >= maxServers:
		return fmt.Sprintf("the cluster has %d servers, and no more are taken", len(members))
	}
	return ""
}

// sameHistory reports whether the log of a server that is no member can be taken for the beginning
// of this cluster's: it was being added by a leader that fell before that was committed. A
// voter was more than that. And after a recovery from a lost majority the old log may hold
// entries that the new one does not, which is seen by the majority of voters that is gone.
func sameHistory(k Knowledge, members []Member) bool {
	voters, stayed := 0, 0
	for _, m := range k.Servers {
		if !m.Voter {
			continue
		}
		if m.ID == k.ID {
			return false
		}
		voters++
		if now, ok := find(members, m.ID); ok && now.Voter {
			stayed++
		}
	}
	return stayed > voters/2
}

func (c *Cluster) wasRemoved(id string) bool {
	_, gone := c.gone.Load(id)
	return gone || c.options.Removed != nil && c.options.Removed(id)
}

// planVote makes a non-voter a voter, or says what is missing. AddVoter of this
// library makes a voter at once, so everything is asked for before (R5).
func (c *Cluster) planVote(p *plan, members []Member, peer Peer, a answers, since map[string]sighting) {
	k, ok := a.known[peer.ID]
	_, member := find(k.Servers, peer.ID)
	applied := c.Applied()
	stable := time.Since(since[peer.ID].since)
	away := c.missing(members)
	reason := ""
	switch {
	case !ok:
		reason = fmt.Sprintf("it does not answer on its peer port: %v", a.silent[peer.ID])
	case !member || k.Applied == 0:
		reason = "it has not got the log yet"
	case k.Applied+votersLag < applied:
		reason = fmt.Sprintf("it is %d log entries behind", applied-k.Applied)
	case !k.Complete:
		reason = "it does not hold every bundle that a channel names"
	case stable < c.options.pace.stable:
		reason = fmt.Sprintf("it has been alive for %v, %v are asked for", stable.Round(time.Second), c.options.pace.stable)
	case len(away) > 0 && !voteHelps(members, len(away)):
		reason = fmt.Sprintf("voter %s at %s is away, and with one vote more beside it no more servers could be lost: this one votes when that is back or, if that is gone for good, after `eboot cluster remove %s`", away[0].ID, away[0].Address, away[0].ID)
	default:
		p.do(fmt.Sprintf("server %s at %s becomes a voter", peer.ID, peer.Address), addVoter(peer.ID, peer.Address))
		reason = "it is becoming a voter"
	}
	p.learning = append(p.learning, Candidate{ID: peer.ID, Address: peer.Address, Reason: reason})
}

// voteHelps reports whether the cluster can lose one server more when it gets one more
// voter while so many are away. Of three with one away it cannot: four vote then, and the
// loss of another leaves two.
func voteHelps(members []Member, away int) bool {
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
	}
	spare := func(voters int) int { return voters - away - (voters/2 + 1) }
	return spare(voters+1) > spare(voters)
}
