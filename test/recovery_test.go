package test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// writePatience is how long a write that cannot be done may keep its author waiting: the
// 3 s that are promised, and what the start of a process takes on a busy machine.
const writePatience = 3*time.Second + 500*time.Millisecond

// TestAcceptanceQuorumLost kills two of three servers. Slaves boot from the third, writes
// fail soon and say who is missing, reads say that they may be old.
func TestAcceptanceQuorumLost(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	const slave = "127.0.0.1"
	c.WaitReady(t, erl, slave)
	left := c.servers[2]
	lost := c.Others(left)
	lostIDs := []string{lost[0].ID(t), lost[1].ID(t)}
	leftID := left.ID(t)
	for _, s := range lost {
		s.Kill()
	}

	// At once, before anybody has noticed: whether it was proposed is not known.
	first := c.Run(t, "slave", "allow", "10.0.0.1").want(t, 2, 7)
	first.says(t, lostIDs...)
	if first.Took > writePatience {
		t.Errorf("a write without a majority took %v: %v", first.Took, first)
	}
	chosen, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
	if chosen != left {
		t.Errorf("the slave booted from %s", chosen.Name)
	}
	// And when gossip has: the text names them, and nothing was proposed.
	left.until(t, 20*time.Second, lostIDs, "cluster", "ready").want(t, 1)
	var worst time.Duration
	writes := [][]string{{"slave", "allow", "10.0.0.2"}, {"channel", "set", "stable", "otp@1"}, {"cluster", "drain", leftID}, {"cluster", "remove", lostIDs[0]}}
	for _, args := range writes[:trials(len(writes))] {
		for _, servers := range [][]*clusterServer{c.servers, {left}}[:trials(2)] {
			r := run(t, servers, args...).want(t, 2, 7)
			r.says(t, lostIDs...)
			if worst = max(worst, r.Took); r.Took > writePatience {
				t.Errorf("a write without a majority took %v: %v", r.Took, r)
			}
		}
	}
	reads := [][]string{{"slave", "list"}, {"channel", "list"}, {"bundle", "list"}}
	for _, args := range reads[:trials(len(reads))] {
		flagged := c.Run(t, args...).want(t, 0)
		flagged.says(t, "warning: this may not be the newest", lostIDs[0], lostIDs[1])
		asked := left.Run(t, append(args, "--stale")...).want(t, 0)
		if asked.Err != "" || asked.Out != flagged.Out || asked.Out == "" {
			t.Errorf("whoever asks for what the server knows gets the same and no warning: %v%v", asked, flagged)
		}
	}
	_, later := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Embedded: true})
	t.Logf("majority lost: slaves booted in %v at once and %v later, a write failed after %v at once and %v at most later; %v",
		exit.Took.Round(time.Millisecond), later.Took.Round(time.Millisecond), first.Took.Round(time.Millisecond), worst.Round(time.Millisecond), strings.TrimSpace(first.Err))
}

