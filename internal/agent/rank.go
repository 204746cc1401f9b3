package agent

import (
	"net/netip"
	"slices"

	"eboot"
	"eboot/config"
)

// ranking orders the servers for a slave.
type ranking struct {
	self  string
	order []string // ids, best first; empty: spread
}

func newRanking(self string, c config.Priority) ranking {
	r := ranking{self: self}
	if c.Mode == config.PriorityOrdered {
		r.order = c.Order
	}
	return r
}

// rank returns the place of this server among the servers that could serve a slave,
// from 0, and the last place. others are the ids of the rest, without this server.
//
// Views of others may differ between servers for a moment, so two servers may have the
// same rank, or none may have rank 0: that costs a slave one more round at most.
func (r ranking) rank(slave netip.Addr, others []string) (rank, last int) {
	own := r.place(r.self)
	score := weight(slave, r.self)
	for _, id := range others {
		switch place := r.place(id); {
		case place < own:
			rank++
		case place == own:
			if w := weight(slave, id); w > score || w == score && id < r.self {
				rank++
			}
		}
	}
	return rank, len(others)
}

// place is a server's place in the configured order; those that are not in it share
// the last one, and are spread.
func (r ranking) place(id string) int {
	if i := slices.Index(r.order, id); i >= 0 {
		return i
	}
	return len(r.order)
}

// weight is the highest random weight of rendezvous hashing: each slave has an order of
// its own, and when a server goes only its slaves move.
func weight(slave netip.Addr, server string) uint64 {
	return eboot.Draw(eboot.DrawSeed(server), slave)
}
