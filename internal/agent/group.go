package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-sockaddr"

	"eboot"
	"eboot/api"
	"eboot/cluster"
	"eboot/cluster/gossip"
	"eboot/filestore/mirror"
	"eboot/fsm"
	"eboot/internal/peerport"
	"eboot/internal/peerrpc"
)

// wireVersion is of everything that servers say to each other; servers of different
// ones do not join each other.
const wireVersion = 1

// group is this server's part among the others.
type group struct {
	peers    *peers
	copies   *copies
	exchange *exchange
	secrets  secrets
	leaving  leavingSet
	told     []netip.Addr          // where this server answers slaves, as the others know; followPeers only, once it runs
	outcast  atomic.Pointer[error] // why this server has no place in the cluster; nil: it has, or may have
}

// leavingSet are servers that are being removed at this moment.
type leavingSet struct {
	mu  sync.Mutex
	ids map[string]int
}

func (l *leavingSet) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = map[string]int{}
	}
	l.ids[id]++
}

func (l *leavingSet) remove(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids[id]--; l.ids[id] == 0 {
		delete(l.ids, id)
	}
}

func (l *leavingSet) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[id] > 0
}

func (a *Agent) newGroup() {
	dialer := peerport.Dialer{Cluster: a.config.Cluster.Name, Server: a.server, Credentials: a.peerCredentials()}
	a.peers = newPeers(dialer, a.logger.Named("peers"))
	a.copies = newCopies(a.store, mirror.New(mirror.Options{Store: a.store, Peers: a.peers.sources, Logger: a.logger.Named("mirror")}), a.logger)
	a.group.exchange = newExchange(a.fleet, a.peers, a.logger.Named("exchange"))
}

// openGroup binds the peer port and gossip. Nothing is served yet.
func (a *Agent) openGroup() (ln net.Listener, err error) {
	c := a.config
	ln, err = net.Listen("tcp", c.Peer.Bind.String())
	if err != nil {
		return nil, bindError("peer port", "peer.bind", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ln.Close())
		}
	}()
	address, err := advertised(c.Peer.Bind, c.Peer.Advertise)
	if err != nil {
		return nil, fmt.Errorf("peer.advertise: %w", err)
	}
	keys, err := c.Gossip.Keys()
	if err != nil {
		return nil, err
	}
	a.secrets.keys = keys
	a.told = bootAddresses(c.Boot.Bind)
	a.peers.address = address
	a.peers.port = peerport.New(peerport.Options{
		Cluster: c.Cluster.Name, Server: a.server, Credentials: a.peerCredentials(), Closed: []string{peerport.Raft}, Logger: a.logger.Named("peerport"),
	})
	a.peers.gossip, err = gossip.Open(gossip.Options{
		Cluster: c.Cluster.Name, Bind: c.Gossip.Bind, Advertise: c.Gossip.Advertise, Seeds: c.Gossip.Seeds, Keys: keys,
		PeersFile: a.data.peers(), Rejoin: a.rejoin, Logger: a.logger.Named("gossip"),
		Meta: gossip.Meta{
			ID: a.server, Peer: address, Version: a.version, Wire: wireVersion, Expect: c.Cluster.Expect, StateVersion: fsm.Version, Boot: a.told,
		},
	})
	if err != nil {
		return nil, bindError("gossip", "gossip.bind", err)
	}
	a.peers.refresh()
	return ln, nil
}

// rejoin is where the servers of the Raft configuration may be found when gossip has
// forgotten them: on their hosts, at the port that this server uses for gossip (R9).
func (a *Agent) rejoin() []string {
	var places []string
	for id, address := range *a.peers.listed.Load() {
		if host, _, err := net.SplitHostPort(address); err == nil && id != a.server && !a.peers.alive(id) {
			places = append(places, net.JoinHostPort(host, fmt.Sprint(a.config.Gossip.Bind.Port())))
		}
	}
	return places
}

func bindError(what, key string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %w; another program uses it (%s): %w", what, err, key, eboot.ErrConflict)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %w; that is not an address of this machine (%s): %w", what, err, key, eboot.ErrInvalid)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// advertised is where others find a port that is bound here: as configured, the bound
// address, or the private address of this machine when all are bound.
func advertised(bind netip.AddrPort, configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if !bind.Addr().IsUnspecified() {
		return bind.String(), nil
	}
	address, err := sockaddr.GetPrivateIP()
	if err == nil && address == "" {
		address, err = sockaddr.GetPublicIP()
	}
	if err == nil && address == "" {
		err = fmt.Errorf("this machine has no address that others can reach; set it: %w", eboot.ErrInvalid)
	}
	return net.JoinHostPort(address, fmt.Sprint(bind.Port())), err
}

// blobPatience is how long a blob on its way may take when the server stops: who asked
// goes on elsewhere, at the byte where it was.
const blobPatience = 2 * time.Second