// TestAcceptanceRecovery loses two of three servers for good: the third is made a cluster
// of its own, with all it has, and new servers join it.
func TestAcceptanceRecovery(t *testing.T) {
	acceptanceOnly(t)
	c := startFake(t, 3)
	left := c.servers[2]
	lost := c.Others(left)
	lostIDs := []string{lost[0].ID(t), lost[1].ID(t)}
	leftID := left.ID(t)
	for _, s := range lost {
		s.Kill()
	}
	peers := filepath.Join(t.TempDir(), "peers.json")
	list, err := json.Marshal([]map[string]any{{"id": leftID, "address": left.Address + ":4381"}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, peers, string(list))
	recovery := []string{"cluster", "recover", "--data-dir", left.DataDir, "--peers", peers}
	left.Run(t, append(recovery, "--accept-data-loss")...).want(t, 5) // it runs
	left.Stop(t)
	left.Run(t, "cluster", "recover", "--data-dir", left.DataDir).want(t, 0).says(t, append(lostIDs, leftID)...)
	left.Run(t, recovery...).want(t, 3).says(t, "--accept-data-loss")
	left.Run(t, append(recovery, "--accept-data-loss")...).want(t, 0).says(t, "recovered; start it", "eboot cluster reset")
	began := time.Now()
	left.Start(t)
	c.waitAnswering(t, left)
	answered := time.Since(began)
	allowWithin(t, left.Client, "10.0.0.3", 15*time.Second)
	t.Logf("recovered, it answered discovery %v after its start and took a write after %v", answered.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	left.Run(t, "slave", "list", "--entries").want(t, 0).says(t, "127.0.0.0/8", "10.0.0.3")

	// One of the two turns up again, with the log of before: it is refused.
	lost[0].Start(t)
	lost[0].until(t, 20*time.Second, []string{"eboot cluster reset"}, "cluster", "ready").want(t, 1)
	c.waitAnswering(t, left)
	lost[0].Stop(t)
	lost[0].Run(t, "cluster", "reset", "--data-dir", lost[0].DataDir, "--yes").want(t, 0)
	lost[1].wipe(t, func(string) bool { return true })
	for _, s := range lost {
		s.id = ""
		s.Start(t)
	}
	for i, s := range lost {
		if now := s.ID(t); now == lostIDs[i] {
			t.Errorf("a new server is %s again", now)
		}
	}
	c.WaitFormed(t)
	c.WaitReady(t, fakeErlang, "127.0.0.1")
	whitelist, err := left.Client.Whitelist(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		c.wantSame(t, s, whitelist, eboot.Ref{Name: "app", Version: "1"})
	}
	left.Kill()
	allowWithin(t, c.client, "10.0.0.4", 10*time.Second)
}

// TestAcceptancePowerCut kills all servers at the same time and starts one: slaves boot
// from it, though there is no leader and none can be had.
func TestAcceptancePowerCut(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{})
	c.WaitReady(t, erl, "127.0.0.1")
	want := map[*clusterServer]eboot.ClusterStatus{}
	testutil.Poll(t, 20*time.Second, "servers are to write their serving caches", func() bool {
		want = c.statuses()
		for _, status := range want {
			if status.CachedIndex < status.AppliedIndex {
				return false
			}
		}
		return len(want) == len(c.servers)
	})
	for i := range trials(3) {
		for _, s := range c.servers {
			s.Kill()
		}
		one := c.servers[i]
		began := time.Now()
		one.Start(t)
		testutil.Poll(t, 20*time.Second, "the one server is to answer discovery", func() bool { return len(c.discover(t, erl, "127.0.0.1")) == 1 })
		answered := time.Since(began)
		chosen, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Embedded: i == 1})
		if chosen != one {
			t.Errorf("the slave booted from %s", chosen.Name)
		}
		status, _ := one.status()
		if status.Leader != "" || status.Generation != want[one].Generation {
			t.Errorf("the one server has leader %q and generation %d, want none and %d", status.Leader, status.Generation, want[one].Generation)
		}
		if r := one.Run(t, "slave", "allow", "10.0.0.1").want(t, 2, 7); r.Took > writePatience {
			t.Errorf("a write without a majority took %v: %v", r.Took, r)
		}
		for _, s := range c.Others(one) {
			s.Start(t)
		}
		c.WaitFormed(t)
		t.Logf("power cut: %s alone answered discovery %v after its start (and at most 200 ms less) and booted a slave in %v",
			one.Name, answered.Round(time.Millisecond), exit.Took.Round(time.Millisecond))
	}
}

// TestAcceptanceLeaderKilled kills the leader again and again: writes succeed again
// within 5 s.
func TestAcceptanceLeaderKilled(t *testing.T) {
	c := startCluster(t, 3, clusterOptions{Roots: testRoots})
	n := trials(30)
	var took []time.Duration
	for i := range n {
		leader := c.Leader(t)
		allow(t, c.client, fmt.Sprintf("10.1.%d.1", i))
		leader.Kill()
		took = append(took, allowWithin(t, c.client, fmt.Sprintf("10.2.%d.1", i), 5*time.Second))
		leader.Start(t)
		c.WaitFormed(t)
	}
	entries, err := c.client.Whitelist(t.Context())
	if err != nil || len(entries) != 2*n {
		t.Errorf("the whitelist has %d entries (%v), %d writes were acknowledged", len(entries), err, 2*n)
	}
	t.Logf("%d kills of the leader: a write succeeded after %v (median; at most %v)", n, median(took), slices.Max(took).Round(time.Millisecond))
}

