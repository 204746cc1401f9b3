package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
)

func TestThreeFound(t *testing.T) {
	for _, order := range []string{"abc", "cba", "ab c", "b ca", "a b c"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.group(3, "a", "b", "c")
			seen := 0
			for _, together := range strings.Fields(order) {
				for _, r := range together {
					w.nodes[string(r)].start()
					seen++
				}
				if seen < 3 {
					w.nodes[order[:1]].wantStanding(eboot.ErrNoLeader, fmt.Sprintf("waiting for 3 servers to found the cluster, %d seen", seen))
				}
			}
			w.wantMembers(nodes, "a", "b", "c")
			w.write("one", nodes...)
			for _, n := range nodes {
				n.wantStanding(nil, "")
				if err := n.server().Form(within10s(t)); err != nil {
					t.Errorf("form again: %v", err)
				}
				if err := n.server().Found(within10s(t)); !errors.Is(err, eboot.ErrConflict) {
					t.Errorf("found in a cluster: %v", err)
				}
			}
			if alive, needed := nodes[0].server().Quorum(); alive != 3 || needed != 2 {
				t.Errorf("%d alive, %d needed", alive, needed)
			}
		})
	}
}

// Of five at once three found the cluster, and the others come in.
func TestFiveWithExpectThree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := w.group(3, "a", "b", "c", "d", "e")
	startAll(t, nodes...)
	w.wantMembers(nodes, "a", "b", "c", "d", "e")
	w.write("one", nodes...)
}

func TestFourthComesLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := w.group(3, "b", "c", "d")
	startAll(t, nodes...)
	w.write("one", nodes...)
	late := w.group(3, "a", "e")
	late = append(late, w.node("f", 0))
	late[1].complete = false
	startAll(t, late...)
	all := append(nodes, late...)
	w.wantMembers(all, "a", "b", "c", "d", "-e", "f")
	w.write("two", all...)
	leader := w.leader(all...).server()
	waitFor(t, "the reason", func() bool { return len(leader.Learning()) == 1 })
	if l := leader.Learning()[0]; l.ID != "e" || !strings.Contains(l.Reason, "does not hold every bundle") {
		t.Errorf("%+v", l)
	}
	w.mu.Lock()
	late[1].complete = true
	w.mu.Unlock()
	w.wantMembers(all, "a", "b", "c", "d", "e", "f")
	wantItems(t, *late[1].server(), "one", "two")
}

// Nobody to be seen is no reason to found a cluster.
func TestAloneNeverFounds(t *testing.T) {
	t.Parallel()
	for _, expect := range []int{0, 2, 3} {
		w := newWorld(t)
		n := w.node("a", expect)
		n.start()
		text := "waiting for"
		if expect == 0 {
			text = "eboot cluster init"
		}
		n.wantStanding(eboot.ErrNoLeader, text)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := n.server().Form(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("expect %d: %v", expect, err)
		}
		if got := n.server().Status(); len(got.Servers) != 0 || got.LastIndex != 0 || got.Term != 0 {
			t.Errorf("expect %d: %+v", expect, got)
		}
	}
}

// A founder that is cut off from the others by gossip waits for them.
func TestPartitionWhileForming(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := w.group(3, "a", "b", "c", "d")
	w.isolate("a")
	w.isolate("b")
	startAll(t, nodes...)
	for _, n := range nodes {
		n.wantStanding(eboot.ErrNoLeader, "waiting for 3 servers")
	}
	w.rejoin("b")
	w.isolate("a")
	w.wantMembers(nodes[1:], "b", "c", "d")
	w.rejoin("a")
	w.wantMembers(nodes, "a", "b", "c", "d")
	w.write("one", nodes...)
}

func TestExpectMustAgree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := w.group(3, "a", "b", "c")
	nodes[1].expect = 2
	startAll(t, nodes...)
	for _, n := range nodes {
		n.wantStanding(eboot.ErrConflict, "make it the same everywhere")
	}
	nodes[1].stop()
	nodes[1].expect = 3
	nodes[1].start()
	w.wantMembers(nodes, "a", "b", "c")
}

// What a crash while forming leaves on the disks of three servers.
func TestCrashWhileForming(t *testing.T) {
	stages := []string{"fresh", "promised", "interrupted", "founded"}
	for _, left := range [][3]int{{0, 0, 1}, {0, 1, 1}, {1, 1, 1}, {1, 1, 2}, {1, 2, 3}, {3, 1, 1}, {3, 3, 1}, {3, 3, 3}, {2, 2, 2}} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.group(3, "a", "b", "c")
			f := founders(nodes)
			if left[0] == 0 && !raceDetector {
				f = listOf("a", "b", "c") // their addresses have changed since
			}
			for i, n := range nodes {
				leaveStage(t, n.dir, stages[left[i]], f)
			}
			startAll(t, nodes...)
			w.wantMembers(nodes, "a", "b", "c")
			w.write("one", nodes...)
		})
	}
}

