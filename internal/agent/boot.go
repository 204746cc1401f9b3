package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"eboot"
	"eboot/bootproto"
	"eboot/filestore"
	"eboot/fleet"
	"eboot/fsm"
)

// bootService decides who boots, and what: the policy behind discovery and
// behind every connection of a slave.
type bootService struct {
	view      *stateView
	trees     *treeSet
	trust     *trust
	fleet     *fleet.Fleet
	listeners *listenerSet
	full      func(netip.Addr) bool
	draining  atomic.Bool
	peers     *peers
	exchange  *exchange
	ranking   ranking
	lacks     func(eboot.Bundle) bool // blobs of it are known to be missing here
	outcast   *atomic.Pointer[error]  // why this server has no place in the cluster, if it has none
	freshness *freshness
	now       func() time.Time
	without   atomic.Uint64 // searches of slaves for whose ERTS version there is no bundle
}

var (
	_ bootproto.Answerer = (*bootService)(nil)
	_ bootproto.Host     = (*bootService)(nil)
	_ bootproto.Session  = (*bootSession)(nil)
)

// Answer offers to serve only when this server could do so at once: a slave
// ignores for ever a server that answered and then refused TCP.
func (s *bootService) Answer(q bootproto.Query) (bootproto.Offer, error) {
	if s.peers.looks(q.Slave) {
		return bootproto.Offer{}, errOwnProbe
	}
	offer, err := s.offer(q.Slave.Addr(), q.ERTS)
	if err != nil && s.peers.serves(q.Slave.Addr()) {
		// That server looks for strangers (watch.go): it is no slave that waits. Should there be one
		// beside it, `slave explain` still says what it lacks.
		return bootproto.Offer{}, fmt.Errorf("%w: %w", bootproto.ErrUnlogged, err)
	}
	if err != nil {
		s.fleet.Discovered(q.Slave.Addr(), q.ERTS, err.Error())
		s.refuse(q, err)
		return bootproto.Offer{}, err
	}
	s.fleet.Discovered(q.Slave.Addr(), q.ERTS, "")
	return offer, nil
}

// errOwnProbe: this server heard itself.
var errOwnProbe = fmt.Errorf("this server looks for others: %w", bootproto.ErrUnlogged)

// refuse makes it known that a slave which may boot cannot: nothing else would be heard of it.
func (s *bootService) refuse(q bootproto.Query, err error) {
	if !errors.Is(err, eboot.ErrNotFound) {
		return
	}
	if entry, ok := s.view.State().Lookup(q.Slave.Addr()); ok {
		s.without.Add(1)
		s.fleet.Refused(q.Slave.Addr(), q.ERTS, entry.Channel, fmt.Sprintf("%s: channel %s has no bundle for ERTS %s; publish one and point the channel to it",
			q.Slave.Addr(), entry.Channel, q.ERTS))
	}
}

func (s *bootService) offer(slave netip.Addr, erts string) (none bootproto.Offer, err error) {
	state := s.view.State()
	if err := s.silenced(state); err != nil {
		return none, err
	}
	_, bundle, err := admit(state, slave, erts)
	if err != nil {
		return none, err
	}
	if err := s.trust.serves(bundle); err != nil {
		return none, err
	}
	r, ok := s.trees.residence(bundle)
	if !ok || !r.complete() {
		return none, fmt.Errorf("bundle %s is not complete on this server: %w", bundle.Ref(), eboot.ErrUnavailable)
	}
	port, ok := s.listeners.port(erts)
	if !ok {
		return none, fmt.Errorf("no TCP port is open for ERTS %s: %w", erts, eboot.ErrUnavailable)
	}
	if s.full(slave) {
		return none, fmt.Errorf("the limit of connections is reached: %w", eboot.ErrUnavailable)
	}
	rank, last := s.rank(state, slave, bundle)
	if s.lacksPinned(state, slave, erts, bundle) {
		rank = last
	}
	return bootproto.Offer{Rank: rank, LastRank: last, Port: port}, nil
}

// tree returns the tree of a bundle that slaves may have from this server.
func (s *bootService) tree(b eboot.Bundle) (*servedTree, error) {
	if err := s.trust.serves(b); err != nil {
		return nil, err
	}
	return s.trees.tree(b)
}

