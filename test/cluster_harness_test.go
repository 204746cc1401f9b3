package test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// formDeadline is how long servers may take to found a cluster, or to be members again
// after a restart. They take a few seconds on a machine that does nothing else.
const formDeadline = 60 * time.Second

// clusterOptions say how the servers of a test run.
type clusterOptions struct {
	// Network: server i runs on its host i. nil: on the machine's own network, each server
	// on a loopback address of its own.
	Network *testnet.Network
	Roots   []string // boot.roots; slaveRoot when empty
	// Secure: the servers have certificates, and gossip a key, made by the command line.
	Secure bool
	// Settings are further ones as environment variables ("EBOOT_PUBLISH_WAIT=1s"), which win
	// over the file.
	Settings []string
	// Under is what the server of that name runs under, such as strace and its arguments; nil:
	// nothing. What is signalled must be the server itself.
	Under func(name string) []string
}

// serverCluster is some servers that belong together, each an `eboot agent` process.
type serverCluster struct {
	t       testing.TB
	network *testnet.Network // nil: loopback
	servers []*clusterServer
	client  *api.Client // of all servers
	opts    clusterOptions
	dir     string // settings and sockets
	waiting int    // slaves of startWaiting
}

// clusterServer is one of them. Kill, Term, Pause and Resume are those of the process;
// Start starts it and starts it again.
type clusterServer struct {
	*testnet.Process // nil before the first Start

	Name    string // "s1", "s2", …
	Address string
	DataDir string
	Expect  int         // cluster.expect: the number of servers; 1 founds alone, 0 joins others
	Client  *api.Client // of this server alone

	cluster *serverCluster
	host    *testnet.Host // nil: loopback
	id      string        // once it was heard
}

// newCluster prepares n servers that expect each other and starts none.
func newCluster(t testing.TB, n int, opts clusterOptions) *serverCluster {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "eboot-cluster-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if len(opts.Roots) == 0 {
		opts.Roots = []string{slaveRoot}
	}
	c := &serverCluster{t: t, network: opts.Network, opts: opts, dir: dir}
	var all []string
	for i := range n {
		s := &clusterServer{Name: fmt.Sprintf("s%d", i+1), DataDir: t.TempDir(), Expect: n, cluster: c}
		if opts.Network != nil {
			s.host = opts.Network.Host(i)
			s.Address = s.host.Address.String()
		} else {
			s.Address = takeAddress(t)
		}
		s.Client = newTestClient(t, "unix://"+s.socket())
		all = append(all, "unix://"+s.socket())
		c.servers = append(c.servers, s)
	}
	c.client = newTestClient(t, all...)
	if opts.Secure {
		c.makeSecrets(t)
	}
	return c
}

// startCluster starts n servers and waits until they have founded a cluster.
func startCluster(t testing.TB, n int, opts clusterOptions) *serverCluster {
	t.Helper()
	c := newCluster(t, n, opts)
	for _, s := range c.servers {
		s.Start(t)
	}
	c.WaitFormed(t)
	return c
}