// serveGroup answers the other servers and follows who they are.
func (a *Agent) serveGroup(s *stage, ln net.Listener) {
	port := a.peers.port
	server := peerrpc.NewServer(peerrpc.ServerOptions{Answerer: a, Leader: a, Logger: a.logger.Named("peerrpc")})
	s.run("peer port", func(ctx context.Context) error { return port.Serve(ctx, ln) })
	s.run("peer calls", func(ctx context.Context) error { return server.Serve(ctx, port.Listener(peerport.RPC)) })
	s.run("blobs for peers", func(ctx context.Context) error {
		return api.Serve(ctx, port.Listener(peerport.Blob), mirror.Handler(a.store, a.logger.Named("mirror")), blobPatience, a.logger)
	})
	s.run("gossip", a.peers.gossip.Run)
	s.run("peers", a.followPeers)
	s.run("secrets", a.followSecrets)
	s.run("exchange", a.group.exchange.run)
}

// standingEvery is how often this server looks whether it has its place in the cluster.
const standingEvery = 2 * time.Second

// followPeers keeps what gossip and Raft say of the others at hand until ctx ends.
func (a *Agent) followPeers(ctx context.Context) error {
	ticker := time.NewTicker(standingEvery)
	defer ticker.Stop()
	for {
		changed := a.peers.Changed()
		a.peers.refresh()
		a.peers.list(a.cluster.Status().Servers)
		a.checkStanding()
		a.tellAddresses()
		if err := a.raiseVersion(ctx); err != nil && ctx.Err() == nil {
			a.logger.Debug("cluster version not raised yet", "error", err)
		}
		select {
		case <-changed:
			a.copies.look() // who is back may have what is missing
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// tellAddresses has the others know where this server answers slaves, when it does so on
// all addresses of a machine that may get others: who answers and is not known is a stranger.
func (a *Agent) tellAddresses() {
	if now := bootAddresses(a.config.Boot.Bind); !slices.Equal(now, a.told) {
		a.told = now
		a.peers.gossip.Update(func(m *gossip.Meta) { m.Boot = now })
	}
}

// checkStanding makes a server that has no place in the cluster fall silent: what it
// serves is not what the cluster says.
func (a *Agent) checkStanding() {
	err := a.cluster.Standing()
	if err != nil && !errors.Is(err, eboot.ErrConflict) {
		err = nil
	}
	before := a.outcast.Load()
	switch {
	case err == nil && before != nil:
		a.logger.Info("this server has its place in the cluster again")
		a.outcast.Store(nil)
	case err != nil && (before == nil || (*before).Error() != err.Error()):
		a.logger.Error("this server has no place in the cluster; it answers no slave", "error", err)
		a.outcast.Store(&err)
	}
}

// knownVersion is the highest cluster version that every member knows, as far as gossip tells;
// 0: what one of them knows is not known.
func (a *Agent) knownVersion() int {
	version := fsm.Version
	for _, s := range a.cluster.Status().Servers {
		if s.ID == a.server {
			continue
		}
		m, ok := a.peers.member(s.ID)
		if !ok {
			return 0
		}
		version = min(version, m.StateVersion)
	}
	return version
}

// raiseVersion has the cluster use what every member knows (R19).
func (a *Agent) raiseVersion(ctx context.Context) error {
	raft := a.cluster.Status()
	if raft.Leader != a.server {
		return nil
	}
	version := a.knownVersion()
	if state := a.machine.State(); state.Cluster() == "" || version <= state.Version() {
		return nil
	}
	// Gossip suggests it, and each server must say so itself: one that could not read
	// what follows would halt.
	infos := a.infos(ctx)
	for _, s := range raft.Servers {
		version = min(version, infos[s.ID].StateVersion) // 0 of one that does not answer
	}
	if version <= a.machine.State().Version() {
		return nil
	}
	_, err := a.propose(ctx, fsm.RaiseVersion{Header: a.ownHeader(), Version: version})
	return err
}

// joinGroup sets what Raft needs of the group.
func (a *Agent) joinGroup(o *cluster.Options) {
	o.Address = a.peers.address
	o.Stream = cluster.NewStream(newRaftTransport(a.peers))
	o.Directory = a.peers
	o.Expect = a.config.Cluster.Expect
	o.Multiplier = a.config.Cluster.RaftMultiplier
	o.Removed = func(id string) bool { return a.leaving.has(id) || a.machine.State().Removed(id) }
	o.Admit = func() { a.peers.port.Admit(peerport.Raft) }
}

// leaveGroup says goodbye, so that the others need not find out.
func (a *Agent) leaveGroup() {
	if err := a.peers.gossip.Leave(2 * time.Second); err != nil {
		a.logger.Debug("the others were not told of the stop", "error", err)
	}
}
