package gossip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"eboot"
)

// How long a claim to an id is remembered after it was last heard: the time that
// the claimant is joined again and again until it is believed.
const claimTime = time.Minute

const maxConflicts = 16

// pings per address before it counts as silent: datagrams are lost.
const conflictPings = 3

// conflict is an id that is known at one address and was announced at another.
type conflict struct {
	id             string
	known, claimed netip.AddrPort
}

// claims are the conflicts of the last minute, found out to be either a server that
// moved or two that share an id.
type claims struct {
	mu    sync.Mutex
	moved map[netip.AddrPort]claim // by the address that was announced and answers
	twice map[string]claim         // by id
}

type claim struct {
	conflict
	at time.Time
}

func newClaims() *claims {
	return &claims{moved: map[netip.AddrPort]claim{}, twice: map[string]claim{}}
}

// judge settles conflicts one after another.
func (g *Gossip) judge(ctx context.Context) {
	for {
		select {
		case c := <-g.conflicts:
			if c.known.IsValid() && c.claimed.IsValid() && !g.claims.recent(c) {
				g.settle(ctx, c)
			}
		case <-ctx.Done():
			return
		}
	}
}

// settle asks both addresses for the server of that id. memberlist answers a ping
// only when it names the one who gets it.
func (g *Gossip) settle(ctx context.Context, c conflict) {
	claimed := g.answers(ctx, c.id, c.claimed)
	known := c.id == g.id || g.answers(ctx, c.id, c.known)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	g.claims.mu.Lock()
	defer g.claims.mu.Unlock()
	g.claims.expire(now)
	switch {
	case claimed && known:
		if _, said := g.claims.twice[c.id]; !said {
			g.options.Logger.Error("two processes have the same server id: stop one of them, or give it an id of its own with `eboot cluster reset`",
				"id", c.id, "at", c.known, "and", c.claimed)
		}
		if len(g.claims.twice) < maxConflicts {
			g.claims.twice[c.id] = claim{c, now}
		}
	case claimed && len(g.claims.moved) < maxConflicts:
		if _, said := g.claims.moved[c.claimed]; !said {
			g.options.Logger.Info("server has a new address; it is believed when the old one has been silent for some seconds", "id", c.id, "old", c.known, "new", c.claimed)
		}
		g.claims.moved[c.claimed] = claim{c, now}
	default:
		// Old news of an address that nobody is at.
	}
}

func (g *Gossip) answers(ctx context.Context, id string, at netip.AddrPort) bool {
	for range conflictPings {
		if ctx.Err() != nil {
			return false
		}
		if _, err := g.list.Ping(id, net.UDPAddrFromAddrPort(at)); err == nil {
			return true
		}
	}
	return false
}

func (c *claims) expire(now time.Time) {
	for address, claim := range c.moved {
		if now.Sub(claim.at) > claimTime {
			delete(c.moved, address)
		}
	}
	for id, claim := range c.twice {
		if now.Sub(claim.at) > claimTime {
			delete(c.twice, id)
		}
	}
}

// recent reports whether a conflict was settled a moment ago: it is announced many
// times.
func (c *claims) recent(of conflict) bool {
	const moment = 5 * time.Second
	c.mu.Lock()
	defer c.mu.Unlock()
	twice, moved := c.twice[of.id], c.moved[of.claimed]
	return twice.conflict == of && time.Since(twice.at) < moment || moved.conflict == of && time.Since(moved.at) < moment
}

// addresses returns where servers that have moved were announced.
func (c *claims) addresses() []claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(time.Now())
	list := make([]claim, 0, len(c.moved))
	for _, claim := range c.moved {
		list = append(list, claim)
	}
	return list
}

// Problem says in one sentence what is wrong with the group and needs a person, or
// nil: two processes have had the same server id within the last minute. It wraps
// eboot.ErrConflict.
func (g *Gossip) Problem() error {
	c := g.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(time.Now())
	var first *claim
	for _, claim := range c.twice {
		if first == nil || claim.id == g.id || first.id != g.id && claim.id < first.id {
			first = &claim
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("two processes have the server id %s, at %s and %s: stop one of them, or give it an id of its own with `eboot cluster reset`: %w",
		first.id, first.known, first.claimed, eboot.ErrConflict)
}
