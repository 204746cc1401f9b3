package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// fakeErlang is for tests that boot no node: every server answers discovery of its ERTS
// when a tree that release has written is published for it.
var fakeErlang = testutil.Erlang{ERTS: "13.1.5"}

// acceptanceOnly skips what takes long and has a shorter relative in every run.
func acceptanceOnly(t testing.TB) {
	t.Helper()
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") == "" {
		t.Skip("takes long; runs with EBOOT_TEST_ACCEPTANCE=1")
	}
}

// startFake starts n servers that answer discovery of fakeErlang from 127/8 with app@1.
func startFake(t testing.TB, n int, settings ...string) *serverCluster {
	t.Helper()
	c := startCluster(t, n, clusterOptions{Roots: testRoots, Settings: settings})
	c.Publish(t, fakeErlang, "app", "1", release(t, "1"))
	c.Allow(t, "127.0.0.0/8")
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	return c
}

// answering are the servers that answer discovery, by address.
func (c *serverCluster) answering(t testing.TB, slave string) []*clusterServer {
	t.Helper()
	var servers []*clusterServer
	for _, a := range c.discover(t, fakeErlang, slave) {
		servers = append(servers, a.Server)
	}
	slices.SortFunc(servers, func(x, y *clusterServer) int { return strings.Compare(x.Name, y.Name) })
	return servers
}

// waitAnswering waits until these servers and no others answer discovery.
func (c *serverCluster) waitAnswering(t testing.TB, want ...*clusterServer) {
	t.Helper()
	want = slices.Clone(want)
	slices.SortFunc(want, func(x, y *clusterServer) int { return strings.Compare(x.Name, y.Name) })
	var got []*clusterServer
	testutil.Poll(t, formDeadline, fmt.Sprintf("%d servers and no other are to answer discovery", len(want)), func() bool {
		got = c.answering(t, "127.0.0.1")
		return slices.Equal(got, want)
	})
}

// member is what a server says of another one; ok is false when it does not know it.
func (s *clusterServer) member(t testing.TB, id string) (eboot.MemberDetail, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	m, err := s.Client.Members(ctx)
	if err != nil {
		return eboot.MemberDetail{}, false
	}
	i := slices.IndexFunc(m.Members, func(d eboot.MemberDetail) bool { return d.ID == id })
	if i < 0 {
		return eboot.MemberDetail{}, false
	}
	return m.Members[i], true
}

// waitRole waits until s says that the server id has one of the roles.
func (s *clusterServer) waitRole(t testing.TB, id string, roles ...string) {
	t.Helper()
	var latest eboot.MemberDetail
	defer func() {
		if t.Failed() {
			t.Logf("%s says of %s: %+v", s.Name, id, latest)
		}
	}()
	testutil.Poll(t, formDeadline, fmt.Sprintf("server %s is to be %v", id, roles), func() bool {
		latest, _ = s.member(t, id)
		return slices.Contains(roles, latest.Role)
	})
}

// startAlone starts a server that has no peer port, as one does whose operator has not
// agreed to traffic between servers without encryption. A later Start gives it one.
func (s *clusterServer) startAlone(t testing.TB) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.cluster.dir, s.Name+".yaml")
	write(t, file, fmt.Sprintf("data_dir: %s\ncluster: {name: test, expect: 1}\nboot: {bind: [%s], roots: [%s]}\napi: {bind: '%s:4380', socket: '%s', insecure: true}\n",
		s.DataDir, s.Address, strings.Join(s.cluster.opts.Roots, ", "), s.Address, s.socket()))
	s.Process = testnet.Start(s.cluster.t, testnet.Command{Args: []string{path, "agent", "--config", file}, Env: s.cluster.opts.Settings, Name: s.Name})
	testutil.Poll(t, formDeadline, "server is to lead itself", func() bool {
		status, ok := s.status()
		return ok && status.Role == "leader"
	})
}

