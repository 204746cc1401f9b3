package bootproto

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// At most this many refusals are logged in one period, one for each address and
// reason, and so many of one address: one that always finds another reason leaves room for
// others. Discovery and the file server count for themselves, so together they write
// at most twice as many lines a minute, and two that say how many were not written.
const (
	refusalLines       = 40
	refusalLinesOfEach = 4
	refusalPeriod      = time.Minute
)

// refusals logs who was refused and why, and cannot be made to flood the log or
// the memory: it remembers only what it logged in this period.
type refusals struct {
	logger hclog.Logger

	mu         sync.Mutex
	began      time.Time
	logged     map[refusal]struct{}
	lines      map[netip.Addr]int
	suppressed uint64
}

type refusal struct {
	slave  netip.Addr
	reason string
}

// log writes a line about a refusal, or counts it.
func (r *refusals) log(now time.Time, slave netip.Addr, reason, message, erts string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.began) >= refusalPeriod {
		r.flush()
		r.began, r.logged, r.lines = now, make(map[refusal]struct{}), make(map[netip.Addr]int)
	}
	key := refusal{slave, reason}
	_, again := r.logged[key]
	if again || len(r.logged) >= refusalLines || r.lines[slave] >= refusalLinesOfEach {
		r.suppressed++
		return
	}
	r.logged[key] = struct{}{}
	r.lines[slave]++
	r.logger.Warn(message, "slave", slave, "erts", oneLine(erts), "reason", oneLine(reason))
}

// close writes what is still to be said.
func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flush()
}

func (r *refusals) flush() {
	if r.suppressed > 0 {
		r.logger.Warn("more refusals, not logged one by one", "count", r.suppressed)
		r.suppressed = 0
	}
}
