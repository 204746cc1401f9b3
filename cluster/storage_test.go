package cluster

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
)

// faulty is a database whose writes fail as long as fault is set.
type faulty struct {
	database
	fault atomic.Pointer[error]
	calls atomic.Int64
}

func (f *faulty) set(err error) { f.fault.Store(&err) }

func (f *faulty) err() error {
	f.calls.Add(1)
	if err := f.fault.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *faulty) StoreLogs(entries []*raft.Log) error {
	return errors.Join(f.err(), f.database.StoreLogs(entries))
}

func (f *faulty) SetUint64(key []byte, value uint64) error {
	if err := f.err(); err != nil {
		return err
	}
	return f.database.SetUint64(key, value)
}

func newFaulty(t *testing.T) (*faulty, *storage) {
	t.Helper()
	db, err := raftboltdb.NewBoltStore(t.TempDir() + "/raft.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &faulty{database: db}
	s := newStorage(f, hclog.NewNullLogger())
	s.interval = time.Millisecond
	return f, s
}

func TestFirstStorageFailureIsTheLast(t *testing.T) {
	f, s := newFaulty(t)
	if err := s.GetLog(7, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) || s.err() != nil {
		t.Fatalf("a missing entry: %v, failure %v", err, s.err())
	}
	if _, err := s.Get([]byte("none")); !errors.Is(err, raftboltdb.ErrKeyNotFound) || s.err() != nil {
		t.Fatalf("a missing key: %v, failure %v", err, s.err())
	}
	f.set(syscall.ENOSPC)
	if err := s.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, syscall.ENOSPC) || s.err() != nil {
		t.Fatalf("a full disk: %v, failure %v", err, s.err())
	}
	f.set(syscall.EIO)
	if err := s.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, syscall.EIO) || !errors.Is(s.err(), syscall.EIO) {
		t.Fatalf("an I/O error: %v, failure %v", err, s.err())
	}
	<-s.failed
	f.set(nil)
	calls := f.calls.Load()
	_, first := s.FirstIndex()
	_, last := s.LastIndex()
	_, get := s.Get([]byte("k"))
	_, number := s.GetUint64([]byte("k"))
	for name, err := range map[string]error{
		"store": s.StoreLog(&raft.Log{Index: 1}), "get": s.GetLog(1, new(raft.Log)), "delete": s.DeleteRange(1, 1),
		"set": s.Set([]byte("k"), nil), "set number": s.SetUint64([]byte("k"), 1), "first": first, "last": last, "read": get, "read number": number,
	} {
		if !errors.Is(err, errStorageFailed) {
			t.Errorf("%s after the failure: %v", name, err)
		}
	}
	if f.calls.Load() != calls {
		t.Error("the database was asked again")
	}
}

// Raft would panic if it were told.
func TestFailureEndsTheGoroutineThatWouldPanic(t *testing.T) {
	f, s := newFaulty(t)
	s.serving.Store(true)
	f.set(syscall.EIO)
	ended := make(chan bool)
	go func() {
		returned := false
		defer func() { ended <- returned }()
		_ = s.SetUint64(keyCurrentTerm, 5) // does not return
		returned = true
	}()
	if <-ended {
		t.Fatal("the error was returned")
	}
	if !errors.Is(s.err(), syscall.EIO) {
		t.Fatal(s.err())
	}
}

func TestFullDiskIsWaitedFor(t *testing.T) {
	f, s := newFaulty(t)
	s.serving.Store(true)
	f.set(syscall.ENOSPC)
	saved := make(chan error, 1)
	go func() { saved <- s.SetUint64(keyCurrentTerm, 5) }()
	waitFor(t, "several tries", func() bool { return f.calls.Load() > 3 })
	f.set(nil)
	if err := <-saved; err != nil {
		t.Fatal(err)
	}
	if term, err := s.GetUint64(keyCurrentTerm); err != nil || term != 5 {
		t.Fatalf("%d %v", term, err)
	}

	f.set(syscall.ENOSPC)
	if err := s.SetUint64(keyCurrentTerm, 5); err != nil {
		t.Fatalf("saving what is saved: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.SetUint64(keyCurrentTerm, 6)
	}()
	close(s.closing)
	<-ended
}

// The disk fails under a running leader: told once, Raft stopped, no panic.
func TestStorageFailureStopsRaft(t *testing.T) {
	told := make(chan error, 2)
	o := optionsOf(t, t.TempDir())
	o.OnStorageFailure = func(err error) { told <- err }
	s := openLeader(t, o)
	s.mustApply(t, "one")
	if err := s.db.Close(); err != nil { // as a disk that went away
		t.Fatal(err)
	}
	if _, err := s.Apply(within10s(t), []byte("two")); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	if err := <-told; err == nil || !errors.Is(s.Failure(), err) {
		t.Fatalf("told %v, failure %v", err, s.Failure())
	}
	waitFor(t, "raft to stop", func() bool { return s.Failure() != nil && s.Status().Role == "shutdown" })
	if _, err := s.Apply(within10s(t), []byte("three")); !errors.Is(err, eboot.ErrNoLeader) {
		t.Fatal(err)
	}
	wantItems(t, s, "one")
	s.close(t)
	if len(told) != 0 {
		t.Fatal("told twice")
	}
}