// TestAcceptanceOneServerGrowsToThree lets a server that was alone be joined by two others: they
// get everything it has, vote after a while, and carry on when it dies.
func TestAcceptanceOneServerGrowsToThree(t *testing.T) {
	c := newCluster(t, 3, clusterOptions{Roots: testRoots})
	first, others := c.servers[0], c.servers[1:]
	first.Expect = 1
	first.startAlone(t)
	id := first.ID(t)
	ref := eboot.Ref{Name: "app", Version: "1"}
	publishTree(t, first.Client, fakeErlang, ref, release(t, "1"))
	allow(t, first.Client, "127.0.0.0/8")
	allow(t, first.Client, "10.1.2.3")
	whitelist, err := first.Client.Whitelist(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := first.status()

	first.Stop(t)
	first.Start(t)
	began := time.Now()
	for _, s := range others {
		s.Expect = 0
		s.Start(t)
	}
	for _, s := range others {
		first.waitRole(t, s.ID(t), "non-voter")
	}
	joined := time.Since(began)
	for _, s := range others {
		first.until(t, 10*time.Second, []string{s.id + ": does not vote yet: it has been alive for "}, "cluster", "members")
	}
	c.WaitFormed(t)
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	t.Logf("two servers joined one in %v and voted after %v", joined.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	if first.id != id {
		t.Errorf("the first server was %s and is %s", id, first.id)
	}
	for s, status := range c.statuses() {
		if status.Generation < before.Generation {
			t.Errorf("%s is at generation %d; the server alone was at %d", s.Name, status.Generation, before.Generation)
		}
		c.wantSame(t, s, whitelist, ref)
	}
	first.Kill()
	allowWithin(t, c.client, "10.9.9.9", 10*time.Second)
	c.waitAnswering(t, others...)
}

// wantSame fails the test unless s has that whitelist, and ref whole and as the bundle of
// channel stable.
func (c *serverCluster) wantSame(t testing.TB, s *clusterServer, whitelist []eboot.WhitelistEntry, ref eboot.Ref) {
	t.Helper()
	got, err := s.Client.Whitelist(t.Context())
	if err != nil || !slices.EqualFunc(got, whitelist, func(x, y eboot.WhitelistEntry) bool { return x.Prefix == y.Prefix && x.Channel == y.Channel }) {
		t.Errorf("%s has the whitelist %v (%v), want %v", s.Name, got, err, whitelist)
	}
	channel, err := s.Client.Channel(t.Context(), eboot.DefaultChannel)
	if err != nil || channel.Bundles[fakeErlang.ERTS] != ref {
		t.Errorf("channel stable on %s: %+v, %v", s.Name, channel, err)
	}
	if v, err := s.Client.VerifyBundle(t.Context(), ref, nil); err != nil || !v.OK() || v.Checked == 0 {
		t.Errorf("bundle %s on %s: %+v, %v", ref, s.Name, v, err)
	}
}

// allowWithin writes until it succeeds and returns how long that took; it fails the test
// after limit.
func allowWithin(t testing.TB, client *api.Client, prefix string, limit time.Duration) time.Duration {
	t.Helper()
	p, err := eboot.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for {
		_, err := client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: p, Channel: eboot.DefaultChannel})
		took := time.Since(began)
		switch {
		case err == nil && took <= limit:
			return took
		case err == nil:
			t.Errorf("a write succeeded after %v, want at most %v", took, limit)
			return took
		case took > max(2*limit, 20*time.Second):
			t.Fatalf("no write succeeded in %v: %v", took, err)
		}
	}
}

// TestAcceptanceTwoServersAreWarned: two are worse than one, and it is said.
func TestAcceptanceTwoServersAreWarned(t *testing.T) {
	c := startCluster(t, 2, clusterOptions{Roots: testRoots})
	const warning = "two servers vote: when either fails no change is possible until it is back"
	c.Run(t, "cluster", "members").want(t, 0).says(t, "warning: "+warning, "no server may fail")
	c.Run(t, "cluster", "status").want(t, 0).says(t, "warning: "+warning)
}

