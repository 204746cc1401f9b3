package peerport

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// How often one address is mentioned for one reason, and how many such pairs are
// remembered: who can connect must not be able to fill the log or the memory.
const (
	refusalPause = time.Minute
	maxRefusals  = 256
	maxReason    = 500 // bytes of it in the log
)

// refusals logs why connections were refused, a line a minute for each address and
// kind of reason.
type refusals struct {
	logger hclog.Logger
	mu     sync.Mutex
	logged map[refusalKey]time.Time
	unsaid int // since the last line
}

type refusalKey struct {
	kind string
	from netip.Addr
}

func newRefusals(logger hclog.Logger) *refusals {
	return &refusals{logger: logger, logged: map[refusalKey]time.Time{}}
}

func (r *refusals) log(kind string, from netip.Addr, reason string) {
	unsaid, ok := r.allow(refusalKey{kind, from}, time.Now())
	if !ok {
		return
	}
	if len(reason) > maxReason { // a certificate may name its authority at length
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "..."
	}
	r.logger.Warn("refused a connection to the peer port", "from", from, "reason", reason, "not_logged_before", unsaid)
}

// allow reports whether to log, and how many were not logged since the last time.
func (r *refusals) allow(key refusalKey, now time.Time) (unsaid int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.logged[key]
	if known && now.Sub(last) < refusalPause {
		r.unsaid++
		return 0, false
	}
	if !known && len(r.logged) >= maxRefusals {
		for k, at := range r.logged {
			if now.Sub(at) >= refusalPause {
				delete(r.logged, k)
			}
		}
		if len(r.logged) >= maxRefusals {
			r.unsaid++
			return 0, false
		}
	}
	r.logged[key] = now
	unsaid, r.unsaid = r.unsaid, 0
	return unsaid, true
}
