package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// formation is how a server comes to belong to a cluster.
type formation struct {
	forming  sync.Mutex               // held while a founding is decided
	offered  atomic.Pointer[founding] // what the others are told
	admitted chan struct{}            // closed when raft connections are taken
	admit    func()                   // closes it and tells the caller, once
	trouble  atomic.Pointer[error]    // why there is no configuration, or what a member hears of others
}

func (c *Cluster) offer() founding {
	if f := c.offered.Load(); f != nil {
		return *f
	}
	return founding{}
}

// members are of the newest configuration in the log.
func (c *Cluster) members() []Member {
	return membersOf(c.raft.GetConfiguration().Configuration().Servers)
}

func membersOf(servers []raft.Server) []Member {
	members := []Member{}
	for _, s := range servers {
		members = append(members, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return members
}

// setTrouble keeps what Standing says, and logs it when it is new.
func (c *Cluster) setTrouble(err error) {
	old := c.trouble.Swap(&err)
	switch {
	case err == nil, old != nil && *old != nil && (*old).Error() == err.Error():
	case errors.Is(err, eboot.ErrConflict):
		c.options.Logger.Error("this server is not part of a cluster", "reason", err)
	default:
		c.options.Logger.Info("this server is not part of a cluster yet", "reason", err)
	}
}

// Form makes this server part of a cluster, and returns nil when it is in a
// configuration, at once when it was. Until then Standing says what is missing.
//
// With Expect N it founds a cluster together with others when N willing servers of the
// same Expect are seen and everybody who is seen says that no cluster is known; of
// more than N the first by id found it. In all other cases it waits until the leader of a cluster
// adds it. A server that is a voter of somebody's configuration and has an empty log is
// never let in: its vote might be given twice, and what it once acknowledged is lost.
//
// It returns an error when ctx has ended, or Raft.
func (c *Cluster) Form(ctx context.Context) error {
	for {
		changed := c.book.changed.wait()
		if len(c.members()) > 0 {
			c.setTrouble(nil)
			c.admit()
			return nil
		}
		if err := c.Failure(); err != nil {
			return readError("form", err)
		}
		c.setTrouble(c.form(ctx))
		select {
		case <-changed:
		case <-time.After(c.options.poll()):
		case <-c.closing:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("form: %w", ctx.Err())
		}
	}
}

// form takes the next step, and returns what stands in the way.
func (c *Cluster) form(ctx context.Context) error {
	peers := c.book.list()
	a := c.ask(ctx, peers)
	c.forming.Lock()
	defer c.forming.Unlock()
	p := position{self: c.self(), cluster: c.clusterID(), mayFound: c.options.MayFound, own: c.offer()}
	s := decide(p, peers, a)
	switch {
	case s.promise:
		if err := c.promise(s.offer); err != nil {
			return err
		}
	case s.bootstrap:
		return c.bootstrap(ctx)
	case s.admit:
		c.admit()
	}
	if !c.offer().Promised {
		c.offered.Store(&s.offer)
	}
	return s.trouble
}

// clusterID is the cluster that this server belongs or belonged to; "": none yet.
func (c *Cluster) clusterID() string {
	if c.options.Cluster == nil {
		return ""
	}
	return c.options.Cluster()
}

func (c *Cluster) self() Peer {
	return Peer{ID: c.options.ServerID, Address: string(c.transport.LocalAddr()), Expect: c.options.Expect}
}

// promise makes an offer the only one that this server will ever bootstrap.
func (c *Cluster) promise(f founding) error {
	f.Promised = true
	err := c.storage.do("promise to found a cluster", func() error { return c.storage.db.Set(keyPromise, []byte(f.encode())) })
	if err != nil {
		return fmt.Errorf("promise to found a cluster: %w: %w", eboot.ErrNoLeader, err)
	}
	c.options.Logger.Info("promised to found a cluster", "servers", names(f.members()))
	c.offered.Store(&f)
	return nil
}

// bootstrap writes the configuration that was promised, the same on every server of it.
func (c *Cluster) bootstrap(ctx context.Context) error {
	var servers []raft.Server
	for _, s := range c.offer().Servers {
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)})
	}
	c.options.Logger.Info("founding a cluster", "servers", names(c.offer().members()))
	err := c.await(ctx, c.raft.BootstrapCluster(raft.Configuration{Servers: servers}), func() {})
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("found the cluster: %w: %w", eboot.ErrNoLeader, err)
	}
	c.admit()
	c.electAlone()
	return nil
}

// Found makes this server a cluster of one, to which others can be added.
// eboot.ErrConflict: it belongs to a cluster or did, or a server that is seen knows one,
// founds one, or does not answer.
func (c *Cluster) Found(ctx context.Context) error {
	c.forming.Lock()
	defer c.forming.Unlock()
	if servers := c.members(); len(servers) > 0 {
		return fmt.Errorf("found: this server belongs to the cluster of %s: %w", names(servers), eboot.ErrConflict)
	}
	if err := c.Failure(); err != nil {
		return readError("found", err)
	}
	if !c.options.MayFound {
		return fmt.Errorf("found: this server belonged to a cluster and has lost its raft log; %s: %w", wayOfReset, eboot.ErrConflict)
	}
	old := c.offer()
	if old.Promised && !old.Alone {
		return fmt.Errorf("found: this server has promised to found a cluster of %s; if one of them is gone for good, %s: %w", names(old.members()), wayOfReset, eboot.ErrConflict)
	}
	// The others are told before they are asked: of two that do this at the same
	// time at least one sees the other.
	self := c.self()
	alone := founding{Servers: []founder{{self.ID, self.Address}}, Alone: true, Promised: old.Promised}
	c.offered.Store(&alone)
	err := c.mayFoundAlone(ctx)
	if err == nil && !old.Promised {
		err = c.promise(alone)
	}
	if err != nil {
		c.offered.Store(&old)
		return fmt.Errorf("found: %w", err)
	}
	return c.bootstrap(ctx)
}

// mayFoundAlone asks everybody.
func (c *Cluster) mayFoundAlone(ctx context.Context) error {
	if c.book.directory != nil {
		c.book.open() // what gossip knows at this moment
	}
	peers := c.book.list()
	a := c.ask(ctx, peers)
	for _, peer := range peers {
		k := a.known[peer.ID]
		theirs := decodeFounding(k.Founding)
		switch {
		case len(k.Servers) > 0:
			return fmt.Errorf("server %s knows a cluster of %s, which this one will join: %w", peer.ID, names(k.Servers), eboot.ErrConflict)
		case theirs.Promised || theirs.Alone:
			return fmt.Errorf("server %s founds a cluster of %s: %w", peer.ID, names(theirs.members()), eboot.ErrConflict)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", eboot.ErrTimeout, err)
	}
	if reason := another(peers, a); reason != "" {
		return fmt.Errorf("%s: %w", reason, eboot.ErrConflict)
	}
	return nil
}
