package cluster

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
)

func TestOpenRefusesBadOptions(t *testing.T) {
	for _, change := range []func(*Options){
		func(o *Options) { o.Dir = "" }, func(o *Options) { o.ServerID = "" }, func(o *Options) { o.Address = "" },
		func(o *Options) { o.StateMachine = nil }, func(o *Options) { o.Multiplier = 11 },
	} {
		o := optionsOf(t, t.TempDir())
		change(&o)
		if _, err := Open(o); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestDirectoryInUse(t *testing.T) {
	t.Parallel() // waits for the lock
	dir := t.TempDir()
	open(t, optionsOf(t, dir))
	if _, err := Open(optionsOf(t, dir)); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "another process") {
		t.Fatal(err)
	}
}

// A server alone whose address was changed elects itself, because votes go by
// id, and corrects its entry.
func TestAddressChange(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one")
	s.close(t)
	o := optionsOf(t, dir)
	o.Address = "127.0.0.1:9999"
	moved := openLeader(t, o)
	moved.mustApply(t, "two")
	waitFor(t, "the corrected address", func() bool { return moved.Status().Servers[0].Address == o.Address })
	if err := moved.Snapshot(); err != nil { // R23: possible right after a membership change
		t.Fatal(err)
	}
	moved.close(t)
	again := openLeader(t, o)
	wantItems(t, again, "one", "two")
	if got := again.Status().Servers; len(got) != 1 || got[0].Address != o.Address {
		t.Fatalf("%+v", got)
	}
}

func withDatabase(t *testing.T, dir string, f func(*raftboltdb.BoltStore) error) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f(db); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestInterruptedBootstrapIsRepeated(t *testing.T) {
	dir := t.TempDir()
	withDatabase(t, dir, func(db *raftboltdb.BoltStore) error { return db.SetUint64(keyCurrentTerm, 1) })
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one")
}

// A server that has voted for others is no fresh one.
func TestStateOfAnotherClusterIsNotBootstrapped(t *testing.T) {
	dir := t.TempDir()
	withDatabase(t, dir, func(db *raftboltdb.BoltStore) error {
		return errors.Join(db.SetUint64(keyCurrentTerm, 1), db.SetUint64([]byte("LastVoteTerm"), 1))
	})
	if s := open(t, optionsOf(t, dir)); len(s.Status().Servers) != 0 {
		t.Fatalf("%+v", s.Status())
	}
}

func TestGapIsFoundAtStart(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one", "two", "three")
	killed := copyDir(t, dir) // no snapshot
	withDatabase(t, killed, func(db *raftboltdb.BoltStore) error { return db.DeleteRange(1, 3) })
	if _, err := Open(optionsOf(t, killed)); !errors.Is(err, eboot.ErrDamaged) || !strings.Contains(err.Error(), "the last copy") {
		t.Fatalf("log without its beginning: %v", err)
	}
	killed = copyDir(t, dir)
	withDatabase(t, killed, func(db *raftboltdb.BoltStore) error { return db.DeleteRange(3, 3) })
	if _, err := Open(optionsOf(t, killed)); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("log with a hole: %v", err)
	}
}

func TestDamagedDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raft.db"), []byte(strings.Repeat("no database", 4000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(optionsOf(t, dir)); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestDamagedSnapshots(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one")
	s.close(t)
	s = openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "two")
	s.close(t)
	states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(states) != 2 {
		t.Fatalf("%v %v", states, err)
	}
	slices.Sort(states)
	flip := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip(states[1])
	s = openLeader(t, optionsOf(t, dir)) // the older one and the log behind it
	wantItems(t, s, "one", "two")
	killed := copyDir(t, dir)
	s.close(t)

	states, err = filepath.Glob(filepath.Join(killed, "snapshots", "*", "state.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range states {
		if err := os.Truncate(path, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(optionsOf(t, killed)); !errors.Is(err, eboot.ErrDamaged) {
		t.Fatalf("no readable snapshot: %v", err)
	}
}

// Another version of the program may have written it: the state machine's own
// reason is what the operator has to read.
func TestSnapshotThatTheStateMachineRefuses(t *testing.T) {
	dir := t.TempDir()
	s := openLeader(t, optionsOf(t, dir))
	s.mustApply(t, "one")
	s.close(t)
	o := optionsOf(t, dir)
	o.StateMachine = refusing{&list{}}
	if _, err := Open(o); !errors.Is(err, errUnreadable) {
		t.Fatal(err)
	}
}

type refusing struct{ *list }

func (refusing) Restore(io.Reader) error { return errUnreadable }

func TestUnfinishedSnapshotsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "snapshots", "2-20-1700000000000.tmp")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, optionsOf(t, dir))
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is still there: %v", left, err)
	}
}
