package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"eboot"
)

// Bounds of a look for servers.
const (
	maxTargets    = 256
	parallelJoins = 4
	resolveAgain  = 30 * time.Second // names all of whose addresses are alive
)

// Run joins whoever is known and not alive, at once and then every
// Options.Interval (R9), keeps the peers file, and returns nil when ctx is done or
// after Close. It runs once.
func (g *Gossip) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(g.closing, cancel)
	defer stop()
	g.rejoin.load()
	var goroutines sync.WaitGroup
	goroutines.Go(func() { g.judge(ctx) })
	tick := time.NewTicker(g.options.Interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if !g.left.Load() {
			g.rejoin.look(ctx, &goroutines)
		}
		g.rejoin.save()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	goroutines.Wait()
	g.rejoin.save()
	return nil
}

// rejoin finds servers that are not alive. What is not under mu belongs to Run's goroutine.
type rejoin struct {
	gossip  *Gossip
	started time.Time
	loaded  []peer // from the peers file
	written []byte // what the peers file holds
	failed  bool   // to write it
	slots   chan struct{}

	mu    sync.Mutex
	busy  map[string]bool      // targets being joined
	names map[string]nameState // targets that are names
	said  map[string]error     // seeds that fail: what was logged
}

type nameState struct {
	addresses []netip.AddrPort
	at        time.Time
}

func newRejoin(g *Gossip) *rejoin {
	return &rejoin{
		gossip: g, slots: make(chan struct{}, parallelJoins),
		busy: map[string]bool{}, names: map[string]nameState{}, said: map[string]error{},
	}
}

// look begins to join every target that is not alive and not being joined.
func (r *rejoin) look(ctx context.Context, goroutines *sync.WaitGroup) {
	members := r.gossip.members.all()
	here := r.gossip.reachable(members)
	targets := r.targets(members)
	r.prune(targets)
	for _, target := range targets {
		if !r.begin(target, here) {
			continue
		}
		goroutines.Go(func() {
			defer r.end(target)
			select {
			case r.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-r.slots }()
			r.report(target, r.join(ctx, target, here))
		})
	}
}

// targets returns HOST:PORT of everybody known, the likeliest first.
func (r *rejoin) targets(members []Member) []string {
	o := r.gossip.options
	var list []string
	for _, c := range r.gossip.claims.addresses() {
		list = append(list, c.claimed.String())
	}
	for _, m := range members {
		if !m.Alive {
			list = append(list, m.Address.String())
		}
	}
	list = append(list, o.Seeds...)
	if o.Rejoin != nil {
		list = append(list, o.Rejoin()...)
	}
	for _, p := range r.peers(members) {
		list = append(list, p.Address.String())
	}
	seen := map[string]bool{}
	list = slices.DeleteFunc(list, func(s string) bool { again := seen[s]; seen[s] = true; return again })
	return list[:min(len(list), maxTargets)]
}

// prune forgets names and failures of targets that are none any more.
func (r *rejoin) prune(targets []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.names {
		if !slices.Contains(targets, name) {
			delete(r.names, name)
		}
	}
	for name := range r.said {
		if !slices.Contains(targets, name) {
			delete(r.said, name)
		}
	}
}

// begin reports whether a target is to be joined now.
func (r *rejoin) begin(target string, here *reachable) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[target] {
		return false
	}
	if address, err := netip.ParseAddrPort(target); err == nil {
		if here.has(address) {
			return false
		}
	} else if n, ok := r.names[target]; ok && time.Since(n.at) < resolveAgain && !slices.ContainsFunc(n.addresses, func(a netip.AddrPort) bool { return !here.has(a) }) {
		return false
	}
	r.busy[target] = true
	return true
}

func (r *rejoin) end(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, target)
}

// join resolves a target and joins every address of it that is not alive. The error is
// the last one when none could be joined. It wraps eboot.ErrDenied when somebody
// answered and would not have this server.
func (r *rejoin) join(ctx context.Context, target string, here *reachable) error {
	addresses, err := r.resolve(ctx, target)
	if err != nil {
		return err
	}
	var last error
	joined := false
	for _, address := range addresses {
		if here.has(address) {
			joined = true
			continue
		}
		if err := r.gossip.join(ctx, address); err != nil {
			last = err
		} else {
			joined = true
		}
	}
	if joined {
		return nil
	}
	return last
}

