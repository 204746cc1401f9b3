package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// three forms a cluster of a, b and c that has taken one command.
func three(t *testing.T) (*world, []*node) {
	t.Helper()
	w := newWorld(t)
	nodes := w.group(3, "a", "b", "c")
	startAll(t, nodes...)
	w.wantMembers(nodes, "a", "b", "c")
	w.write("one", nodes...)
	return w, nodes
}

func followers(leader *node, nodes []*node) []*node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == leader })
}

func (n *node) remove(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return n.server().Remove(ctx, id)
}

func (n *node) replace(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return n.server().Replace(ctx, id)
}

func (n *node) wantWaiting(id, reason string) {
	n.w.t.Helper()
	var last []Candidate
	defer func() {
		if n.w.t.Failed() {
			n.w.t.Logf("waiting: %+v", last)
		}
	}()
	waitFor(n.w.t, id+" waits: "+reason, func() bool {
		last = n.server().Waiting()
		return slices.ContainsFunc(last, func(c Candidate) bool { return c.ID == id && strings.Contains(c.Reason, reason) })
	})
}

func TestAllAddressesChange(t *testing.T) {
	mayMove(t)
	t.Parallel()
	w, nodes := three(t)
	for _, n := range nodes {
		n.stop()
		n.move()
	}
	startAll(t, nodes...)
	w.write("two", nodes...)
	w.wantMembers(nodes, "a", "b", "c") // with their new addresses
}

// Each server comes back at the address of another: no message and no vote may
// reach the wrong one.
func TestAddressesAreSwapped(t *testing.T) {
	mayMove(t)
	for name, to := range map[string][3]int{"in a circle": {1, 2, 0}, "two of three": {1, 0, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, nodes := three(t)
			var ports []string
			for _, n := range nodes {
				n.stop()
				ports = append(ports, n.port)
			}
			for i, n := range nodes {
				n.port = ports[to[i]]
			}
			startAll(t, nodes...)
			w.write("two", nodes...)
			w.wantMembers(nodes, "a", "b", "c")
		})
	}
}

// A server comes back at the address of one that is away, which then comes
// back elsewhere.
func TestAddressOfAServerThatIsAway(t *testing.T) {
	mayMove(t)
	t.Parallel()
	w, nodes := three(t)
	nodes[0].stop()
	nodes[1].stop()
	nodes[1].port = nodes[0].port
	nodes[1].start()
	w.write("two", nodes[1:]...)
	waitFor(t, "an address that is nobody's", func() bool {
		a, _ := find(nodes[1].server().Status().Servers, "a")
		b, _ := find(nodes[1].server().Status().Servers, "b")
		return a.Address == "a.invalid:1" && b.Address == nodes[1].address
	})
	nodes[0].move()
	nodes[0].start()
	w.wantMembers(nodes, "a", "b", "c")
	w.write("three", nodes...)
}

func TestRemove(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	rest := followers(leader, nodes)
	if err := leader.remove("nobody"); !errors.Is(err, eboot.ErrNotFound) {
		t.Error(err)
	}
	if err := rest[0].remove(rest[1].id); !errors.Is(err, eboot.ErrNoLeader) {
		t.Error(err)
	}
	gone := rest[1]
	if err := leader.remove(gone.id); err != nil {
		t.Fatal(err)
	}
	stay := []*node{leader, rest[0]}
	w.wantMembers(stay, leader.id, rest[0].id)
	leader.wantWaiting(gone.id, "it was removed from this cluster")
	gone.wantStanding(eboot.ErrConflict, "was removed from the cluster")
	w.write("two", stay...)
	w.wantMembers(stay, leader.id, rest[0].id)

	// The other one is away: without it there is no majority, but it can go.
	w.mu.Lock()
	w.removed[gone.id] = true // as the state says by now
	w.mu.Unlock()
	gone.stop()
	w.rejoin(gone.id)
	gone.start()
	gone.wantStanding(eboot.ErrConflict, "was removed from the cluster")
}

