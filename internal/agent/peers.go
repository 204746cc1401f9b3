package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/cluster"
	"eboot/cluster/gossip"
	"eboot/filestore/mirror"
	"eboot/internal/peerport"
	"eboot/internal/peerrpc"
)

// peers are the other servers: who they are, by gossip, and how they are reached.
// A server that is alone has none, and every list is empty.
type peers struct {
	self    string // id of this server
	dialer  peerport.Dialer
	address string         // of this server's peer port, as the others see it
	gossip  *gossip.Gossip // nil: this server is alone
	port    *peerport.Port
	rpc     *peerrpc.Client
	blobs   *http.Client
	logger  hclog.Logger

	view   atomic.Pointer[map[string]gossip.Member] // by id, as of the latest refresh
	mu     sync.Mutex
	viewed chan struct{}                     // closed by the next refresh
	listed atomic.Pointer[map[string]string] // addresses by id, as the Raft configuration has them

	hosts   atomic.Pointer[map[netip.Addr]bool]     // of the servers of the view
	probing atomic.Pointer[map[netip.AddrPort]bool] // where this server asks for boot servers from, just now
}

var _ cluster.Directory = (*peers)(nil)

func newPeers(dialer peerport.Dialer, logger hclog.Logger) *peers {
	p := &peers{self: dialer.Server, dialer: dialer, logger: logger, viewed: make(chan struct{})}
	p.view.Store(&map[string]gossip.Member{})
	p.listed.Store(&map[string]string{})
	p.hosts.Store(&map[netip.Addr]bool{})
	p.probing.Store(&map[netip.AddrPort]bool{})
	p.rpc = peerrpc.NewClient(func(ctx context.Context, server string) (net.Conn, error) {
		return p.dial(ctx, server, peerport.RPC)
	})
	p.blobs = &http.Client{Transport: peerrpc.NewTransport(func(ctx context.Context, server string) (net.Conn, error) {
		return p.dial(ctx, server, peerport.Blob)
	})}
	return p
}

func (p *peers) close() {
	p.rpc.Close()
	p.blobs.CloseIdleConnections()
}

// refresh takes over what gossip says now.
func (p *peers) refresh() {
	view := map[string]gossip.Member{}
	for _, m := range p.gossip.Members() {
		view[m.ID] = m
	}
	p.view.Store(&view)
	hosts := map[netip.Addr]bool{}
	addHosts(hosts, nil, slices.Collect(maps.Values(view)))
	p.hosts.Store(&hosts)
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.viewed)
	p.viewed = make(chan struct{})
}

// refreshed is closed by the next refresh: what is made of the view follows it, not gossip,
// which is ahead of it.
func (p *peers) refreshed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.viewed
}

// list takes over the addresses of the Raft configuration, for servers that gossip
// does not know at the moment.
func (p *peers) list(servers []cluster.Member) {
	addresses := make(map[string]string, len(servers))
	for _, s := range servers {
		addresses[s.ID] = s.Address
	}
	p.listed.Store(&addresses)
}

func (p *peers) member(id string) (gossip.Member, bool) {
	m, ok := (*p.view.Load())[id]
	return m, ok
}

// heard is what gossip says of a server at this moment, which is newer than the view.
func (p *peers) heard(id string) (gossip.Member, bool) {
	if p.gossip != nil {
		for _, m := range p.gossip.Members() {
			if m.ID == id {
				return m, true
			}
		}
	}
	return gossip.Member{}, false
}

// addHosts enters the addresses that members have, and returns the names, of which only a
// resolver knows the addresses.
func addHosts(hosts map[netip.Addr]bool, names []string, members []gossip.Member) []string {
	for _, m := range members {
		for _, a := range m.Boot {
			hosts[a.Unmap()] = true
		}
		if m.Address.IsValid() {
			hosts[m.Address.Addr().Unmap()] = true
		}
		names = addHost(hosts, names, m.Peer)
	}
	return names
}

// addHost enters the address of HOST:PORT, or appends the name.
func addHost(hosts map[netip.Addr]bool, names []string, place string) []string {
	host, _, err := net.SplitHostPort(place)
	if err != nil {
		return names
	}
	if a, err := netip.ParseAddr(host); err == nil {
		hosts[a.Unmap()] = true
		return names
	}
	return append(names, host)
}