// filePorts are those that file services listen on by default.
func filePorts() (ports []uint16) {
	for port := uint16(4368); port < 4380; port++ {
		ports = append(ports, port)
	}
	return ports
}

// TestAcceptanceStuckSlave: every server answers discovery while TCP is refused, which a
// stock node remembers of each of them for ever. It boots all the same when TCP is back.
func TestAcceptanceStuckSlave(t *testing.T) {
	erl := testutil.RequireErl(t)
	network := testnet.New(t, 4)
	c := startBootable(t, erl, 3, "10.0.0.0/8", clusterOptions{Network: network})
	host := network.Host(3)
	slave := host.Address.String()
	c.WaitReady(t, erl, slave)
	var took []time.Duration
	for i := range trials(5) {
		for _, s := range c.servers {
			network.Reject(s.host, filePorts()...)
		}
		before := c.answered(t)
		node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot, Namespace: host.Namespace, Embedded: i%2 == 1,
			Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`})
		testutil.Poll(t, bootDeadline, "node is to be answered by every server and refused by all, several times", func() bool {
			if node.Exited() {
				t.Fatalf("node ended while TCP was refused:\n%s", node.Output())
			}
			for s, n := range c.answered(t) {
				if n < before[s]+4 {
					return false
				}
			}
			return true
		})
		network.Heal()
		began := time.Now()
		checkNode(t, node, 3*bootDeadline)
		took = append(took, time.Since(began))
	}
	if worst := slices.Max(took); worst > 5*time.Second {
		t.Errorf("a slave that all servers had refused took %v to boot after they were back", worst)
	}
	t.Logf("%d slaves that every server had answered and refused booted in %v after that (median; at most %v)", len(took), median(took), slices.Max(took).Round(time.Millisecond))
}

var answersLine = regexp.MustCompile(`(?m)^eboot_discovery_answers_total (\d+)$`)

// answered is how many discoveries each server has answered.
func (c *serverCluster) answered(t testing.TB) map[*clusterServer]int {
	t.Helper()
	answered := map[*clusterServer]int{}
	for _, s := range c.servers {
		text := s.scrape(t)
		found := answersLine.FindStringSubmatch(text)
		if found == nil {
			t.Fatalf("metrics of %s: %s", s.Name, text)
		}
		var err error
		if answered[s], err = strconv.Atoi(found[1]); err != nil {
			t.Fatal(err)
		}
	}
	return answered
}

// scrape returns the metrics of a server, over its socket.
func (s *clusterServer) scrape(t testing.TB) string {
	t.Helper()
	return string(s.get(t, "/metrics"))
}

// TestAcceptanceStuckSlaveOfOTP shows what eboot is measured against: with OTP's own
// server such a node hangs.
func TestAcceptanceStuckSlaveOfOTP(t *testing.T) {
	acceptanceOnly(t)
	erl := testutil.RequireErl(t)
	network := testnet.New(t, 2)
	server, host := network.Host(0), network.Host(1)
	testutil.StartBootServer(t, erl, testutil.BootServerOptions{Namespace: server.Namespace, Whitelist: []string{host.Address.String()}})
	opts := testutil.SlaveOptions{Hosts: []string{server.Address.String()}, Root: erl.Root, Namespace: host.Namespace, Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`}
	checkNode(t, testutil.StartSlave(t, erl, opts), bootDeadline)

	network.Reject(server)
	node := testutil.StartSlave(t, erl, opts)
	watch := func(reason string, d time.Duration) {
		began := time.Now()
		testutil.Poll(t, d+time.Minute, reason, func() bool {
			if node.Exited() {
				t.Fatalf("node ended, against all experience with this server:\n%s", node.Output())
			}
			return time.Since(began) > d
		})
	}
	watch("node is to be refused", 5*time.Second)
	network.Heal()
	const hangs = 30 * time.Second
	watch("node is to hang though the server is well", hangs)
	t.Logf("with OTP's erl_boot_server a slave that was refused once still hung after %v", hangs)
}