func TestRemoveKeepsAMajority(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	rest := followers(leader, nodes)
	rest[0].stop()
	if err := leader.remove(rest[1].id); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), rest[0].id+" at ") {
		t.Errorf("the only other one alive: %v", err)
	}
	if err := leader.remove(leader.id); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("the leader: %v", err)
	}
	if err := leader.remove(rest[0].id); err != nil { // the dead one
		t.Fatal(err)
	}
	w.write("two", leader, rest[1])

	// It was away when it was removed, and is told by the others.
	rest[0].start()
	rest[0].wantStanding(eboot.ErrConflict, "was removed from the cluster, which now is")
	leader = w.leader(leader, rest[1])
	last := followers(leader, []*node{nodes[0], nodes[1], nodes[2]})
	for _, n := range last {
		if err := leader.remove(n.id); err != nil && !errors.Is(err, eboot.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if err := leader.remove(leader.id); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "last voter") {
		t.Errorf("the last: %v", err)
	}
	w.write("three", leader)
}

func TestRemoveTheLeader(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	rest := followers(leader, nodes)
	w.mu.Lock()
	w.removed[leader.id] = true
	w.mu.Unlock()
	if err := leader.remove(leader.id); err != nil {
		t.Fatal(err)
	}
	w.write("two", rest...)
	w.wantMembers(rest, rest[0].id, rest[1].id)
	leader.wantStanding(eboot.ErrConflict, "was removed")
	if got := leader.server().Waiting(); got != nil {
		t.Errorf("no leader any more: %+v", got)
	}
}

// The disk of a server is lost, with its id and without.
func TestWipedServer(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	lost := followers(leader, nodes)[0]
	stay := followers(lost, nodes)
	lost.stop()
	lost.wipe()
	lost.start()
	lost.wantStanding(eboot.ErrConflict, "eboot cluster remove --replace "+lost.id)
	w.write("two", stay...)
	if got := lost.server().Status(); got.Term != 0 || got.LastIndex != 0 {
		t.Errorf("the wiped server was let in: %+v", got)
	}
	leader = w.leader(stay...)
	if err := leader.replace(lost.id); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "is alive") {
		t.Errorf("it is still there: %v", err)
	}
	lost.stop()
	if err := leader.replace(lost.id); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "no other server waits") {
		t.Errorf("nobody is there: %v", err)
	}

	fresh := w.node("fresh", 3)
	fresh.port = lost.port
	fresh.start()
	leader.wantWaiting("fresh", "remove --replace "+lost.id)
	fresh.wantStanding(eboot.ErrConflict, "remove --replace "+lost.id)
	if err := leader.replace("nobody"); !errors.Is(err, eboot.ErrNotFound) {
		t.Error(err)
	}
	if err := leader.replace(lost.id); err != nil {
		t.Fatal(err)
	}
	all := append(stay, fresh)
	w.wantMembers(all, stay[0].id, stay[1].id, "fresh")
	w.write("three", all...)
	wantItems(t, *fresh.server(), "one", "two", "three")
}