func founders(nodes []*node) founding {
	var f founding
	for _, n := range nodes {
		f.Servers = append(f.Servers, founder{ID: n.id, Address: n.place()})
	}
	return f
}

func leaveStage(t *testing.T, dir, stage string, f founding) {
	t.Helper()
	if stage == "fresh" {
		return
	}
	withDatabase(t, dir, func(db *raftboltdb.BoltStore) error {
		err := db.Set(keyPromise, []byte(f.promised().encode()))
		if stage != "promised" {
			err = errors.Join(err, db.SetUint64(keyCurrentTerm, 1))
		}
		if stage == "founded" {
			var servers []raft.Server
			for _, s := range f.Servers {
				servers = append(servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)})
			}
			err = errors.Join(err, db.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers})}))
		}
		return err
	})
}

// A founder that was away while the others founded the cluster and went on.
func TestLateFounder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := w.group(3, "a", "b", "c")
	f := founders(nodes)
	leaveStage(t, nodes[0].dir, "founded", f)
	leaveStage(t, nodes[1].dir, "founded", f)
	leaveStage(t, nodes[2].dir, "promised", f)
	startAll(t, nodes[:2]...)
	w.write("one", nodes[:2]...)
	nodes[2].start()
	w.write("two", nodes...)
	w.wantMembers(nodes, "a", "b", "c")
	wantItems(t, *nodes[2].server(), "one", "two")
}

// A promise is for the whole life of a server.
func TestPromiseIsKept(t *testing.T) {
	o := optionsOf(t, t.TempDir())
	o.Bootstrap = false
	s := open(t, o)
	if err := s.promise(listOf("server-1", "x")); err != nil {
		t.Fatal(err)
	}
	killed := copyDir(t, o.Dir)
	o.Dir = killed
	again := open(t, o)
	if want := listOf("server-1", "x").promised(); again.offer().encode() != want.encode() || again.Knowledge().Founding != want.encode() {
		t.Errorf("%+v", again.offer())
	}
	if got := again.Status(); len(got.Servers) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestUnreadablePromise(t *testing.T) {
	o := optionsOf(t, t.TempDir())
	withDatabase(t, o.Dir, func(db *raftboltdb.BoltStore) error { return db.Set(keyPromise, []byte("{")) })
	if _, err := Open(o); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.node("a", 0), w.node("b", 0), w.node("c", 3)
	startAll(t, a, b, c)
	if err := a.server().Found(within10s(t)); err != nil {
		t.Fatal(err)
	}
	w.wantMembers([]*node{a, b, c}, "a", "b", "c")
	w.write("one", a, b, c)

	d := w.node("d", 3)
	d.belonged = true
	d.start()
	if err := d.server().Found(within10s(t)); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("a server that has a past: %v", err)
	}
}

func TestFoundBesideOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.node("a", 0), w.node("b", 0), w.node("c", 0)
	startAll(t, a, b, c)
	done := make(chan error, 3)
	for _, n := range []*node{a, b, c} { // by three operators at the same time
		go func() { done <- n.server().Found(within10s(t)) }()
	}
	founded := 0
	for range 3 {
		if err := <-done; err == nil {
			founded++
		} else if !errors.Is(err, eboot.ErrConflict) {
			t.Error(err)
		}
	}
	if founded > 1 {
		t.Fatalf("%d clusters", founded)
	}
	if founded == 0 {
		if err := b.server().Found(within10s(t)); err != nil {
			t.Fatal(err)
		}
	}
	w.wantMembers([]*node{a, b, c}, "a", "b", "c")

	promised := w.node("p", 3)
	leaveStage(t, promised.dir, "promised", listOf("p", "q", "r"))
	promised.start()
	if err := promised.server().Found(within10s(t)); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "promised") {
		t.Errorf("found after a promise: %v", err)
	}
	promised.wantStanding(eboot.ErrConflict, "eboot cluster reset")
	leader := w.leader(a, b, c).server()
	waitFor(t, "the leader says why", func() bool {
		return slices.ContainsFunc(leader.Waiting(), func(c Candidate) bool { return c.ID == "p" && strings.Contains(c.Reason, "promised to found") })
	})
}

