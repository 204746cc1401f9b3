package bootproto

import "time"

// A stock slave waits 500 ms without a new reply before it acts on those it has
// (erl_prim_loader:find_collect/5, EBOOT_REQUEST_DELAY). A reply that is sent
// later than this belongs to the next round; the rest is left to the network.
const latestDelay = 400 * time.Millisecond

// Pace says how one server answers the nth repeat of a search (0: the first
// answer): with which priority byte, and how long after the request.
//
// rank is the server's place in the slave's order of servers and lastRank that of
// the last one; both count from 0. pace is the time between the answers of two
// neighbours in that order.
//
// The delay makes the order real. A stock slave sorts the replies by nothing at
// all and tries the last new one first (erl_prim_loader:keysort/3 compares a
// priority with a tuple), so the server of rank 0 answers last. All servers answer
// within 400 ms: when the order is longer than that, they stand closer.
//
// The priority byte keeps the slave going. A slave asks three rounds unless one
// reply has priority 0, so rank 0 answers 0 at once, and the others move up by
// one in each repeat: a dead favourite costs one more round, not two. A slave
// that could connect to none of the servers that answered ignores the same
// (priority, address, port) for as long as the search lasts
// (erl_prim_loader:find_master/8). So each repeat after the zero has a new byte:
// the step is 17, which is odd, so all 256 bytes come before one comes again.
func Pace(rank, lastRank, n int, pace time.Duration) (priority byte, delay time.Duration) {
	rank = min(max(rank, 0), 255)
	lastRank = min(max(lastRank, rank), 255)
	n = max(n, 0)
	switch {
	case n <= rank:
		priority = byte(rank - n)
	default:
		priority = byte((16*(n-rank) + n) & 0xff)
	}
	if lastRank > 0 {
		pace = min(pace, latestDelay/time.Duration(lastRank))
	}
	return priority, time.Duration(lastRank-rank) * max(pace, 0)
}
