package agent

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"eboot/cluster"
	"eboot/internal/peerport"
)

const (
	// returnPatience is how long Connect waits for a server that cannot be reached. Raft
	// pauses longer after each failure, up to ten seconds (replication.go, backoff), so one
	// that is away must not make failures pile up: when it is back it would be left without
	// the log for as long.
	returnPatience = time.Minute
	redialEvery    = 500 * time.Millisecond
	redialTimeout  = 3 * time.Second
	// maxWaiting is how many connections wait for one server. A further one takes the place
	// of the oldest: votes and replication of a term that is over need not be waited for.
	maxWaiting = 4
)

// raftTransport carries Raft over the peer port.
type raftTransport struct {
	net.Listener
	peers *peers
	life  context.Context // ends with Close
	end   context.CancelFunc

	mu      sync.Mutex
	waiting map[string][]*waiter // oldest first, by server
}

// waiter is one Connect under way.
type waiter struct{ giveUp context.CancelFunc }

var _ cluster.Transport = (*raftTransport)(nil)

func newRaftTransport(p *peers) *raftTransport {
	t := &raftTransport{Listener: p.port.Listener(peerport.Raft), peers: p, waiting: map[string][]*waiter{}}
	t.life, t.end = context.WithCancel(context.Background())
	return t
}

// Addr is the address that the others see.
func (t *raftTransport) Addr() net.Addr { return peerAddress(t.peers.address) }

// Close ends every Connect as well: Raft waits for them when it stops.
func (t *raftTransport) Close() error {
	t.end()
	return t.Listener.Close()
}

type peerAddress string

func (peerAddress) Network() string  { return "tcp" }
func (a peerAddress) String() string { return string(a) }

// Connect connects to a server, which must have this id unless it is empty. It tries
// again for returnPatience, where gossip and the cluster have it by then.
func (t *raftTransport) Connect(address, id string, timeout time.Duration) (net.Conn, error) {
	if id == "" { // nothing tells when it is back
		return t.peers.reachAt(t.life, address, id, peerport.Raft, min(timeout, redialTimeout))
	}
	ctx, leave := t.enter(id)
	defer leave()
	for {
		changed := t.peers.gossip.Changed()
		conn, err := t.peers.reach(ctx, id, peerport.Raft, redialTimeout, t.places(address, id))
		if err == nil {
			return conn, nil
		}
		select {
		case <-changed:
		case <-time.After(redialEvery):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// places is where a server may be; address is what Raft was told before.
func (t *raftTransport) places(address, id string) []string {
	places := t.peers.places(id)
	if !slices.Contains(places, address) {
		places = append(places, address)
	}
	return places
}

func (t *raftTransport) enter(id string) (ctx context.Context, leave func()) {
	ctx, cancel := context.WithTimeout(t.life, returnPatience)
	w := &waiter{giveUp: cancel}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[id] = append(t.waiting[id], w)
	if list := t.waiting[id]; len(list) > maxWaiting {
		list[0].giveUp()
		t.waiting[id] = list[1:]
	}
	return ctx, func() {
		cancel()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting[id] = slices.DeleteFunc(t.waiting[id], func(other *waiter) bool { return other == w })
		if len(t.waiting[id]) == 0 {
			delete(t.waiting, id)
		}
	}
}
