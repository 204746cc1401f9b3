package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/api"
	"eboot/bootproto"
	"eboot/cluster"
	"eboot/cluster/gossip"
	"eboot/config"
	"eboot/filestore"
	"eboot/fleet"
	"eboot/fsm"
	"eboot/internal/metrics"
	"eboot/internal/servingcache"
	"eboot/internal/sockholder"
	"eboot/internal/sockowner"
)

// Options are what an Agent is made of.
type Options struct {
	Config  config.Config
	Logger  hclog.Logger
	Version string // of the program, as `eboot version` prints it

	// Holder is the command, its program first, of the process that keeps idle slaves'
	// connections open when this one dies (sockholder.Serve). Empty: none does.
	Holder []string
}

// Agent is one server. New opens its data directory; Run does everything else.
type Agent struct {
	config  config.Config
	logger  hclog.Logger
	now     func() time.Time
	data    *dataDir
	metrics *metrics.Registry
	admin   *api.Server
	self
	replicated
	serving
	group
	signals
}

// self is what the server says of itself.
type self struct {
	server    string // its UUID
	version   string
	roots     []string
	startedAt time.Time
}

// replicated is the state that Raft agrees on, and what of it is served.
type replicated struct {
	machine *fsm.Machine
	view    *stateView
	cache   *servingcache.Cache
	cluster consensus
}

// serving is what slaves and publishers touch.
type serving struct {
	store     *filestore.Store
	fleet     *fleet.Fleet
	bundles   map[eboot.Digest]bool // manifests of the state that was followed last
	trees     *treeSet
	trust     *trust
	listeners *listenerSet
	boot      *bootService
	files     *bootproto.FileServer
	holder    *sockholder.Holder // nil: none
	discovery *bootproto.Discovery
	watch     *watch
	publishes *publishes
}

// signals are what one goroutine of the agent tells the others.
type signals struct {
	answering  atomic.Bool        // discovery is served
	started    chan struct{}      // closed when it is for the first time
	collect    chan struct{}      // asks for a collection
	damage     chan struct{}      // asks for a recount of what is on disk
	pulse      chan chan struct{} // asks for a sign of life: see Healthy
	apiAddress atomic.Pointer[string]
	storageErr atomic.Pointer[error]
}

// New opens the data directory and what is in it, and starts nothing.
// eboot.ErrConflict: another process uses the directory. eboot.ErrInvalid: the
// configuration is wrong.
func New(o Options) (a *Agent, err error) {
	if err := o.Config.Check(); err != nil {
		return nil, err
	}
	a = &Agent{
		config: o.Config, logger: o.Logger, now: time.Now,
		self:    self{version: o.Version, roots: o.Config.Boot.Roots, startedAt: time.Now()},
		signals: signals{started: make(chan struct{}), collect: make(chan struct{}, 1), damage: make(chan struct{}, 1), pulse: make(chan chan struct{})},
	}
	if a.trust, err = openTrust(o.Config.Trust, o.Logger); err != nil {
		return nil, err
	}
	if err := a.openCredentials(); err != nil {
		return nil, err
	}
	data, err := openDataDir(o.Config.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, data.close())
		}
	}()
	a.data = data
	if a.server, err = a.data.serverID(); err != nil {
		return nil, err
	}
	a.store, err = filestore.Open(filestore.Options{Dir: a.data.store(), OnDamage: a.damaged, Logger: o.Logger.Named("store")})
	if err != nil {
		return nil, err
	}
	a.machine = fsm.New(nil)
	founded, err := a.data.cluster()
	if err != nil {
		return nil, errors.Join(err, a.store.Close())
	}
	if a.view, err = openStateView(a.data.servingCache(), founded, a.machine, o.Logger); err != nil {
		return nil, errors.Join(err, a.store.Close())
	}
	a.cache = servingcache.New(servingcache.Options{Path: a.data.servingCache(), Logger: o.Logger.Named("cache")})
	a.fleet, err = fleet.New(fleet.Options{
		Server: a.server, PinFile: a.data.pins(), PlanFile: a.data.plans(), Now: a.now, Logger: o.Logger.Named("fleet"),
		OnBoot:  func(b eboot.Boot) { a.group.exchange.booted(b) },
		OnEvent: func(e eboot.Event) { a.group.exchange.happened(e) },
	})
	if err != nil {
		return nil, errors.Join(err, a.store.Close())
	}
	a.trees = newTreeSet(a.store, a.roots, o.Logger)
	a.newGroup()
	a.boot = &bootService{
		view: a.view, trees: a.trees, trust: a.trust, fleet: a.fleet, peers: a.peers, exchange: a.group.exchange,
		ranking: newRanking(a.server, o.Config.Boot.Priority), outcast: &a.outcast, lacks: a.copies.lacks, now: a.now,
		freshness: newFreshness(!o.Config.Clustered(), o.Config.Whitelist.MaxStale),
	}
	a.watch = &watch{
		period: o.Config.Boot.Watch, binds: o.Config.Boot.Bind, seeds: o.Config.Gossip.Seeds, peers: a.peers, fleet: a.fleet,
		versions: a.ertsVersions, logger: o.Logger.Named("watch"),
	}
	a.newHolder(o)
	a.files = bootproto.NewFileServer(bootproto.FileServerOptions{
		Host: a.boot, Holder: a.socketHolder(), Logger: o.Logger.Named("files"),
		ConnectionsPerAddress: o.Config.Boot.Limits.ConnectionsPerAddress, Connections: o.Config.Boot.Limits.Connections,
	})
	a.boot.full = a.files.Full
	a.discovery = bootproto.NewDiscovery(bootproto.DiscoveryOptions{
		Answerer: a.boot, Pace: o.Config.Boot.Priority.Pace, Logger: o.Logger.Named("discovery"),
	})
	a.publishes = newPublishes(a.store, a.now)
	a.metrics = metrics.New(o.Version)
	a.admin = api.NewServer(api.ServerOptions{Backend: a, Keeper: a, Metrics: a.metrics.Handler(), Logger: a.logger.Named("api"), Live: a.live})
	a.registerMetrics()
	return a, nil
}

