package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"eboot"
)

func TestInspect(t *testing.T) {
	t.Parallel() // waits for a lock
	dir := t.TempDir()
	if _, err := Inspect(dir, "server-1"); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one", "two")
	killed := copyDir(t, dir)
	before := s.Status()
	i, err := Inspect(killed, "server-1")
	want := []Member{{ID: "server-1", Address: "127.0.0.1:4381", Voter: true}}
	if err != nil || i.ID != "server-1" || i.LastIndex != before.LastIndex || i.LastTerm != before.Term || i.SnapshotIndex != 0 || !slices.Equal(i.Servers, want) {
		t.Errorf("%+v %v, want %+v", i, err, before)
	}
	if _, err := Inspect(dir, "server-1"); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("while the server runs: %v", err)
	}
	s.close(t)
	i, err = Inspect(dir, "server-1")
	if err != nil || i.SnapshotIndex == 0 || i.LastIndex < before.LastIndex || !slices.Equal(i.Servers, want) {
		t.Errorf("after a stop: %+v %v", i, err)
	}
	if err := os.WriteFile(filepath.Join(killed, "raft.db"), []byte(strings.Repeat("no database", 4000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(killed, "server-1"); !errors.Is(err, eboot.ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
}

// Two of three are lost: the survivor goes on alone and others join it.
func TestRecover(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	survivor := nodes[0]
	leader := w.leader(nodes...)
	if err := leader.server().Snapshot(); err != nil {
		t.Fatal(err)
	}
	w.write("two", nodes...)
	for _, n := range nodes {
		n.stop()
	}
	o := Options{Dir: survivor.dir, ServerID: "a", Address: "127.0.0.1:4381", StateMachine: &list{}, Logger: optionsOf(t, "").Logger}
	for _, servers := range [][]Member{
		nil, {{ID: "b", Address: "b:1", Voter: true}}, {{ID: "a", Address: "a:1"}},
		{{ID: "a", Address: "a:1", Voter: true}, {ID: "b", Address: "a:1", Voter: true}},
		{{ID: "a", Address: "a:1", Voter: true}, {ID: "a", Address: "b:1", Voter: true}},
		{{ID: "a", Address: "a:1", Voter: true}, {ID: "b", Voter: true}},
	} {
		if err := Recover(o, servers); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%+v: %v", servers, err)
		}
	}
	alone := []Member{{ID: "a", Address: "127.0.0.1:4381", Voter: true}}
	empty := o
	empty.Dir = t.TempDir()
	if err := Recover(empty, alone); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	for _, want := range []string{"before-recovery-1", "before-recovery-2"} { // again does no harm
		o.StateMachine = &list{}
		if err := Recover(o, alone); err != nil {
			t.Fatal(err)
		}
		if i, err := Inspect(survivor.dir+"."+want, "a"); err != nil || want == "before-recovery-1" && len(i.Servers) != 3 {
			t.Errorf("the copy: %+v %v", i, err)
		}
	}
	i, err := Inspect(survivor.dir, "a")
	if err != nil || !slices.Equal(i.Servers, alone) {
		t.Fatalf("%+v %v", i, err)
	}

	survivor.start()
	fresh := w.group(3, "d", "e")
	startAll(t, fresh...)
	all := append(fresh, survivor)
	w.wantMembers(all, "a", "d", "e")
	w.write("three", all...)
	wantItems(t, *fresh[0].server(), "one", "two", "three")
	nodes[1].start() // one that was lost comes back with the old configuration
	nodes[1].wantStanding(eboot.ErrConflict, "was removed")
	w.leader(all...).wantWaiting("b", "recovered without it")
	w.write("four", all...)
	w.wantMembers(all, "a", "d", "e")
}

// Both survivors of five get the same configuration.
func TestRecoverTwo(t *testing.T) {
	t.Parallel()
	w, nodes := three(t)
	stay := nodes[:2]
	for _, n := range nodes {
		n.stop()
	}
	var servers []Member
	for _, n := range stay {
		servers = append(servers, Member{ID: n.id, Address: n.address, Voter: true})
	}
	for _, n := range stay {
		if err := Recover(Options{Dir: n.dir, ServerID: n.id, Address: n.address, StateMachine: &list{}}, servers); err != nil {
			t.Fatal(err)
		}
	}
	startAll(t, stay...)
	w.wantMembers(stay, "a", "b")
	w.write("two", stay...)
	wantItems(t, *stay[1].server(), "one", "two")
}

func TestRecoverWhatCannotBeRead(t *testing.T) {
	t.Parallel() // waits for a lock
	dir := t.TempDir()
	o := optionsOf(t, dir)
	s := openLeader(t, o)
	s.mustApply(t, "one")
	if err := Recover(optionsOf(t, dir), []Member{{ID: "server-1", Address: "a:1", Voter: true}}); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("while the server runs: %v", err)
	}
	if _, err := s.Apply(within10s(t), []byte("unreadable")); err == nil {
		t.Fatal("applied")
	}
	killed := copyDir(t, dir)
	if err := Recover(optionsOf(t, killed), []Member{{ID: "server-1", Address: "a:1", Voter: true}}); !errors.Is(err, errUnreadable) {
		t.Errorf("an entry that the state machine refuses: %v", err)
	}
}
