package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"eboot"
)

const (
	snapshotsKept   = 3
	logsCached      = 512
	lockTimeout     = 5 * time.Second // bbolt's default waits for ever
	transportPool   = 3
	transportWait   = 10 * time.Second
	maxProposals    = 128
	snapshotVersion = 1
)

// Raft's own name for its term in the stable store.
var keyCurrentTerm = []byte("CurrentTerm")

// Open opens the directory and starts Raft. It does not wait for a leader.
// eboot.ErrConflict: another process has the directory open; eboot.ErrDamaged: what
// is in it cannot be used, and the text says what can be done.
func Open(o Options) (c *Cluster, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	stream := o.Stream
	if stream == nil {
		stream = newAlone(o.Address)
	}
	c = newCluster(o)
	stream = &gate{StreamLayer: stream, open: c.admitted}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cluster: %w", errors.Join(err, c.abandon(stream)))
			c = nil
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return c, err
	}
	if c.db, err = openDatabase(filepath.Join(o.Dir, "raft.db"), false); err != nil {
		return c, err
	}
	c.storage = newStorage(c.db, o.Logger)
	logs, err := raft.NewLogCache(logsCached, c.storage)
	if err != nil {
		return c, err
	}
	store, err := openSnapshots(o)
	if err != nil {
		return c, err
	}
	if err := checkContinuity(o.Dir, c.storage, c.storage, store); err != nil {
		return c, err
	}
	// MaxRPCsInFlight 1: with more, one failed append can end the replication to a
	// server until this one restarts (R10).
	transport := &raft.NetworkTransportConfig{
		Stream: stream, MaxPool: transportPool, Timeout: transportWait, MaxRPCsInFlight: 1, MsgpackUseNewTimeFormat: true, Logger: o.Logger,
	}
	addresses := &addresses{own: Peer{ID: o.ServerID, Address: stream.Addr().String()}, book: &c.book}
	if o.Directory != nil {
		c.book.open()
		transport.ServerAddressProvider = addresses
	}
	c.transport = raft.NewNetworkTransportWithConfig(transport)
	config := o.raftConfig(c.notify)
	if err := prepare(o, config, logs, c.storage, store, c.transport); err != nil {
		return c, err
	}
	promised, err := loadPromise(c.storage)
	if err != nil {
		return c, err
	}
	c.offered.Store(&promised)
	c.storage.serving.Store(true)
	if c.raft, err = start(o.Dir, config, c.machine, logs, c.storage, store, c.transport); err != nil {
		return c, errors.Join(err, c.storage.err())
	}
	addresses.raft.Store(c.raft)
	if o.Directory == nil || len(c.members()) > 0 {
		c.admit()
	}
	c.run()
	c.electAlone()
	return c, nil
}

// abandon closes what a failed Open has opened.
func (c *Cluster) abandon(stream raft.StreamLayer) error {
	c.cancel()
	if c.transport != nil {
		stream = nil
		if err := c.transport.Close(); err != nil {
			return err
		}
	}
	if c.storage != nil {
		close(c.storage.closing)
	}
	var err error
	if c.db != nil {
		err = c.db.Close()
	}
	if stream != nil {
		err = errors.Join(err, stream.Close())
	}
	return err
}

func openDatabase(path string, readOnly bool) (db *raftboltdb.BoltStore, err error) {
	defer func() {
		if p := recover(); p != nil { // bbolt panics on some damage
			db, err = nil, damaged(filepath.Dir(path), fmt.Sprintf("%s cannot be read: %v", path, p))
		}
	}()
	db, err = raftboltdb.New(raftboltdb.Options{
		Path: path, MsgpackUseNewTimeFormat: true,
		BoltOptions: &bbolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, ReadOnly: readOnly},
	})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is locked: another process uses it: %w", path, eboot.ErrConflict)
	case errors.Is(err, bbolterrors.ErrInvalid), errors.Is(err, bbolterrors.ErrChecksum), errors.Is(err, bbolterrors.ErrVersionMismatch):
		return nil, damaged(filepath.Dir(path), fmt.Sprintf("%s cannot be read: %v", path, err))
	}
	return db, err
}

// damaged is the answer to a directory that Raft cannot go on with. It is never
// emptied by itself: it may be the last copy.
func damaged(dir, what string) error {
	return fmt.Errorf("%s; %s is left as it is, it may be the last copy: %w", what, dir, eboot.ErrDamaged)
}

// openSnapshots removes what interrupted snapshots have left, which the library
// never does, and each of which makes a full disk fuller (R14).
func openSnapshots(o Options) (raft.SnapshotStore, error) {
	left, err := filepath.Glob(filepath.Join(o.Dir, "snapshots", "*.tmp"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
		o.Logger.Info("removed an unfinished snapshot", "path", path)
	}
	store, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, snapshotsKept, o.Logger)
	if err != nil {
		return nil, err
	}
	return snapshots{store}, nil
}

