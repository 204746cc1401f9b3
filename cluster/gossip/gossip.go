package gossip

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"eboot"
)

// DefaultLeave is how long Leave may take when it is given no time.
const DefaultLeave = 2 * time.Second

// Gossip is this server among the others.
type Gossip struct {
	options   Options
	id        string
	address   netip.AddrPort // advertised
	bound     netip.AddrPort
	list      *memberlist.Memberlist
	transport *transport
	members   *members
	conflicts chan conflict
	claims    *claims
	rejoin    *rejoin

	encoded atomic.Pointer[[]byte] // own Meta
	left    atomic.Bool
	closing context.Context
	cancel  context.CancelFunc

	mu   sync.Mutex // one change of the own Meta, or leave, or close, at a time
	meta Meta
}

// Open binds the sockets and answers others from then on. It joins nobody: Run does.
// Errors wrap eboot.ErrInvalid when the options are at fault.
func Open(o Options) (*Gossip, error) {
	return open(o, func(t *transport) memberlist.NodeAwareTransport { return t })
}

// open is Open with something between memberlist and the network.
func open(o Options, between func(*transport) memberlist.NodeAwareTransport) (_ *Gossip, err error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	encoded, err := encodeMeta(o.Meta, false)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	ring, err := newRing(o.Keys)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	g := &Gossip{options: o, id: o.Meta.ID, meta: o.Meta, members: newMembers(o.Meta, o.Logger), conflicts: make(chan conflict, maxConflicts), claims: newClaims()}
	g.encoded.Store(&encoded)
	g.rejoin = newRejoin(g)
	g.closing, g.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			g.cancel()
		}
	}()

	c := o.config()
	c.Keyring = ring
	c.Logger = newLogger(o.Logger)
	c.Delegate, c.Events, c.Alive, c.Merge, c.Conflict = delegate{g}, delegate{g}, delegate{g}, delegate{g}, delegate{g}
	if c.AdvertiseAddr, c.AdvertisePort, err = o.advertised(); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger})
	if err != nil {
		return nil, fmt.Errorf("open gossip on %s: %w", o.Bind, err)
	}
	g.transport = newTransport(inner, ring, c.Logger)
	c.BindPort = inner.GetAutoBindPort()
	if c.AdvertisePort == 0 {
		c.AdvertisePort = c.BindPort
	}
	c.Transport = between(g.transport)
	if g.list, err = memberlist.Create(c); err != nil {
		_ = g.transport.Shutdown() // it never fails
		return nil, fmt.Errorf("open gossip on %s (is gossip.advertise needed?): %w", o.Bind, err)
	}
	g.address, g.bound = nodeAddress(g.list.LocalNode()), netip.AddrPortFrom(o.Bind.Addr(), uint16(c.BindPort))
	return g, nil
}

// Address is the gossip address that this server tells others.
func (g *Gossip) Address() netip.AddrPort { return g.address }

// Members returns the other servers by id, those that are not alive included.
func (g *Gossip) Members() []Member { return g.members.all() }

// Changed returns a channel that is closed at the next change of Members. Ask for it
// before Members.
func (g *Gossip) Changed() <-chan struct{} { return g.members.next() }

// HealthScore is 0 when this server meets the times that gossip needs. It rises when
// it does not, for want of processor time or network, and then gives others more time
// before it gives them up.
func (g *Gossip) HealthScore() int { return g.list.GetHealthScore() }

// Update changes what this server says of itself and tells the others, within a
// second when all is well. It does not wait for that. The id stays; a change that
// cannot be told is logged and dropped.
func (g *Gossip) Update(change func(*Meta)) {
	if g.left.Load() {
		return // nobody listens any more
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left.Load() || g.closing.Err() != nil {
		return
	}
	meta := g.meta
	change(&meta)
	meta.ID = g.id
	if err := g.announce(meta, false); err != nil {
		g.options.Logger.Error("what this server says of itself stays as it was", "error", err)
	}
}

// announce has memberlist gossip a Meta of this server.
func (g *Gossip) announce(meta Meta, leaving bool) error {
	encoded, err := encodeMeta(meta, leaving)
	if err != nil {
		return err
	}
	g.meta = meta
	g.encoded.Store(&encoded)
	_ = g.list.UpdateNode(time.Nanosecond) // it can only fail to wait: the news is queued
	return nil
}

// tellAll exchanges everything known with every server that is alive, over TCP:
// memberlist does not tell its users who left and who died, so the others must have
// heard of the leaving before the end, and datagrams may be lost.
func (g *Gossip) tellAll(limit time.Duration) {
	ctx, cancel := context.WithTimeout(g.closing, limit)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range g.members.all() {
		if m.Alive {
			all.Go(func() { _ = g.join(ctx, m.Address) }) // who cannot be told finds out
		}
	}
	all.Wait()
}

// Leave tells the others that this server stops on purpose, and waits until it was
// sent, at most for the time given; 0: DefaultLeave. After it this server joins nobody
// any more. An error wraps eboot.ErrTimeout: the others will find out by themselves.
func (g *Gossip) Leave(timeout time.Duration) error {
	if timeout <= 0 {
		timeout = DefaultLeave
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing.Err() != nil || g.left.Swap(true) {
		return nil
	}
	start := time.Now()
	if err := g.announce(g.meta, true); err != nil {
		g.options.Logger.Error("leaving without saying so", "error", err)
	}
	g.tellAll(timeout / 2)
	if err := g.list.Leave(max(timeout-time.Since(start), time.Millisecond)); err != nil {
		return fmt.Errorf("leave: %w: %w", eboot.ErrTimeout, err)
	}
	return nil
}

// Close closes the sockets and ends Run. To others this server is silent from now on.
// It may be called again.
func (g *Gossip) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancel()
	return g.list.Shutdown()
}