// TestAcceptanceRemovedServer removes the leader and a follower: each is told so, answers
// no slave, and joins again as a new server.
func TestAcceptanceRemovedServer(t *testing.T) {
	c := startFake(t, 3)
	for i := range trials(2) {
		victim := c.Leader(t)
		what := "leader"
		if i > 0 {
			victim, what = c.Followers(t)[0], "follower"
		}
		old, others := victim.ID(t), c.Others(victim)
		began := time.Now()
		c.Run(t, "cluster", "remove", old).want(t, 0).says(t, "removed "+old, "before: 1 server may fail", "now: no server may fail")
		took := time.Since(began)
		victim.until(t, 20*time.Second, []string{"was removed from the cluster", "eboot cluster reset"}, "cluster", "ready").want(t, 1)
		victim.Run(t, "cluster", "status").want(t, 0).says(t, "was removed from the cluster", "eboot cluster reset")
		c.waitAnswering(t, others...)
		told := time.Since(began)
		// It is alive, so it is listed: as one that is not let in.
		others[0].until(t, 10*time.Second, []string{old, "waiting", "it was removed from this cluster"}, "cluster", "members")
		allowWithin(t, others[0].Client, "10.0.0.1", 5*time.Second)

		// A restart changes nothing: it is still no member.
		victim.Stop(t)
		victim.Start(t)
		victim.until(t, 20*time.Second, []string{"was removed from the cluster", "eboot cluster reset"}, "cluster", "ready").want(t, 1)
		c.waitAnswering(t, others...)

		victim.Run(t, "cluster", "reset", "--data-dir", victim.DataDir, "--yes").want(t, 5) // it runs
		victim.Stop(t)
		victim.Run(t, "cluster", "reset", "--data-dir", victim.DataDir, "--yes").want(t, 0).says(t, old)
		victim.id = ""
		victim.Start(t)
		if now := victim.ID(t); now == old {
			t.Errorf("after the reset the server still is %s", now)
		}
		others[0].waitRole(t, victim.id, "non-voter", "voter", "leader")
		c.WaitReady(t, fakeErlang, "127.0.0.1") // its blobs stayed
		if trials(2) > 1 {
			c.WaitFormed(t)
		}
		t.Logf("%s removed in %v; after %v it said so and answered no slave; reset, it joined as a new server", what, took.Round(time.Millisecond), told.Round(time.Millisecond))
	}
}

var replaceAdvice = regexp.MustCompile("`eboot (cluster remove --replace \\S+)`")

// TestAcceptanceWipedServer: a server that has its id and no log is refused, with the way
// out; one with nothing at the address of another waits until the operator says that it replaces it.
func TestAcceptanceWipedServer(t *testing.T) {
	c := startFake(t, 3)
	victim := c.Followers(t)[0]
	others := c.Others(victim)
	old := victim.ID(t)
	wayOut := []string{"its raft log was lost or wiped", "eboot cluster reset", "eboot cluster remove --replace " + old}

	for i, gone := range []func(name string) bool{
		func(name string) bool { return name == "raft" },
		func(name string) bool { return name != "node-id" },
	} {
		if i == trials(2) {
			break
		}
		victim.Kill()
		victim.wipe(t, gone)
		victim.Start(t)
		victim.until(t, 20*time.Second, wayOut, "cluster", "status").want(t, 0)
		victim.until(t, 20*time.Second, wayOut, "cluster", "ready").want(t, 1)
		c.waitAnswering(t, others...)
		if d, _ := others[0].member(t, old); d.Ready {
			t.Errorf("a server without its log is listed as ready: %+v", d)
		}
		victim.Run(t, "slave", "allow", "10.0.0.2").want(t, 2, 5)
	}

	victim.Kill()
	victim.wipe(t, func(string) bool { return true })
	victim.id = ""
	victim.Start(t)
	id := victim.ID(t)
	waiting := others[0].until(t, 20*time.Second, []string{id, "waiting", "eboot cluster remove --replace " + old}, "cluster", "members").want(t, 0)
	victim.until(t, 20*time.Second, []string{"eboot cluster remove --replace " + old}, "cluster", "status")
	advice := replaceAdvice.FindStringSubmatch(waiting.Out)
	if advice == nil {
		t.Fatalf("no command to replace it: %v", waiting)
	}
	run(t, others, strings.Fields(advice[1])...).want(t, 0).says(t, "removed "+old)
	others[0].waitRole(t, id, "non-voter", "voter")
	if _, ok := others[0].member(t, old); ok {
		t.Errorf("%s still lists the server that was replaced", others[0].Name)
	}
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	if trials(2) > 1 {
		c.WaitFormed(t)
	}
}