// Started is closed when the server answers discovery for the first time.
func (a *Agent) Started() <-chan struct{} { return a.started }

// APIAddress returns where the admin API listens, as a client takes it; empty
// before Run has opened it.
func (a *Agent) APIAddress() string {
	if address := a.apiAddress.Load(); address != nil {
		return *address
	}
	return ""
}

// Run serves until ctx ends or a part fails, and stops in the reverse order of
// the start. It may be called once. An error is what made it fail; a stop by ctx is nil.
func (a *Agent) Run(ctx context.Context) (err error) {
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer func() { err = errors.Join(err, a.closeHolder(), a.store.Close(), a.data.close()) }()

	// Bound first, served last: who finds the port taken should hear it at once,
	// and datagrams that arrive meanwhile wait in the socket.
	sockets, err := a.listenDiscovery()
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range sockets {
			_ = s.Close() // a second close, after Serve's, changes nothing
		}
	}()
	admin, err := a.listenAPI()
	if err != nil {
		return err
	}
	var peerListener net.Listener
	if a.config.Clustered() {
		if peerListener, err = a.openGroup(); err != nil {
			return errors.Join(err, closeDoors(admin))
		}
	}
	background := newStage(ctx, "background", fail)
	others := newStage(ctx, "peers", fail)
	copying := newStage(ctx, "copies", fail)
	following := newStage(ctx, "state", fail)
	files := newStage(ctx, "files", fail)
	apis := newStage(ctx, "api", fail)
	discovery := newStage(ctx, "discovery", fail)
	a.listeners = newListenerSet(a.config.Boot, a.files, files, a.logger)
	a.boot.listeners = a.listeners

	// The state that the cache kept is served before Raft says anything.
	a.serveState()
	if a.holder != nil {
		background.run("holder", a.holder.Run)
	}
	background.run("serving cache", a.cache.Run)
	background.run("scrubber", a.store.Run)
	background.run("fleet", a.fleet.Run)
	background.run("recounter", a.recounter)
	background.run("collector", a.collector)
	background.run("publishes", a.publishes.sweep)

	if err := a.openCluster(fail); err != nil {
		err = errors.Join(err, closeDoors(admin), files.stop(), background.stop())
		if peerListener != nil {
			err = errors.Join(err, peerListener.Close(), a.peers.gossip.Close())
		}
		return err
	}
	following.run("state", a.followState)
	following.run("founding", a.found)
	following.run("rollouts", a.driveRollouts)
	following.run("retention", a.retain)
	following.run("freshness", a.followFreshness)
	following.run("watch", a.watch.run)
	if peerListener != nil {
		a.serveGroup(others, peerListener)
		following.run("forming", a.cluster.Form)
		copying.run("copies", a.mirrorBundles)
	}
	for _, door := range admin {
		apis.run("api", func(ctx context.Context) error { return a.admin.Serve(ctx, door.listener, door.kind) })
	}
	for _, socket := range sockets {
		discovery.run("discovery", func(ctx context.Context) error { return a.discovery.Serve(ctx, socket) })
	}
	a.answering.Store(true)
	close(a.started)
	a.logger.Info("serving", "server", a.server, "api", a.APIAddress(), "boot", a.config.Boot.Bind)

	<-running.Done()
	a.logger.Info("stopping", "cause", context.Cause(running))

	// Silence first: a slave must not be sent to a server that is about to refuse it.
	a.boot.draining.Store(true)
	if peerListener != nil {
		a.peers.gossip.Update(func(m *gossip.Meta) { m.Draining = true })
	}
	err = discovery.stop()
	// Another leads while slaves are waited for. It is tried for a limited time, and
	// without it the others find a leader a little later.
	if raft := a.cluster.Status(); peerListener != nil && raft.Role == roleLeader && len(raft.Servers) > 1 {
		if err := a.cluster.Transfer(context.WithoutCancel(ctx), ""); err != nil {
			a.logger.Warn("leadership was not handed over", "error", err)
		}
	}
	// A slave that was quiet for a second goes elsewhere when it asks again; until then
	// its connection stays open, with the holder or with us.
	err = errors.Join(err, files.stop())
	// Nobody can ask for a change any more …
	err = errors.Join(err, apis.stop())
	// … so the log is complete, and the serving cache's last write has all of it.
	err = errors.Join(err, copying.stop())
	if peerListener != nil {
		a.leaveGroup()
	}
	err = errors.Join(err, a.cluster.Close(), following.stop(), background.stop(), others.stop())
	if peerListener != nil {
		err = errors.Join(err, a.peers.gossip.Close())
	}
	a.peers.close()
	return errors.Join(err, a.live())
}