// silenced says why this server answers no slave at all, if it does not.
func (s *bootService) silenced(state *fsm.State) error {
	switch {
	case s.draining.Load():
		return fmt.Errorf("this server is stopping: %w", eboot.ErrUnavailable)
	case state.Drained(s.ranking.self):
		return fmt.Errorf("this server is drained; `eboot cluster undrain` ends it: %w", eboot.ErrUnavailable)
	}
	if outcast := s.outcast.Load(); outcast != nil {
		return *outcast
	}
	return s.freshness.stale()
}

// lacksPinned reports whether the slave runs another bundle, of which blobs are missing
// here. Whether it asks because it boots, or because its server is gone, is not known:
// another server is the better one as long as it may be the latter.
func (s *bootService) lacksPinned(state *fsm.State, slave netip.Addr, erts string, bundle eboot.Bundle) bool {
	pin, ok := s.fleet.Pin(slave, erts)
	if !ok || pin.Manifest == bundle.Manifest {
		return false
	}
	pinned, ok := state.BundleByManifest(pin.Manifest, erts)
	return ok && s.lacks(pinned)
}

// rank places this server among those that could serve the slave as well: alive and
// not draining by gossip, not drained, and holding the bundle, both by the state.
func (s *bootService) rank(state *fsm.State, slave netip.Addr, bundle eboot.Bundle) (rank, last int) {
	var room [8]string
	others := room[:0]
	for _, id := range bundle.Holders {
		if id != s.ranking.self && s.peers.serving(id) && !state.Drained(id) {
			others = append(others, id)
		}
	}
	return s.ranking.rank(slave, others)
}

// admit answers which channel and bundle an address gets, or why none.
func admit(state *fsm.State, slave netip.Addr, erts string) (*eboot.WhitelistEntry, eboot.Bundle, error) {
	entry, ok := state.Lookup(slave)
	if !ok {
		return nil, eboot.Bundle{}, fmt.Errorf("address is not whitelisted: %w", eboot.ErrDenied)
	}
	bundle, ok := state.Target(entry, slave, erts)
	if !ok {
		return entry, eboot.Bundle{}, fmt.Errorf("channel %s has no bundle for ERTS %s: %w", entry.Channel, erts, eboot.ErrNotFound)
	}
	return entry, bundle, nil
}

// Admit asks the whitelist, and whether it is to be believed.
func (s *bootService) Admit(slave netip.Addr) error {
	if err := s.freshness.stale(); err != nil {
		return err
	}
	if _, ok := s.view.State().Lookup(slave); !ok {
		return fmt.Errorf("address is not whitelisted: %w", eboot.ErrDenied)
	}
	return nil
}

// Connect admits a connection. What it serves is decided by its first request.
func (s *bootService) Connect(slave netip.AddrPort, erts string) (bootproto.Session, error) {
	session := &bootSession{service: s, slave: slave.Addr(), erts: erts}
	if err := session.Allowed(); err != nil {
		return nil, err
	}
	session.seen = s.fleet.Connect(slave.Addr(), erts)
	return session, nil
}

// bootSession is one connection of one slave. Its tree is fixed by the first
// request that is answered from one, and does not change: what a slave reads is of one
// bundle.
type bootSession struct {
	service *bootService
	slave   netip.Addr
	erts    string
	seen    *fleet.Connection
	tree    *servedTree
	opened  *opened // nil: the stock loader is asking
}

// Allowed asks the whitelist again.
func (c *bootSession) Allowed() error { return c.service.Admit(c.slave) }

// resolve returns the connection's tree. Before a boot has begun on it, that is
// the tree of the bundle that the latest boot of this address began with. A live channel
// shows each request what it points to now.
func (c *bootSession) resolve() (*servedTree, error) {
	if c.tree != nil {
		return c.tree, nil
	}
	state := c.service.view.State()
	entry, bundle, err := admit(state, c.slave, c.erts)
	if err != nil {
		return nil, err
	}
	if state.ChannelOptions(entry.Channel).Live == eboot.LiveOn {
		return c.service.tree(bundle)
	}
	if pin, ok := c.service.fleet.Pin(c.slave, c.erts); ok && pin.Manifest != bundle.Manifest {
		if bundle, ok = state.BundleByManifest(pin.Manifest, c.erts); !ok {
			return nil, fmt.Errorf("the bundle this slave booted (%s) was removed: %w", pin.Manifest.Short(), eboot.ErrUnavailable)
		}
	}
	if c.tree, err = c.service.tree(bundle); err != nil {
		return nil, err
	}
	return c.tree, nil
}