// neighbours are where the servers are that this one has heard of: their addresses, and the names of
// those of which only the name is known. By gossip as of this moment, by the configuration of
// Raft, and by seeds, which may be about to join.
func (p *peers) neighbours(seeds []string) (hosts map[netip.Addr]bool, names []string) {
	hosts = map[netip.Addr]bool{}
	if p.gossip != nil {
		names = addHosts(hosts, names, p.gossip.Members())
	}
	for _, place := range *p.listed.Load() {
		names = addHost(hosts, names, place)
	}
	for _, place := range seeds {
		names = addHost(hosts, names, place)
	}
	return hosts, names
}

// looks reports whether a query is this server's own, which looks for strangers.
func (p *peers) looks(from netip.AddrPort) bool { return (*p.probing.Load())[from] }

// serves reports whether another server of the cluster has the address, as far as gossip says:
// what asks from there is likely to look for strangers. On a loopback address nobody does.
func (p *peers) serves(address netip.Addr) bool {
	return !address.IsLoopback() && (*p.hosts.Load())[address]
}

// alive reports whether gossip hears from a server, which may be this one.
func (p *peers) alive(id string) bool {
	m, ok := p.member(id)
	return id == p.self || ok && m.Alive
}

// serving reports whether gossip says that a server answers slaves.
func (p *peers) serving(id string) bool {
	m, ok := p.member(id)
	return ok && m.Alive && !m.Draining
}

// living returns the ids of the others that are alive.
func (p *peers) living() []string {
	var ids []string
	for id, m := range *p.view.Load() {
		if m.Alive {
			ids = append(ids, id)
		}
	}
	return ids
}

// dialPatience is how long a connection to another server may take to open.
const dialPatience = time.Second

// dial connects to a server by its id: its address may change, its id does not.
func (p *peers) dial(ctx context.Context, id, protocol string) (net.Conn, error) {
	return p.reach(ctx, id, protocol, dialPatience, p.places(id))
}

// places is where a server may be: where gossip sees it, which knows first that it moved,
// and where the cluster has it. Who has the key of gossip can say of a server what he
// likes; where the cluster has it, it was met.
func (p *peers) places(id string) []string {
	var places []string
	if m, ok := p.heard(id); ok { // who has just heard of a server asks it at once
		places = append(places, m.Peer)
	}
	if listed := (*p.listed.Load())[id]; listed != "" && !slices.Contains(places, listed) {
		places = append(places, listed)
	}
	return places
}

// reach tries the places one after another, with an equal share of the time for each.
func (p *peers) reach(ctx context.Context, id, protocol string, limit time.Duration, places []string) (net.Conn, error) {
	var failed error
	for _, place := range places {
		conn, err := p.reachAt(ctx, place, id, protocol, limit/time.Duration(len(places)))
		if err == nil {
			return conn, nil
		}
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		if failed = err; ctx.Err() != nil {
			break
		}
	}
	if failed == nil {
		failed = fmt.Errorf("server %s: its address is not known: %w", id, eboot.ErrUnreachable)
	}
	return nil, failed
}

func (p *peers) reachAt(ctx context.Context, place, id, protocol string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.dialer.Dial(ctx, place, protocol, id)
}

// Peers returns the others of this cluster name that are alive, by id.
func (p *peers) Peers() []cluster.Peer {
	var found []cluster.Peer
	for _, m := range p.gossip.Members() {
		if m.Alive {
			found = append(found, cluster.Peer{ID: m.ID, Address: m.Peer, Expect: m.Expect})
		}
	}
	return found
}

// Changed is closed at the next change of Peers.
func (p *peers) Changed() <-chan struct{} { return p.gossip.Changed() }

// Ask returns what a peer knows of the cluster.
func (p *peers) Ask(ctx context.Context, peer cluster.Peer) (cluster.Knowledge, error) {
	info, err := p.rpc.Info(ctx, peer.ID)
	if err != nil {
		return cluster.Knowledge{}, err
	}
	known := cluster.Knowledge{
		ID: info.ID, Address: info.Address, Cluster: info.Cluster, Leader: info.Leader,
		LastIndex: info.LastIndex, Applied: info.AppliedIndex, Complete: info.Complete, Founding: info.Founding,
	}
	for _, w := range info.Waiting {
		known.Waiting = append(known.Waiting, cluster.Candidate(w))
	}
	for _, s := range info.Servers {
		known.Servers = append(known.Servers, cluster.Member{ID: s.ID, Address: s.Address, Voter: s.Voter})
	}
	return known, nil
}

// sources are the others that a missing blob may be had from.
func (p *peers) sources() []mirror.Peer {
	var sources []mirror.Peer
	for _, id := range p.living() {
		sources = append(sources, mirror.Peer{ID: id, Client: p.blobs, URL: "http://" + id})
	}
	return sources
}