// wipe removes the entries of the data directory whose name is doomed.
func (s *clusterServer) wipe(t testing.TB, doomed func(name string) bool) {
	t.Helper()
	entries, err := os.ReadDir(s.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if doomed(e.Name()) {
			if err := os.RemoveAll(filepath.Join(s.DataDir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAcceptanceAddressChange gives other addresses to all servers at once, then to one of
// them: they find together with nothing done but the restart.
func TestAcceptanceAddressChange(t *testing.T) {
	c := startFake(t, 3)
	c.changeAddresses(t, "127.0.0.1")
}

// TestAcceptanceAddressChangeOfHosts does so with hosts whose old addresses are silent.
func TestAcceptanceAddressChangeOfHosts(t *testing.T) {
	acceptanceOnly(t)
	network := testnet.New(t, 4)
	c := startCluster(t, 3, clusterOptions{Network: network, Roots: testRoots})
	c.Publish(t, fakeErlang, "app", "1", release(t, "1"))
	c.Allow(t, "10.0.0.0/8")
	slave := network.Host(3).Address.String()
	c.WaitReady(t, fakeErlang, slave)
	c.changeAddresses(t, slave)
}

func (c *serverCluster) changeAddresses(t *testing.T, slave string) {
	t.Helper()
	status, _ := c.servers[0].status()
	members := ids(status)
	rounds := [][]*clusterServer{c.servers}
	if trials(2) > 1 { // others wait some seconds before they believe that one of them has moved
		rounds = [][]*clusterServer{c.servers, c.Followers(t)[:1], {c.Leader(t)}, c.servers}
	}
	for _, moved := range rounds {
		for _, s := range moved {
			s.Kill()
		}
		for _, s := range moved {
			s.Move(t)
		}
		began := time.Now()
		for _, s := range moved {
			s.Start(t)
		}
		c.WaitFormed(t)
		formed := time.Since(began)
		// The configuration follows: it is what a server goes by that gossip does not know.
		testutil.Poll(t, formDeadline, "members are to have the new addresses", func() bool {
			for s, status := range c.statuses() {
				for _, m := range status.Servers {
					if m.ID == status.Server && m.Address != s.Address+":4381" {
						return false
					}
				}
			}
			return true
		})
		c.WaitReady(t, fakeErlang, slave)
		allowWithin(t, c.client, "10.0.0.3", 5*time.Second)
		if status, _ = c.servers[0].status(); !slices.Equal(ids(status), members) {
			t.Errorf("members were %v and are %v", members, ids(status))
		}
		t.Logf("%d of %d servers at new addresses agreed after %v", len(moved), len(c.servers), formed.Round(time.Millisecond))
	}
}

func ids(status eboot.ClusterStatus) []string {
	var list []string
	for _, m := range status.Servers {
		list = append(list, m.ID)
	}
	slices.Sort(list)
	return list
}

// TestAcceptanceDrainAndTransfer: a drained server answers no slave, also after a restart, and votes
// and copies on; leadership goes where it is told.
func TestAcceptanceDrainAndTransfer(t *testing.T) {
	c := startFake(t, 3)
	leader, drained := c.Leader(t), c.Followers(t)[0]
	others := c.Others(drained)
	c.Run(t, "cluster", "drain", drained.ID(t)).want(t, 0).says(t, "drained")
	began := time.Now()
	c.waitAnswering(t, others...)
	t.Logf("a drained server was silent after %v at most", time.Since(began).Round(time.Millisecond))
	drained.Run(t, "cluster", "ready").want(t, 1).says(t, "drained", "eboot cluster undrain")
	if d, _ := leader.member(t, drained.ID(t)); !d.Drained || !d.Voter {
		t.Errorf("the drained server is %+v", d)
	}
	for _, a := range c.discover(t, fakeErlang, "127.0.0.1") {
		if int(a.Priority) >= len(others) {
			t.Errorf("%s has rank %d of %d", a.Server.Name, a.Priority, len(others))
		}
	}
	drained.Stop(t)
	drained.Start(t)
	c.WaitFormed(t)
	drained.until(t, 10*time.Second, []string{"drained"}, "cluster", "ready").want(t, 1)
	c.waitAnswering(t, others...)
	drained.Run(t, "cluster", "undrain").want(t, 0)
	c.WaitReady(t, fakeErlang, "127.0.0.1")

	leader = c.Leader(t)
	to := c.Others(leader)[0]
	r := c.Run(t, "cluster", "transfer", to.ID(t)).want(t, 0)
	r.says(t, "leader is "+to.ID(t))
	if got := c.Leader(t); got != to {
		t.Errorf("leadership went to %s, want %s", got.Name, to.Name)
	}
	c.Run(t, "cluster", "transfer").want(t, 0).says(t, "leader is")
	if got := c.Leader(t); got == to {
		t.Errorf("leadership stayed with %s", got.Name)
	}
	t.Logf("leadership was handed over in %v", r.Took.Round(time.Millisecond))
}