// checkContinuity reports whether the log goes on where the newest readable
// snapshot ends, for Raft would panic if it did not, and whether it is there at all.
func checkContinuity(dir string, logs raft.LogStore, stable raft.StableStore, store raft.SnapshotStore) error {
	first, err := logs.FirstIndex()
	if err != nil {
		return err
	}
	list, err := store.List()
	if err != nil {
		return err
	}
	var newest uint64
	for _, meta := range list {
		_, source, err := store.Open(meta.ID) // verifies the checksum
		if err != nil {
			continue
		}
		if err := source.Close(); err != nil {
			return err
		}
		newest = meta.Index
		break
	}
	if newest == 0 && len(list) > 0 {
		return damaged(dir, fmt.Sprintf("none of %d snapshots can be read", len(list)))
	}
	term, err := stable.GetUint64(keyCurrentTerm)
	if err := ignoreMissing(err); err != nil {
		return err
	}
	if newest > 0 && term == 0 {
		return damaged(dir, fmt.Sprintf("there is a snapshot of entry %d and no term: raft.db was lost, and with it this server's votes and newest entries", newest))
	}
	if first > newest+1 {
		return damaged(dir, fmt.Sprintf("the log begins at entry %d and the newest readable snapshot ends at %d: what was between is lost", first, newest))
	}
	return nil
}

// prepare mends what an interrupted founding has left and, when it is asked for,
// writes the configuration of a cluster of one, if nothing is there yet.
func prepare(o Options, config *raft.Config, logs raft.LogStore, stable raft.StableStore, store raft.SnapshotStore, transport raft.Transport) error {
	interrupted, err := bootstrapInterrupted(logs, stable, store)
	if err != nil {
		return err
	}
	if interrupted {
		if err := stable.SetUint64(keyCurrentTerm, 0); err != nil {
			return err
		}
	}
	known, err := raft.HasExistingState(logs, stable, store)
	if err != nil || known || !o.Bootstrap {
		return err
	}
	servers := []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(o.ServerID), Address: transport.LocalAddr()}}
	return raft.BootstrapCluster(config, logs, stable, store, transport, raft.Configuration{Servers: servers})
}

// bootstrapInterrupted: Raft saves term 1 and then the first log entry. A crash
// in between leaves a term and nothing else, which counts as state and would keep the
// server out of every cluster for ever. No vote was given in that term.
func bootstrapInterrupted(logs raft.LogStore, stable raft.StableStore, store raft.SnapshotStore) (bool, error) {
	term, err := stable.GetUint64(keyCurrentTerm)
	if err != nil || term != 1 {
		return false, ignoreMissing(err)
	}
	if _, err := stable.GetUint64([]byte("LastVoteTerm")); !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return false, err
	}
	last, err := logs.LastIndex()
	if err != nil || last > 0 {
		return false, err
	}
	list, err := store.List()
	return err == nil && len(list) == 0, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil
	}
	return err
}

// start makes Raft in a goroutine of its own, which the storage may end, and
// turns a panic over what is on disk into an error.
func start(dir string, config *raft.Config, m *machine, logs raft.LogStore, stable raft.StableStore, store raft.SnapshotStore, transport raft.Transport) (r *raft.Raft, err error) {
	done := make(chan struct{})
	err = errStorageFailed
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = damaged(dir, fmt.Sprintf("raft cannot start: %v", p))
			}
		}()
		r, err = raft.NewRaft(config, m, logs, stable, store, transport)
	}()
	<-done
	if why := m.unusable.Load(); err != nil && why != nil {
		err = fmt.Errorf("%w: %w", err, *why)
	}
	return r, err
}

// electAlone makes the only voter of a cluster its leader now. Others are
// protected from hasty elections by the heartbeat timeout; it has no others. To lower
// a timeout makes Raft look at it at once, see ReloadConfig and runFollower.
func (c *Cluster) electAlone() {
	servers := c.raft.GetConfiguration().Configuration().Servers
	if len(servers) != 1 || servers[0].ID != raft.ServerID(c.options.ServerID) || servers[0].Suffrage != raft.Voter {
		return
	}
	reload := c.raft.ReloadableConfig()
	reload.HeartbeatTimeout = c.options.heartbeatTimeout()
	reload.ElectionTimeout = c.options.heartbeatTimeout()
	if err := c.raft.ReloadConfig(reload); err != nil {
		c.options.Logger.Warn("the first election waits for the heartbeat timeout", "error", err)
	}
}

// newCluster returns what needs no disk.
func newCluster(o Options) *Cluster {
	c := &Cluster{
		options:     o,
		machine:     newMachine(o.StateMachine, o.Logger),
		book:        book{directory: o.Directory},
		proposals:   proposals{tokens: make(chan struct{}, maxProposals), holder: make(chan struct{}, 1), restore: make(chan struct{}, 1)},
		leadership:  leadership{notify: make(chan bool, 10), observations: make(chan raft.Observation, 16)},
		formation:   formation{admitted: make(chan struct{})},
		stewardship: stewardship{changing: make(chan struct{}, 1)},
		lifetime:    lifetime{closing: make(chan struct{}), ended: make(chan struct{})},
	}
	c.shutdown = sync.OnceValue(c.shutDown)
	c.admit = sync.OnceFunc(func() {
		close(c.admitted)
		if o.Admit != nil {
			o.Admit()
		}
	})
	c.life, c.cancel = context.WithCancel(context.Background())
	return c
}