// What a leader proposes while it is cut off comes to nothing.
func TestMinorityChangesNothing(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	rest := followers(leader, nodes)
	d := w.node("d", 0)
	d.complete = false
	d.start()
	w.wantMembers(append(slices.Clone(nodes), d), "a", "b", "c", "-d")

	w.isolate(leader.id)
	w.mu.Lock() // the leader still sees d, which would make it a voter
	d.complete = true
	delete(w.cut, [2]string{leader.id, "d"})
	delete(w.cut, [2]string{"d", leader.id})
	w.mu.Unlock()
	w.changed.notify()
	for _, id := range []string{rest[0].id, "d", leader.id} {
		if err := leader.remove(id); err == nil {
			t.Errorf("a leader without a majority removed %s", id)
		}
	}
	others := append(slices.Clone(rest), d)
	next := w.leader(others...)
	w.write("two", others...)
	w.wantMembers(others, "a", "b", "c", "-d")
	waitFor(t, "the next leader does not make d a voter while one is away", func() bool {
		return slices.ContainsFunc(next.server().Learning(), func(c Candidate) bool {
			return c.ID == "d" && strings.Contains(c.Reason, "eboot cluster remove "+leader.id)
		})
	})
	leader.wantStanding(eboot.ErrNoLeader, "are needed; missing: ")
	if alive, needed := leader.server().Quorum(); alive >= needed {
		t.Errorf("%d alive, %d needed", alive, needed)
	}
	if next == leader {
		t.Error("the leader leads on")
	}
	w.rejoin(leader.id)
	w.wantMembers(append(others, leader), "a", "b", "c", "d")
	w.write("three", append(others, leader)...)
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	for _, n := range nodes {
		leader := w.leader(nodes...)
		if err := leader.server().Transfer(within10s(t), n.id); err != nil {
			t.Fatalf("from %s to %s: %v", leader.id, n.id, err)
		}
		if now := w.leader(nodes...); now != n {
			t.Errorf("%s leads, not %s", now.id, n.id)
		}
	}
	leader := w.leader(nodes...)
	if err := leader.server().Transfer(within10s(t), ""); err != nil {
		t.Fatal(err)
	}
	next := w.leader(nodes...)
	if next == leader {
		t.Error("the same one leads")
	}
	w.write("two", nodes...)

	if err := leader.server().Transfer(within10s(t), ""); !errors.Is(err, eboot.ErrNoLeader) {
		t.Errorf("by a follower: %v", err)
	}
	if err := next.server().Transfer(within10s(t), "nobody"); !errors.Is(err, eboot.ErrNotFound) {
		t.Error(err)
	}
	d := w.node("d", 0)
	d.complete = false
	d.start()
	w.wantMembers(append(slices.Clone(nodes), d), "a", "b", "c", "-d")
	if err := next.server().Transfer(within10s(t), "d"); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("to a non-voter: %v", err)
	}
	leader.stop()
	if err := next.server().Transfer(within10s(t), leader.id); !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("to one that is away: %v", err)
	}
}

// The chosen one does not answer: this server leads on after a bounded time.
func TestTransferToASilentServer(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	to := followers(leader, nodes)[0]
	w.mu.Lock() // Raft cannot reach it, gossip does
	w.deaf = to.id
	for conn, ends := range w.conns {
		if slices.Contains(ends[:], to.id) {
			conn.Close()
		}
	}
	w.mu.Unlock()
	began := time.Now()
	err := leader.server().Transfer(t.Context(), to.id)
	if took := time.Since(began); took > 4*quick || !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("after %v: %v", took, err)
	}
	w.mu.Lock()
	w.deaf = ""
	w.mu.Unlock()
	w.write("two", nodes...)
}

func TestTransferAlone(t *testing.T) {
	t.Parallel()
	s := openLeader(t, optionsOf(t, t.TempDir()))
	if err := s.Transfer(within10s(t), ""); !errors.Is(err, eboot.ErrUnavailable) {
		t.Error(err)
	}
	if err := s.Transfer(within10s(t), "server-1"); err != nil {
		t.Error(err)
	}
	s.mustApply(t, "one")
}

// Raft does not tell the index of a configuration; the optimistic lock of a change needs it.
func TestIndexOfTheConfiguration(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...).server()
	index, servers := leader.committed()
	if index == 0 || len(servers) != 3 {
		t.Fatalf("%d %v", index, servers)
	}
	if raftSays := leader.raft.GetConfiguration().Index(); raftSays != 0 {
		t.Fatalf("Raft tells %d now: machine.configuration may not be needed any more", raftSays)
	}
	err := leader.changeMembers(within10s(t), index-1, addNonvoter("x", "127.0.0.1:1"))
	if !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("a change of an old configuration: %v", err)
	}
	err = leader.raft.RemoveServer("c", index+1, time.Second).Error()
	if err == nil || !strings.Contains(err.Error(), "configuration changed since") {
		t.Errorf("Raft: %v", err)
	}
	if err := leader.Snapshot(); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes { // from a snapshot it is known too
		n.stop()
	}
	startAll(t, nodes...)
	for _, n := range nodes {
		if again, _ := n.server().committed(); again != index {
			t.Errorf("%s: %d after a restart, %d before", n.id, again, index)
		}
	}
	w.leader(nodes...)
}