// The log of a server is gone, and it serves the last copy of what its cluster agreed on: no
// cluster is founded beside it, and one that was founded out of its sight leaves it alone.
func TestLogGoneBesideAnotherCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.node("a", 0), w.node("b", 0)
	a.start()
	if err := a.server().Found(within10s(t)); err != nil {
		t.Fatal(err)
	}
	w.write("one", a)
	a.is("old")
	a.stop()
	a.wipe()
	a.start()
	b.start()
	b.wantStanding(eboot.ErrNoLeader, "a at "+a.address+" knows cluster old")
	if err := b.server().Found(within10s(t)); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "knows cluster old") {
		t.Fatalf("found beside it: %v", err)
	}

	w.isolate("a")
	if err := b.server().Found(within10s(t)); err != nil {
		t.Fatal(err)
	}
	w.wantMembers([]*node{b}, "b")
	w.rejoin("a") // b has no UUID yet
	b.wantWaiting("a", "which one this is is not known yet")
	b.is("new")
	b.wantWaiting("a", "another cluster of this name, old, and this is new")
	a.wantStanding(eboot.ErrConflict, "b knows another cluster of this name, new")
	w.write("two", b)
	w.wantMembers([]*node{b}, "b")
	if got := a.server().Status(); got.Term != 0 || got.LastIndex != 0 || len(got.Servers) != 0 {
		t.Errorf("the other cluster got in: %+v", got)
	}
}

// A cluster that lives does not answer: that is no reason to found another.
func TestFoundNeedsEveryAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, d := w.node("a", 1), w.node("d", 0)
	a.start()
	w.wantMembers([]*node{a}, "a")
	w.silence("a")
	w.mu.Lock()
	w.deaf = "d"
	w.mu.Unlock()
	d.start()
	d.wantStanding(eboot.ErrNoLeader, "no answer from a at "+a.address)
	if err := d.server().Standing(); strings.Contains(err.Error(), "cluster init") {
		t.Errorf("the advice is to found a second cluster: %v", err)
	}
	if err := d.server().Found(within10s(t)); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "a at "+a.address) {
		t.Errorf("found beside a silent server: %v", err)
	}
	if got := d.server().Status(); len(got.Servers) != 0 {
		t.Errorf("%+v", got)
	}
	w.silence("")
	w.mu.Lock()
	w.deaf = ""
	w.mu.Unlock()
	w.wantMembers([]*node{a, d}, "a", "d")
}

// A single server with a history, which told nobody its address, grows.
func TestOneGrowsToThree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.node("a", 1)
	o := optionsOf(t, a.dir)
	o.ServerID = "a"
	one := openLeader(t, o) // alone, at 127.0.0.1:4381
	one.mustApply(t, "one", "two")
	one.close(t)
	a.belonged = true
	a.start()
	nodes := append([]*node{a}, w.group(0, "b", "c")...)
	startAll(t, nodes[1:]...)
	w.wantMembers(nodes, "a", "b", "c")
	w.write("three", nodes...)
	wantItems(t, *nodes[2].server(), "one", "two", "three")
	a.stop()
	w.write("four", nodes[1:]...)
}

// Before a server may take part, nobody reaches its Raft.
func TestNobodyGetsInBeforeAdmission(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.node("a", 1), w.node("b", 3)
	a.start()
	w.wantMembers([]*node{a}, "a")
	b.start()
	w.wantMembers([]*node{a, b}, "a", "b")
	b.stop()
	if err := os.Remove(filepath.Join(b.dir, "raft.db")); err != nil { // and not the snapshots
		t.Fatal(err)
	}
	if _, err := Open(optionsOf(t, b.dir)); !errors.Is(err, eboot.ErrDamaged) || !strings.Contains(err.Error(), "raft.db was lost") {
		t.Fatal(err)
	}
	b.wipe()
	w.leaderless(a)
	b.start()
	b.wantStanding(eboot.ErrConflict, "lost or wiped")
	w.leaderless(a)
	if got := b.server().Status(); got.Term != 0 || got.LastIndex != 0 {
		t.Errorf("somebody came in: %+v", got)
	}
	a.wantStanding(eboot.ErrNoLeader, "")
}

// leaderless waits for an election that comes to nothing.
func (w *world) leaderless(n *node) {
	w.t.Helper()
	waitFor(w.t, "no leader", func() bool { return n.server().Status().Leader == "" && n.server().Status().Role == "candidate" })
}

// What stands in the way is logged once, not at every look.
func TestTroubleIsLoggedOnce(t *testing.T) {
	t.Parallel()
	var lines strings.Builder
	c := &Cluster{options: Options{Logger: hclog.New(&hclog.LoggerOptions{Output: &lines})}}
	for range 3 {
		c.setTrouble(fmt.Errorf("waiting: %w", eboot.ErrNoLeader))
	}
	if n := strings.Count(lines.String(), "waiting"); n != 1 {
		t.Errorf("%d lines: %s", n, lines.String())
	}
}
