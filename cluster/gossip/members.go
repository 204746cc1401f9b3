package gossip

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"eboot"
)

// Bounds of what is remembered.
const (
	maxAlive = 64
	maxLost  = 64
	forget   = 24 * time.Hour
)

// Member is another server as gossip tells it.
type Member struct {
	Meta
	Address netip.AddrPort // its gossip address
	Alive   bool
	Left    bool      // not alive, and it said so before: it was stopped
	Since   time.Time // when it became alive, or was found not to be
}

// members is what is known of other servers. memberlist tells it, with its own lock
// held: nothing here calls memberlist.
type members struct {
	self   string
	wire   int
	logger hclog.Logger

	mu      sync.Mutex
	byID    map[string]*memberState
	changed chan struct{}
}

type memberState struct {
	Member
	leaving bool // it said that it will leave
}

func newMembers(self Meta, logger hclog.Logger) *members {
	return &members{self: self.ID, wire: self.Wire, logger: logger, byID: map[string]*memberState{}, changed: make(chan struct{})}
}

// all returns the members by id.
func (m *members) all() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire(time.Now())
	list := make([]Member, 0, len(m.byID))
	for _, s := range m.byID {
		list = append(list, s.Member)
	}
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// expire forgets those that are not alive after a day, and the oldest when there are
// too many.
func (m *members) expire(now time.Time) {
	var lost []*memberState
	for id, s := range m.byID {
		if s.Alive {
			continue
		}
		if now.Sub(s.Since) >= forget {
			delete(m.byID, id)
			continue
		}
		lost = append(lost, s)
	}
	if len(lost) <= maxLost {
		return
	}
	slices.SortFunc(lost, func(a, b *memberState) int { return a.Since.Compare(b.Since) })
	for _, s := range lost[:len(lost)-maxLost] {
		delete(m.byID, s.ID)
	}
}

func (m *members) next() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *members) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// alive enters what a server says of itself.
func (m *members) alive(node *memberlist.Node) {
	if node.Name == m.self {
		return
	}
	meta, leaving, err := decodeMeta(node.Meta)
	if err != nil {
		return // acceptable has seen it: memberlist does not come here with it
	}
	address := nodeAddress(node)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[meta.ID]
	if s == nil {
		s = &memberState{}
		m.byID[meta.ID] = s
	}
	if !s.Alive {
		s.Alive, s.Left, s.Since = true, false, time.Now()
		m.logger.Info("server is alive", "id", meta.ID, "gossip", address, "peer", meta.Peer, "version", meta.Version)
	}
	s.Meta, s.Address, s.leaving = meta, address, leaving
	m.notify()
}

// dead enters that a server left or was given up.
func (m *members) dead(node *memberlist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.byID[node.Name]
	if s == nil || !s.Alive {
		return
	}
	s.Alive, s.Left, s.Since = false, s.leaving, time.Now()
	if s.Left {
		m.logger.Info("server has left", "id", s.ID, "gossip", s.Address)
	} else {
		m.logger.Warn("server is gone: it does not answer", "id", s.ID, "gossip", s.Address)
	}
	m.expire(s.Since)
	m.notify()
}

// acceptable says why a server is not let in.
func (m *members) acceptable(node *memberlist.Node) error {
	if node.Name == m.self {
		return nil // memberlist refutes what others say of this server
	}
	meta, _, err := decodeMeta(node.Meta)
	switch {
	case err != nil:
		return err
	case meta.ID != node.Name:
		return fmt.Errorf("it calls itself %q: %w", meta.ID, eboot.ErrInvalid)
	case meta.Wire != m.wire:
		return fmt.Errorf("server %s speaks version %d of the traffic between servers, this one %d: %w", meta.ID, meta.Wire, m.wire, eboot.ErrConflict)
	case !nodeAddress(node).IsValid():
		return fmt.Errorf("it has no address: %w", eboot.ErrInvalid)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for id, s := range m.byID {
		if s.Alive && id != meta.ID {
			n++
		}
	}
	if n >= maxAlive {
		return fmt.Errorf("%d servers are alive, as many as a cluster may have: %w", n, eboot.ErrTooLarge)
	}
	return nil
}

func nodeAddress(node *memberlist.Node) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(node.Addr)
	if !ip.IsValid() || node.Port == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), node.Port)
}

// The delegates of memberlist.
type delegate struct{ *Gossip }

var _ interface {
	memberlist.Delegate
	memberlist.EventDelegate
	memberlist.AliveDelegate
	memberlist.MergeDelegate
	memberlist.ConflictDelegate
} = delegate{}

func (d delegate) NodeMeta(int) []byte { return *d.encoded.Load() }

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

func (d delegate) NotifyJoin(n *memberlist.Node)        { d.members.alive(n) }
func (d delegate) NotifyUpdate(n *memberlist.Node)      { d.members.alive(n) }
func (d delegate) NotifyLeave(n *memberlist.Node)       { d.members.dead(n) }
func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.members.acceptable(n) }

// NotifyMerge refuses to join a group of which nobody is acceptable, so that the one
// who joins is told why. A group with some who are is joined; NotifyAlive sorts out
// the others.
func (d delegate) NotifyMerge(nodes []*memberlist.Node) error {
	var refused error
	for _, n := range nodes {
		if n.Name == d.members.self || n.State != memberlist.StateAlive {
			continue
		}
		err := d.members.acceptable(n)
		if err == nil {
			return nil
		}
		if refused == nil {
			refused = err
		}
	}
	return refused
}

// NotifyConflict tells that the id of existing was announced at the address of other.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	select {
	case d.conflicts <- conflict{id: existing.Name, known: nodeAddress(existing), claimed: nodeAddress(other)}:
	default: // it will be announced again
	}
}