// begin serves a boot script as the first thing of a connection: a boot begins
// with what the channel points to now. A script that the bundle does not have begins
// nothing; init asks for X.boot first and for $ROOT/bin/X.boot on the same connection.
func (c *bootSession) begin(name []byte) (bootproto.Content, error) {
	state := c.service.view.State()
	entry, bundle, err := admit(state, c.slave, c.erts)
	if err != nil {
		return bootproto.Content{}, err
	}
	options := state.ChannelOptions(entry.Channel)
	tree, err := c.service.tree(bundle)
	if err != nil {
		return bootproto.Content{}, err
	}
	c.note("get", name, tree)
	content, err := c.script(options, bundle, tree, name)
	if err == nil {
		if options.Live != eboot.LiveOn {
			c.tree = tree
		}
		if pin := c.seen.BootBegan(entry.Channel, bundle, rolloutOf(state, entry, c.slave, bundle)); !pin.Manifest.IsZero() {
			c.service.exchange.share(pin)
		}
	}
	return content, err
}

// rolloutOf is the id of the rollout because of which a slave boots b; empty: its channel
// points to it.
func rolloutOf(state *fsm.State, entry *eboot.WhitelistEntry, slave netip.Addr, b eboot.Bundle) string {
	r, ok := state.Rollout(entry.Channel)
	if !ok || r.Target != b.Ref() || !moves(state, &r, b.ERTS) || !r.Moves(slave, entry.Labels) {
		return ""
	}
	return r.ID
}

// note records the request, and whether any root covers its path.
func (c *bootSession) note(operation string, name []byte, tree *servedTree) {
	c.seen.Requested(operation, name)
	if tree != nil && !tree.Covers(name) {
		c.seen.Uncovered(name)
	}
}

// Get answers {get, File}.
func (c *bootSession) Get(name []byte) (bootproto.Content, error) {
	if c.tree == nil && isBootScript(name) {
		return c.begin(name)
	}
	tree, err := c.resolve()
	c.note("get", name, tree)
	if err != nil {
		return bootproto.Content{}, err
	}
	content, err := wireContent(tree.Get(name))
	if err == nil && c.opened != nil {
		c.learn(name, content.Size)
	}
	return content, err
}

func wireContent(content filestore.Content, err error) (bootproto.Content, error) {
	if err != nil {
		return bootproto.Content{}, err
	}
	if content.File == nil {
		return bootproto.Content{Data: content.Data, Size: content.Size}, nil
	}
	return bootproto.Content{Reader: content.File, Size: content.Size}, nil
}

// List answers {list_dir, Dir}.
func (c *bootSession) List(name []byte) ([]string, error) {
	tree, err := c.resolve()
	c.note("list_dir", name, tree)
	if err != nil {
		return nil, err
	}
	return tree.List(name)
}

// Stat answers {read_file_info, F} and {read_link_info, F}.
func (c *bootSession) Stat(name []byte, follow bool) (bootproto.FileInfo, error) {
	operation := "read_file_info"
	if !follow {
		operation = "read_link_info"
	}
	tree, err := c.resolve()
	c.note(operation, name, tree)
	if err != nil {
		return bootproto.FileInfo{}, err
	}
	info, err := tree.Stat(name, follow)
	if err != nil {
		return bootproto.FileInfo{}, err
	}
	wire := bootproto.FileInfo{Size: info.Size, Type: bootproto.Regular, Exec: info.Exec, ModTime: info.ModTime}
	switch info.Kind {
	case eboot.KindDirectory:
		wire.Type = bootproto.Directory
	case eboot.KindSymlink:
		wire.Type = bootproto.Symlink
	}
	return wire, nil
}

// WorkingDirectory answers get_cwd: the bundle's root, as the slave names it.
func (c *bootSession) WorkingDirectory() string {
	if c.tree != nil {
		return c.tree.WorkingDirectory()
	}
	return strings.TrimSuffix(c.service.trees.roots[0], "/")
}

// Sent counts what the slave got.
func (c *bootSession) Sent(n int) { c.seen.Sent(n) }

// Close ends the observation.
func (c *bootSession) Close(reason error) {
	c.tellLearned()
	c.seen.Closed(closedBySlave(reason))
}

// closedBySlave reports whether the slave ended a connection that ended for a reason: it
// closed it or reset it, or it is gone without a word (TCP keep-alive).
func closedBySlave(reason error) bool {
	return reason == nil || errors.Is(reason, bootproto.ErrSlaveClosed) ||
		errors.Is(reason, syscall.ECONNRESET) || errors.Is(reason, syscall.EPIPE) || errors.Is(reason, syscall.ETIMEDOUT)
}
