package bench

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// groupAddresses are those of a group; a server that is alone may run beside it.
var groupAddresses = []string{"127.0.0.43", "127.0.0.44", "127.0.0.45"}

// groupDeadline is how long servers may take to agree. They take a few seconds.
const groupDeadline = time.Minute

// group is servers that belong together, one at each of groupAddresses.
type group struct {
	tb      testing.TB
	roots   []string
	servers []*server
}

// startGroup starts new servers that expect each other, allows 127.0.0.0/8 and waits
// until all of them are ready. They end with the benchmark.
func startGroup(tb testing.TB, roots ...string) *group {
	tb.Helper()
	g := &group{tb: tb, roots: roots}
	for i := range groupAddresses {
		g.servers = append(g.servers, g.launch(i, newDir(tb)))
	}
	tb.Cleanup(g.stop) // together, before each for itself
	g.waitReady()
	g.leader().allowSlaves()
	return g
}

// launch starts the server at one of the addresses, with the data of dir.
func (g *group) launch(i int, dir string) *server {
	g.tb.Helper()
	return launch(g.tb, serverOptions{Dir: dir, Roots: g.roots, Address: groupAddresses[i], Group: groupAddresses})
}

// restart stops all servers and starts them with the data they have.
func (g *group) restart() {
	g.tb.Helper()
	g.stop()
	for i, s := range g.servers {
		g.servers[i] = g.launch(i, s.dir)
	}
	g.tb.Cleanup(g.stop)
	g.waitReady()
}

// stop stops all servers at the same time. It may be called repeatedly.
func (g *group) stop() {
	var all sync.WaitGroup
	for _, s := range g.servers {
		all.Go(s.stop)
	}
	all.Wait()
}

func (g *group) pids() []int {
	var pids []int
	for _, s := range g.servers {
		pids = append(pids, s.pid())
	}
	return pids
}

// waitReady waits until every server is ready, all have a vote and all name one leader.
func (g *group) waitReady() {
	g.tb.Helper()
	testutil.Poll(g.tb, groupDeadline, "the servers are to agree on a leader and to be ready", func() bool {
		leader := ""
		for _, s := range g.servers {
			s.alive()
			status, err := s.client.Status(g.tb.Context())
			if err != nil || !status.Readiness.Ready || status.Leader == "" || leader != "" && status.Leader != leader {
				return false
			}
			leader = status.Leader
			if len(status.Servers) != len(g.servers) || slices.ContainsFunc(status.Servers, func(m eboot.Member) bool { return !m.Voter }) {
				return false
			}
		}
		return true
	})
}

// leader is the server that leads.
func (g *group) leader() *server {
	g.tb.Helper()
	var leader *server
	testutil.Poll(g.tb, groupDeadline, "one of the servers is to lead", func() bool {
		for _, s := range g.servers {
			if status, err := s.client.Status(g.tb.Context()); err == nil && status.Role == "leader" {
				leader = s
			}
		}
		return leader != nil
	})
	return leader
}

// followers are the servers that do not lead.
func (g *group) followers() []*server {
	g.tb.Helper()
	leader := g.leader()
	return slices.DeleteFunc(slices.Clone(g.servers), func(s *server) bool { return s == leader })
}

// publishOTP publishes the installed OTP through the leader for all slaves, and waits
// until all servers serve it.
func (g *group) publishOTP(erl testutil.Erlang) {
	g.tb.Helper()
	g.leader().publish("otp", "1", erl.Root, "--channel", eboot.DefaultChannel)
	waitHeld(g.tb, "otp@1", g.servers...)
	for _, s := range g.servers {
		s.filePort(erl)
	}
}

// bundle is what the server knows of a bundle; ok is false while that is nothing.
func (s *server) bundle(ref string) (found api.BundleDetail, ok bool) {
	bundles, err := s.client.Bundles(s.tb.Context())
	if err != nil {
		return found, false
	}
	i := slices.IndexFunc(bundles, func(b api.BundleDetail) bool { return b.Ref().String() == ref })
	if i < 0 {
		return found, false
	}
	return bundles[i], true
}

// waitHeld waits until each of servers shows the bundle and knows that all of them have
// all of it on their disks.
func waitHeld(tb testing.TB, ref string, servers ...*server) {
	tb.Helper()
	testutil.Poll(tb, groupDeadline, "the servers are to hold "+ref, func() bool {
		for _, s := range servers {
			s.alive()
			if b, ok := s.bundle(ref); !ok || len(b.Holders) < len(servers) {
				return false
			}
		}
		return true
	})
}

// target is the file services of all servers, which take connections in turn.
func (g *group) target(erl testutil.Erlang, slave string) target {
	g.tb.Helper()
	var each []target
	for _, s := range g.servers {
		each = append(each, s.target(erl, slave))
	}
	var next atomic.Uint64
	return target{name: "eboot, a group", pids: g.pids(), dial: func() (net.Conn, error) {
		return each[next.Add(1)%uint64(len(each))].dial()
	}}
}