func TestServerAddresses(t *testing.T) {
	b := &book{}
	b.peers.Store(&[]Peer{{ID: "b", Address: "10.0.0.2:4381"}})
	a := &addresses{own: Peer{ID: "a", Address: "10.0.0.1:4381"}, book: b}
	for id, want := range map[raft.ServerID]raft.ServerAddress{"a": "10.0.0.1:4381#a", "b": "10.0.0.2:4381#b"} {
		if got, err := a.ServerAddr(id); got != want || err != nil {
			t.Errorf("%s: %s %v", id, got, err)
		}
	}
	if _, err := a.ServerAddr("c"); !errors.Is(err, eboot.ErrNotFound) {
		t.Error(err)
	}
	s := open(t, optionsOf(t, t.TempDir()))
	a.raft.Store(s.raft)
	if got, err := a.ServerAddr("server-1"); got != "127.0.0.1:4381#server-1" || err != nil {
		t.Errorf("%s %v", got, err)
	}
}

func TestObjections(t *testing.T) {
	c := newCluster(Options{ServerID: "a", Removed: func(id string) bool { return id == "old" }, Cluster: func() string { return "ours" }})
	c.book.peers.Store(&[]Peer{{ID: "b", Address: "b:1"}})
	conf := []Member{{ID: "a", Address: "a:1", Voter: true}, {ID: "b", Address: "b:1", Voter: true}, {ID: "c", Address: "c:1", Voter: true}}
	var many []Member
	for i := range maxServers {
		many = append(many, Member{ID: fmt.Sprint(i), Address: fmt.Sprint(i, ":1"), Voter: true})
	}
	for _, test := range []struct {
		peer    Peer
		known   *Knowledge
		members []Member
		want    string
	}{
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{}, conf, ""},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Servers: conf}, conf, ""},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Founding: listOf("d").encode()}, conf, ""},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{ID: "d", Servers: append(slices.Clone(conf), Member{ID: "d"})}, conf, ""}, // its addition was not committed
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{ID: "d", Servers: append(slices.Clone(conf), Member{ID: "d", Voter: true})}, conf, "was a member"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{ID: "d", Servers: append(slices.Clone(conf), Member{ID: "d"})}, conf[:1], "recovered without it"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Cluster: "ours"}, conf, ""}, // its log is gone
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Cluster: "theirs"}, conf, "another cluster of this name, theirs, and this is ours"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Cluster: "theirs", Servers: conf}, conf, "eboot snapshot save"},
		{Peer{ID: "d", Address: "d:1"}, nil, conf, "does not answer"},
		{Peer{ID: "old", Address: "d:1"}, &Knowledge{}, conf, "was removed"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Servers: []Member{{ID: "d"}, {ID: "x"}}}, conf, "another cluster"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{Founding: listOf("d", "x").promised().encode()}, conf, "has promised"},
		{Peer{ID: "d", Address: "b:1"}, &Knowledge{}, conf, "has the same address"},
		{Peer{ID: "d", Address: "c:1"}, &Knowledge{}, conf, "remove --replace c"},
		{Peer{ID: "d", Address: "d:1"}, &Knowledge{}, many, "no more are taken"},
	} {
		a := answers{known: map[string]Knowledge{}, silent: map[string]error{}}
		if test.known != nil {
			a.known[test.peer.ID] = *test.known
		}
		got := c.objection(test.members, test.peer, a)
		if !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%+v %+v: %q, want %q", test.peer, test.known, got, test.want)
		}
	}
}

func TestWhoMayVote(t *testing.T) {
	good := Knowledge{Servers: []Member{{ID: "d"}}, Applied: 750, Complete: true}
	with := func(change func(*Knowledge)) *Knowledge {
		k := good
		change(&k)
		return &k
	}
	old := time.Now().Add(-time.Minute)
	for _, test := range []struct {
		known *Knowledge
		since time.Time
		want  string // "": a voter
	}{
		{&good, old, ""},
		{nil, old, "does not answer"},
		{with(func(k *Knowledge) { k.Servers = nil }), old, "has not got the log"}, // by its own word it was wiped
		{with(func(k *Knowledge) { k.Applied = 0 }), old, "has not got the log"},
		{with(func(k *Knowledge) { k.Applied = 749 }), old, "251 log entries behind"},
		{with(func(k *Knowledge) { k.Complete = false }), old, "every bundle"},
		{&good, time.Now(), "10s are asked for"},
	} {
		c := newCluster(Options{ServerID: "a", pace: pace{stable: defaultStable}})
		c.machine.applied.Store(1000)
		peer := Peer{ID: "d", Address: "d:1"}
		a := answers{known: map[string]Knowledge{}, silent: map[string]error{"d": errors.New("refused")}}
		if test.known != nil {
			a.known["d"] = *test.known
		}
		var p plan
		c.planVote(&p, []Member{{ID: "a", Voter: true}, {ID: "d"}}, peer, a, map[string]sighting{"d": {"d:1", test.since}})
		if (p.change != nil) != (test.want == "") || len(p.learning) != 1 || !strings.Contains(p.learning[0].Reason, test.want) {
			t.Errorf("%+v: %q %+v, want %q", test.known, p.what, p.learning, test.want)
		}
	}
}

