package cluster

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// spaceRetry is how often a full disk is tried again.
const spaceRetry = time.Second

// errStorageFailed is what every operation after the first failure returns.
var errStorageFailed = errors.New("raft storage failed earlier and is not used any more")

// database is what *raftboltdb.BoltStore does.
type database interface {
	raft.LogStore
	raft.StableStore
}

// storage stands between Raft and its database and fails for good: after the
// first error that is neither "not found" nor a full disk nothing is read or
// written any more (R11). What a file holds after a failed fsync is not known, and
// asking again would be told that all is well.
//
// Raft panics when it cannot save its term or read its log, which would end the
// process and with it the serving of slaves. Its goroutine is ended instead, before
// the error can reach it: its deferred functions run, and it asks for nothing more.
type storage struct {
	db     database
	logger hclog.Logger

	once     sync.Once
	failure  atomic.Pointer[error]
	failed   chan struct{} // closed after failure is set
	serving  atomic.Bool   // Raft runs: its goroutines may be ended, and wait for space
	closing  chan struct{} // closed before the database is
	interval time.Duration // between tries on a full disk
}

var (
	_ raft.LogStore    = (*storage)(nil)
	_ raft.StableStore = (*storage)(nil)
)

func newStorage(db database, logger hclog.Logger) *storage {
	return &storage{db: db, logger: logger, failed: make(chan struct{}), closing: make(chan struct{}), interval: spaceRetry}
}

// err returns the failure, or nil.
func (s *storage) err() error {
	if f := s.failure.Load(); f != nil {
		return *f
	}
	return nil
}

func (s *storage) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// do runs one operation, unless one has failed.
func (s *storage) do(name string, operation func() error) error {
	if s.failure.Load() != nil {
		return errStorageFailed
	}
	err := operation()
	switch {
	case err == nil, errors.Is(err, raft.ErrLogNotFound), errors.Is(err, raftboltdb.ErrKeyNotFound), errors.Is(err, syscall.ENOSPC), s.isClosing():
		return err
	}
	s.once.Do(func() {
		failure := fmt.Errorf("raft storage: %s: %w", name, err)
		s.failure.Store(&failure)
		close(s.failed)
	})
	return err
}

// must is do for operations whose failure makes Raft panic. A full disk is
// waited for.
func (s *storage) must(name string, operation func() error) error {
	for told := false; ; told = true {
		err := s.do(name, operation)
		if err == nil || errors.Is(err, raft.ErrLogNotFound) || !s.serving.Load() {
			return err
		}
		if !errors.Is(err, syscall.ENOSPC) {
			runtime.Goexit()
		}
		if !told {
			s.logger.Error("disk is full; raft waits for space", "operation", name, "error", err)
		}
		select {
		case <-s.closing:
			runtime.Goexit()
		case <-time.After(s.interval):
		}
	}
}

// FirstIndex is the index of the oldest log entry, 0 without any.
func (s *storage) FirstIndex() (index uint64, err error) {
	err = s.do("first index", func() error { index, err = s.db.FirstIndex(); return err })
	return index, err
}

// LastIndex is the index of the newest log entry, 0 without any.
func (s *storage) LastIndex() (index uint64, err error) {
	err = s.do("last index", func() error { index, err = s.db.LastIndex(); return err })
	return index, err
}

// GetLog reads a log entry.
func (s *storage) GetLog(index uint64, entry *raft.Log) error {
	return s.must("read log", func() error { return s.db.GetLog(index, entry) })
}

// StoreLog appends a log entry.
func (s *storage) StoreLog(entry *raft.Log) error { return s.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends log entries.
func (s *storage) StoreLogs(entries []*raft.Log) error {
	return s.do("write log", func() error { return s.db.StoreLogs(entries) })
}

// DeleteRange removes log entries, both ends included.
func (s *storage) DeleteRange(first, last uint64) error {
	return s.do("truncate log", func() error { return s.db.DeleteRange(first, last) })
}

// Set saves a value of Raft's own.
func (s *storage) Set(key, value []byte) error {
	return s.must("save "+string(key), func() error { return s.db.Set(key, value) })
}

// Get reads a value of Raft's own.
func (s *storage) Get(key []byte) (value []byte, err error) {
	err = s.do("read "+string(key), func() error { value, err = s.db.Get(key); return err })
	return value, err
}

// SetUint64 saves a number of Raft's own, unless it has that value already: Raft
// saves its term anew at every start, which must be possible on a full disk.
func (s *storage) SetUint64(key []byte, value uint64) error {
	return s.must("save "+string(key), func() error {
		switch old, err := s.db.GetUint64(key); {
		case errors.Is(err, raftboltdb.ErrKeyNotFound) && value == 0, err == nil && old == value:
			return nil
		case err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound):
			return err
		}
		return s.db.SetUint64(key, value)
	})
}

// GetUint64 reads a number of Raft's own.
func (s *storage) GetUint64(key []byte) (value uint64, err error) {
	err = s.do("read "+string(key), func() error { value, err = s.db.GetUint64(key); return err })
	return value, err
}