func newTestClient(t testing.TB, addresses ...string) *api.Client {
	t.Helper()
	client, err := api.NewClient(api.ClientOptions{Addresses: addresses, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func (s *clusterServer) socket() string { return filepath.Join(s.cluster.dir, s.Name+".sock") }

// settings is the configuration file of the server. Every server may listen on the
// standard ports: each has an address of its own.
func (s *clusterServer) settings() string {
	var seeds []string
	for _, other := range s.cluster.servers {
		if s.Expect != 1 { // such a server waits for nobody
			seeds = append(seeds, "'"+other.Address+":4382'")
		}
	}
	apiAddress := s.Address // a loopback address: reachable for all on this machine
	if s.host != nil {
		apiAddress = "127.0.0.1" // for those on this host; from outside there is the socket
	}
	return strings.Join([]string{
		"data_dir: " + s.DataDir,
		fmt.Sprintf("cluster: {name: test, expect: %d}", s.Expect),
		fmt.Sprintf("boot: {bind: [%s], roots: [%s]}", s.Address, strings.Join(s.cluster.opts.Roots, ", ")),
		fmt.Sprintf("api: {bind: '%s:4380', socket: '%s', insecure: %t}", apiAddress, s.socket(), !s.cluster.opts.Secure),
		fmt.Sprintf("peer: {bind: '%s:4381'}", s.Address),
		fmt.Sprintf("gossip: {bind: '%s:4382', seeds: [%s], key_file: '%s'}", s.Address, strings.Join(seeds, ", "), s.gossipKey()),
		s.certificates(),
		"log: {level: info}",
	}, "\n") + "\n"
}

// Start starts the server with the settings of this moment, killing it first when it
// runs, and waits for nothing.
func (s *clusterServer) Start(t testing.TB) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.cluster.dir, s.Name+".yaml")
	write(t, file, s.settings())
	if s.Process != nil {
		s.Process.Restart()
		return
	}
	args := []string{path, "agent", "--config", file}
	if under := s.cluster.opts.Under; under != nil {
		args = append(under(s.Name), args...)
	}
	command := testnet.Command{Args: args, Env: s.cluster.opts.Settings, Name: s.Name}
	if s.host != nil {
		s.Process = s.host.Start(s.cluster.t, command)
	} else {
		s.Process = testnet.Start(s.cluster.t, command)
	}
}

// Stop ends the server gracefully, as systemd does, and waits.
func (s *clusterServer) Stop(t testing.TB) {
	t.Helper()
	if state := s.Term(40 * time.Second); !state.Success() {
		t.Errorf("server %s ended with %v", s.Name, state)
	}
}

// Move gives a server that is not running another address.
func (s *clusterServer) Move(t testing.TB) {
	t.Helper()
	if s.host == nil {
		s.Address = takeAddress(t)
		return
	}
	s.host.ChangeAddress()
	s.Address = s.host.Address.String()
}

// ID is the server's identity; it must have been reachable once.
func (s *clusterServer) ID(t testing.TB) string {
	t.Helper()
	if s.id == "" {
		testutil.Poll(t, formDeadline, "server "+s.Name+" is to say who it is", func() bool {
			_, ok := s.status()
			return ok
		})
	}
	return s.id
}

// status asks the server, for a second at most: a paused one does not answer.
func (s *clusterServer) status() (eboot.ClusterStatus, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, err := s.Client.Status(ctx)
	if err != nil {
		return status, false
	}
	s.id = status.Server
	return status, true
}

// running are the servers whose process runs.
func (c *serverCluster) running() []*clusterServer {
	var running []*clusterServer
	for _, s := range c.servers {
		if s.Process != nil && s.Running() {
			running = append(running, s)
		}
	}
	return running
}

// statuses asks all running servers at once. Those that do not answer are left out.
func (c *serverCluster) statuses() map[*clusterServer]eboot.ClusterStatus {
	var mu sync.Mutex
	var all sync.WaitGroup
	statuses := map[*clusterServer]eboot.ClusterStatus{}
	for _, s := range c.running() {
		all.Go(func() {
			if status, ok := s.status(); ok {
				mu.Lock()
				defer mu.Unlock()
				statuses[s] = status
			}
		})
	}
	all.Wait()
	return statuses
}

// WaitFormed waits until all servers that run name the same leader, have every server of
// the cluster as a voter, and are at the same generation. (Not at the same applied index: entries of
// Raft itself, which every new leader writes, are not applied to the state.)
func (c *serverCluster) WaitFormed(t testing.TB) {
	t.Helper()
	var statuses map[*clusterServer]eboot.ClusterStatus
	defer func() {
		if t.Failed() {
			for s, status := range statuses {
				t.Logf("%s is %s, %s in term %d, generation %d, applied %d of %d, leader %q, members %+v", s.Name, status.Server, status.Role, status.Term,
					status.Generation, status.AppliedIndex, status.LastIndex, status.Leader, status.Servers)
			}
		}
	}()
	testutil.Poll(t, formDeadline, "servers are to agree on a leader and on the members", func() bool {
		statuses = c.statuses()
		if len(statuses) < len(c.running()) || len(statuses) == 0 {
			c.failWhenEnded(t)
			return false
		}
		var leaders []string
		var generations []uint64
		for _, status := range statuses {
			leaders, generations = append(leaders, status.Leader), append(generations, status.Generation)
			voters := 0
			for _, member := range status.Servers {
				if member.Voter {
					voters++
				}
			}
			if status.Leader == "" || voters != len(c.servers) {
				return false
			}
		}
		return len(slices.Compact(leaders)) == 1 && len(slices.Compact(generations)) == 1
	})
}

// failWhenEnded fails at once when a server has ended by itself, instead of at a deadline.
func (c *serverCluster) failWhenEnded(t testing.TB) {
	t.Helper()
	for _, s := range c.servers {
		if s.Process != nil && !s.Running() && s.cmdExited() {
			t.Fatalf("server %s ended by itself; the end of its output: %s", s.Name, tail(s.Output()))
		}
	}
}

// cmdExited tells a server that gave up from one that a test has killed or stopped.
func (s *clusterServer) cmdExited() bool {
	state := s.Wait(time.Second)
	return state.Exited() && !state.Success()
}

func tail(text string) string { return text[max(0, len(text)-2000):] }

// Leader waits until a majority of the servers names one leader that runs, and returns it.
func (c *serverCluster) Leader(t testing.TB) *clusterServer {
	t.Helper()
	var leader *clusterServer
	testutil.Poll(t, formDeadline, "a majority is to agree on a leader", func() bool {
		statuses := c.statuses()
		for s, own := range statuses {
			votes := 0
			for _, status := range statuses {
				if status.Leader == own.Server {
					votes++
				}
			}
			if own.Role == "leader" && votes > len(c.servers)/2 {
				leader = s
				return true
			}
		}
		return false
	})
	return leader
}

// Followers are the running servers that do not lead.
func (c *serverCluster) Followers(t testing.TB) []*clusterServer {
	t.Helper()
	leader := c.Leader(t)
	return slices.DeleteFunc(c.running(), func(s *clusterServer) bool { return s == leader })
}

// Others are the servers other than s, running or not.
func (c *serverCluster) Others(s *clusterServer) []*clusterServer {
	return slices.DeleteFunc(slices.Clone(c.servers), func(o *clusterServer) bool { return o == s })
}

// Addresses are those of the servers in their order, for -hosts.
func (c *serverCluster) Addresses() []string {
	var addresses []string
	for _, s := range c.servers {
		addresses = append(addresses, s.Address)
	}
	return addresses
}

// At returns the server with that address.
func (c *serverCluster) At(t testing.TB, address string) *clusterServer {
	t.Helper()
	i := slices.Index(c.Addresses(), address)
	if i < 0 {
		t.Fatalf("%q is no server of %v", address, c.Addresses())
	}
	return c.servers[i]
}

// Publish publishes the tree at path through any server and moves channel stable to it.
func (c *serverCluster) Publish(t testing.TB, erl testutil.Erlang, name, version, path string) api.PublishOutcome {
	t.Helper()
	return publishTree(t, c.client, erl, eboot.Ref{Name: name, Version: version}, path)
}

// Allow lets the addresses of prefix boot from channel stable.
func (c *serverCluster) Allow(t testing.TB, prefix string) {
	t.Helper()
	allow(t, c.client, prefix)
}

// discovered is the reply of one server to a discovery.
type discovered struct {
	Server   *clusterServer
	Priority byte
	After    time.Duration
}

// discover asks all servers once, as the slave with that address, from a new port: a new
// search. In a network, a host must have the address; on loopback, any below 127/8 will do. The
// replies come in the order of their arrival: a stock slave takes the server of the last.
func (c *serverCluster) discover(t testing.TB, erl testutil.Erlang, slave string) []discovered {
	t.Helper()
	conn, err := c.listenUDP(slave)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var answers []discovered
	for _, r := range testutil.Discover(t, conn, erl.ERTS, 200*time.Millisecond, c.Addresses()...) {
		answers = append(answers, discovered{Server: c.At(t, r.From.Addr().Unmap().String()), Priority: r.Priority, After: r.At})
	}
	return answers
}

func (c *serverCluster) listenUDP(slave string) (*net.UDPConn, error) {
	address, err := netip.ParseAddr(slave)
	if err != nil {
		return nil, err
	}
	if c.network == nil {
		return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	}
	host := c.network.Lookup(address)
	if host == nil {
		return nil, fmt.Errorf("no host of the network has the address %s", slave)
	}
	return host.Namespace.ListenUDP(slave + ":0")
}

// Favourite is the server that a search of the slave finds best: priority 0.
func (c *serverCluster) Favourite(t testing.TB, erl testutil.Erlang, slave string) *clusterServer {
	t.Helper()
	var best *clusterServer
	testutil.Poll(t, formDeadline, "a server is to have priority 0 for "+slave, func() bool {
		for _, a := range c.discover(t, erl, slave) {
			if a.Priority == 0 {
				best = a.Server
			}
		}
		return best != nil
	})
	return best
}

// WaitReady waits until every server that runs answers discovery of the slave, with
// priorities 0, 1, …: until they know of each other.
func (c *serverCluster) WaitReady(t testing.TB, erl testutil.Erlang, slave string) {
	t.Helper()
	testutil.Poll(t, formDeadline, "servers are to answer discovery of "+slave+", each with its rank", func() bool {
		c.failWhenEnded(t)
		var ranks []int
		for _, a := range c.discover(t, erl, slave) {
			ranks = append(ranks, int(a.Priority))
		}
		slices.Sort(ranks)
		if len(ranks) != len(c.running()) {
			return false
		}
		for i, rank := range ranks {
			if i != rank {
				return false
			}
		}
		return true
	})
}

// startBootable starts n servers that the slaves of prefix can boot from, with what a
// node needs to come up.
func startBootable(t testing.TB, erl testutil.Erlang, n int, prefix string, opts clusterOptions) *serverCluster {
	t.Helper()
	c := startCluster(t, n, opts)
	c.Publish(t, erl, "otp", "1", smallTree(t, erl))
	c.Allow(t, prefix)
	return c
}