func (r *rejoin) resolve(ctx context.Context, target string) ([]netip.AddrPort, error) {
	if address, err := netip.ParseAddrPort(target); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(address.Addr().Unmap(), address.Port())}, nil
	}
	host, text, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addresses := make([]netip.AddrPort, 0, len(found))
	for _, ip := range found {
		addresses = append(addresses, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	addresses = addresses[:min(len(addresses), maxAlive)]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[target] = nameState{addresses, time.Now()}
	return addresses, nil
}

// report says once what is wrong with a seed, and again when that changes. Other
// addresses may well be of the past.
func (r *rejoin) report(target string, err error) {
	o := r.gossip.options
	if !slices.Contains(o.Seeds, target) || errors.Is(err, errUnderWay) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	said, known := r.said[target]
	kind := eboot.ErrUnreachable
	switch {
	case err == nil:
		delete(r.said, target)
		return
	case errors.Is(err, eboot.ErrDenied):
		kind = eboot.ErrDenied
	}
	if known && said == kind {
		return
	}
	r.said[target] = kind
	if kind == eboot.ErrDenied {
		o.Logger.Warn("a seed answers and does not let this server in: is cluster.name the same on both, and the gossip key?", "seed", target, "error", oneLine(err))
		return
	}
	o.Logger.Info("a seed cannot be reached; trying again", "seed", target, "error", oneLine(err))
}

// errUnderWay: another target has the same address and is being joined.
var errUnderWay = errors.New("is being joined already")

// join exchanges everything known with the server at an address.
func (g *Gossip) join(ctx context.Context, address netip.AddrPort) error {
	to := address.String()
	if !g.transport.watch(ctx, to) {
		return errUnderWay
	}
	// The name is asked for and not used: who answers says which server it is.
	_, err := g.list.Join([]string{"server/" + to})
	if g.transport.reached(to) && err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", eboot.ErrDenied, err)
	}
	return err
}

// peers returns where other servers were last seen.
func (r *rejoin) peers(members []Member) []peer {
	list := make([]peer, 0, len(members)+len(r.loaded))
	known := map[string]bool{}
	alive := false
	for _, m := range members {
		list = append(list, peer{m.ID, m.Address})
		known[m.ID] = true
		alive = alive || m.Alive
	}
	// Those not seen since the start are kept while they may be what this server needs.
	stale := alive && time.Since(r.started) > forget
	for _, p := range r.loaded {
		if !known[p.ID] && !stale && p.ID != r.gossip.id {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b peer) int { return strings.Compare(a.ID, b.ID) })
	return list[:min(len(list), maxPeers)]
}

func (r *rejoin) load() {
	r.started = time.Now()
	o := r.gossip.options
	loaded, err := readPeers(o.PeersFile)
	if err != nil {
		o.Logger.Warn("the addresses of other servers from the last run cannot be used", "error", err)
		return
	}
	r.loaded = loaded
	if loaded != nil {
		r.written, _ = encodePeers(loaded) // they were decoded: they can be encoded
	}
}

// save writes the peers file when it is not what it should be.
func (r *rejoin) save() {
	o := r.gossip.options
	peers := r.peers(r.gossip.members.all())
	if o.PeersFile == "" || len(peers) == 0 && r.written == nil {
		return
	}
	content, err := encodePeers(peers)
	if err == nil && bytes.Equal(content, r.written) {
		return
	}
	if err == nil {
		err = writePeers(o.PeersFile, content)
	}
	switch {
	case err == nil:
		r.written, r.failed = content, false
	case !r.failed:
		r.failed = true
		o.Logger.Warn("the addresses of other servers cannot be kept; trying again", "error", err)
	}
}

// reachable are the addresses that need no joining: of servers that are alive, and
// this one's own.
type reachable struct {
	alive map[netip.AddrPort]bool
	port  uint16     // this server's own
	any   bool       // it listens on every address of this machine
	local []net.Addr // those
}

func (g *Gossip) reachable(members []Member) *reachable {
	h := &reachable{alive: map[netip.AddrPort]bool{g.address: true, netip.AddrPortFrom(g.bound.Addr().Unmap(), g.bound.Port()): true}}
	for _, m := range members {
		if m.Alive {
			h.alive[m.Address] = true
		}
	}
	if h.any = g.bound.Addr().IsUnspecified(); h.any {
		h.port = g.bound.Port()
		h.local, _ = net.InterfaceAddrs() // without it this server may join itself, which does no harm
	}
	return h
}

func (h *reachable) has(a netip.AddrPort) bool {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if h.alive[a] {
		return true
	}
	if !h.any || a.Port() != h.port {
		return false
	}
	return a.Addr().IsLoopback() || slices.ContainsFunc(h.local, func(l net.Addr) bool {
		prefix, ok := l.(*net.IPNet)
		return ok && prefix.IP.Equal(a.Addr().AsSlice())
	})
}

// oneLine makes memberlist's list of errors fit into a line.
func oneLine(err error) string { return strings.Join(strings.Fields(fmt.Sprint(err)), " ") }