func (a *Agent) listenDiscovery() ([]*net.UDPConn, error) {
	var sockets []*net.UDPConn
	for _, bind := range a.config.Boot.Bind {
		socket, err := bootproto.ListenDiscovery(bind)
		if err == nil {
			sockets = append(sockets, socket)
			continue
		}
		for _, open := range sockets {
			err = errors.Join(err, open.Close())
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("UDP port %d of %s is taken%s: EBOOT has no other port; stop that program or choose another address (boot.bind, --ip): %w",
				bootproto.Port, bind, ownerText(bind), eboot.ErrConflict)
		}
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("%s is not an address of this machine (boot.bind, --ip): %w: %w", bind, err, eboot.ErrInvalid)
		}
		return nil, err
	}
	return sockets, nil
}

func ownerText(bind netip.Addr) string {
	owner, ok := sockowner.UDP(netip.AddrPortFrom(bind, bootproto.Port))
	switch {
	case !ok:
		return ""
	case owner.PID == 0:
		return " by a process of another user"
	}
	return fmt.Sprintf(" by process %d (%s)", owner.PID, owner.Command)
}

func (a *Agent) openCluster(fail func(error)) error {
	if err := a.metrics.CollectRaft(); err != nil {
		return err
	}
	founded, err := a.data.founded()
	if err != nil {
		return err
	}
	// A server that has a past must not found a cluster beside it: its state would
	// begin anew, and slaves would lose what they boot.
	mayFound := a.view.cached.Load() == nil && !founded
	options := cluster.Options{
		Dir: a.data.raft(), ServerID: a.server, Address: aloneAddress,
		Bootstrap: a.config.Cluster.Expect == 1 && mayFound, MayFound: mayFound, Cluster: a.clusterID,
		StateMachine: stateMachine{a.machine}, Logger: a.logger.Named("raft"),
		OnStorageFailure: func(err error) {
			a.storageErr.Store(&err)
			fail(fmt.Errorf("raft storage failed; a restart is the only safe way on: %w", err))
		},
	}
	if a.config.Clustered() {
		a.joinGroup(&options)
	}
	c, err := cluster.Open(options)
	if err != nil {
		if a.view.cached.Load() == nil || errors.Is(err, eboot.ErrInvalid) {
			return err
		}
		a.logger.Error("raft could not be opened; serving the state of the cache, taking no writes", "error", err)
		a.cluster = noRaft{cause: err}
		return nil
	}
	a.cluster = c
	if len(c.Status().Servers) == 0 && !a.config.Clustered() {
		a.logger.Error("the raft log of this server is gone", "error", errLogGone)
	}
	return nil
}

// aloneAddress stands in the configuration of a server that nobody can reach.
const aloneAddress = "127.0.0.1:4381"

func (a *Agent) live() error {
	if err := a.storageErr.Load(); err != nil {
		return *err
	}
	return nil
}
