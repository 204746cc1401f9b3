package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"eboot"
)

const (
	askTimeout = 2 * time.Second
	maxPeers   = 64 // that are asked at a time
)

// Peer is another server as gossip tells it.
type Peer struct {
	ID      string
	Address string // host:port of its peer port
	Expect  int    // its cluster.expect
}

// Knowledge is what a server answers to the question which cluster it knows. The
// answer of Knowledge of Cluster lacks Cluster and Complete, which this package does not know.
type Knowledge struct {
	ID        string
	Address   string   // of its peer port, by its own word; "": it is of a version that does not say
	Cluster   string   // UUID, also of one whose log the server has lost; "": none
	Servers   []Member // of its Raft configuration; empty: it belongs to no cluster (R4: "has no raft peers")
	Leader    string   // id, by what it knows
	LastIndex uint64
	Applied   uint64
	Complete  bool // it holds every bundle that a channel names: fit to vote

	// Founding is what a server without a configuration offers to found, or has
	// promised to. It is opaque to everybody but Form, and handed on as it is.
	Founding string
	Waiting  []Candidate // of a leader: the servers that it does not let in, and why
}

// Directory tells of the other servers. It suggests: what is said here is never
// enough to change who votes.
type Directory interface {
	// Peers are alive now and of the same cluster name, by id; this server is not
	// among them. It is called often and returns at once.
	Peers() []Peer
	// Changed is closed at the next change of Peers; to miss nothing, ask for it before Peers.
	Changed() <-chan struct{}
	// Ask returns what a peer knows; any error: it did not answer.
	Ask(ctx context.Context, p Peer) (Knowledge, error)
}

// Candidate is a server that has not got what it is waiting for.
type Candidate struct {
	ID      string
	Address string
	Reason  string // one sentence, with the way out where there is one
	Passing bool   // it may be over by itself in a moment
}

// book is the newest word of the Directory.
type book struct {
	directory Directory // nil: alone
	opening   sync.Mutex
	peers     atomic.Pointer[[]Peer]
	changed   broadcast
}

// read keeps the book until life ends.
func (b *book) read(life context.Context) {
	for {
		changed := b.directory.Changed()
		b.open()
		select {
		case <-changed:
		case <-life.Done():
			return
		}
	}
}

// open takes over what the Directory says.
func (b *book) open() {
	b.opening.Lock()
	defer b.opening.Unlock()
	peers := slices.DeleteFunc(slices.Clone(b.directory.Peers()), func(p Peer) bool { return p.ID == "" || p.Address == "" })
	b.peers.Store(&peers)
	b.changed.notify()
}

// list returns the peers that are alive.
func (b *book) list() []Peer {
	if peers := b.peers.Load(); peers != nil {
		return *peers
	}
	return nil
}

func (b *book) peer(id string) (Peer, bool) {
	peers := b.list()
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.ID == id })
	if i < 0 {
		return Peer{}, false
	}
	return peers[i], true
}

// answers are those who answered, by id; silent says why the others did not.
type answers struct {
	known  map[string]Knowledge
	silent map[string]error
}

// ask asks all of them at the same time; of too many the rest counts as silent.
func (c *Cluster) ask(ctx context.Context, peers []Peer) answers {
	a := answers{known: map[string]Knowledge{}, silent: map[string]error{}}
	for _, p := range peers[min(len(peers), maxPeers):] {
		a.silent[p.ID] = fmt.Errorf("not asked: %d servers are seen: %w", len(peers), eboot.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, p := range peers[:min(len(peers), maxPeers)] {
		group.Go(func() {
			k, err := c.book.directory.Ask(ctx, p)
			switch {
			case err != nil:
			case k.ID != p.ID:
				err = fmt.Errorf("server %s answers at %s: %w", k.ID, p.Address, eboot.ErrConflict)
			case k.Address != "" && k.Address != p.Address:
				// It may have been reached in another way than by this address, or through
				// somebody who passes on what is said. Only its own word says where it is.
				err = fmt.Errorf("gossip says that it is at %s, and it says %s: %w", p.Address, k.Address, eboot.ErrConflict)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				a.silent[p.ID] = err
				return
			}
			a.known[p.ID] = k
		})
	}
	group.Wait()
	return a
}

// Knowledge is what this server answers to others, but for Cluster and Complete.
func (c *Cluster) Knowledge() Knowledge {
	s := c.Status()
	return Knowledge{
		ID: c.options.ServerID, Address: string(c.transport.LocalAddr()), Servers: s.Servers, Leader: s.Leader, LastIndex: s.LastIndex, Applied: s.AppliedIndex,
		Founding: c.offer().encode(), Waiting: c.Waiting(),
	}
}

func find(servers []Member, id string) (Member, bool) {
	i := slices.IndexFunc(servers, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return servers[i], true
}

// overlap reports whether two configurations have a server in common, other than
// except: ids are unique, so they are of one cluster.
func overlap(a, b []Member, except string) bool {
	return slices.ContainsFunc(a, func(m Member) bool {
		_, ok := find(b, m.ID)
		return ok && m.ID != except
	})
}

// names lists servers in a message.
func names(servers []Member) string {
	if len(servers) == 0 {
		return "none"
	}
	var texts []string
	for _, m := range servers {
		texts = append(texts, m.ID+" at "+m.Address)
	}
	return strings.Join(texts, ", ")
}

func peerNames(peers []Peer) string {
	var servers []Member
	for _, p := range peers {
		servers = append(servers, Member{ID: p.ID, Address: p.Address})
	}
	return names(servers)
}