// One more voter is of use while another is away only when one server more may then be
// lost.
func TestWhoMayVoteWhileOthersAreAway(t *testing.T) {
	for _, test := range []struct {
		voters, away int
		want         bool
	}{
		{3, 0, true}, {4, 0, true}, {3, 1, false}, {4, 1, true}, {5, 1, false}, {5, 2, false}, {6, 2, true}, {7, 1, false},
	} {
		c := newCluster(Options{ServerID: "s0", pace: pace{stable: time.Second}})
		var conf []Member
		var peers []Peer
		for i := range test.voters {
			m := Member{ID: fmt.Sprint("s", i), Address: fmt.Sprint("s", i, ":1"), Voter: true}
			conf = append(conf, m)
			if i < test.voters-test.away {
				peers = append(peers, Peer{ID: m.ID, Address: m.Address})
			}
		}
		fresh := Peer{ID: "d", Address: "d:1"}
		conf = append(conf, Member{ID: "d", Address: "d:1"})
		peers = append(peers, fresh)
		c.book.peers.Store(&peers)
		a := answers{known: map[string]Knowledge{"d": {ID: "d", Servers: conf, Applied: 1, Complete: true}}}
		var p plan
		c.planVote(&p, conf, fresh, a, map[string]sighting{"d": {"d:1", time.Now().Add(-time.Minute)}})
		if (p.change != nil) != test.want || len(p.learning) != 1 || !test.want && !strings.Contains(p.learning[0].Reason, "eboot cluster remove s") {
			t.Errorf("%d voters, %d away: %q %+v", test.voters, test.away, p.what, p.learning)
		}
	}
}

// A server that is gone for good is removed, and then its successor votes.
func TestSuccessorVotesAfterTheRemoval(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	leader := w.leader(nodes...)
	gone := followers(leader, nodes)[0]
	stay := followers(gone, nodes)
	gone.stop()
	fresh := w.node("fresh", 0)
	fresh.start()
	all := append(stay, fresh)
	w.wantMembers(all, "a", "b", "c", "-fresh")
	waitFor(t, "the leader says what is missing", func() bool {
		return slices.ContainsFunc(leader.server().Learning(), func(c Candidate) bool { return strings.Contains(c.Reason, "eboot cluster remove "+gone.id) })
	})
	if err := leader.remove(gone.id); err != nil {
		t.Fatal(err)
	}
	w.wantMembers(all, stay[0].id, stay[1].id, "fresh")
	fresh.stop() // one of three may be lost again
	w.write("two", stay...)
}

// Two members that both say that they are at one address do not drive each other
// out for ever.
func TestTwoAtOneAddress(t *testing.T) {
	c := newCluster(Options{ServerID: "a"})
	c.transport = raft.NewNetworkTransport(newAlone("a:1"), 1, time.Second, t.Output())
	defer c.transport.Close()
	peers := []Peer{{ID: "b", Address: "x:1"}, {ID: "c", Address: "x:1"}}
	c.book.peers.Store(&peers)
	conf := []Member{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}, {ID: "c", Address: "x:1"}}
	a := answers{known: map[string]Knowledge{"b": {ID: "b"}, "c": {ID: "c"}}}
	var p plan
	if c.planAddresses(&p, conf, peers, a); p.change != nil {
		t.Errorf("%s", p.what)
	}
	peers[1].Address = "y:1" // and now c has moved too
	if c.planAddresses(&p, conf, peers, a); !strings.Contains(p.what, "server c moved from x:1 to y:1") {
		t.Errorf("%s", p.what)
	}
}
