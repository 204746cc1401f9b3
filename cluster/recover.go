package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
	"eboot/internal/fsutil"
)

// Inspection is what the raft directory of a stopped server holds. Of several
// survivors the one with the highest (LastTerm, LastIndex) knows the most.
type Inspection struct {
	ID            string
	LastIndex     uint64
	LastTerm      uint64
	SnapshotIndex uint64 // 0: none
	SnapshotTerm  uint64
	Servers       []Member // of the newest configuration, committed or not
}

// Inspect reads the raft directory of the server id and changes nothing.
// eboot.ErrNotFound: there is none; ErrConflict: a process uses it; ErrDamaged.
func Inspect(dir, id string) (i Inspection, err error) {
	defer func() {
		if p := recover(); p != nil { // entries that cannot be decoded
			err = damaged(dir, fmt.Sprint(p))
		}
		if err != nil {
			err = fmt.Errorf("inspect: %w", err)
		}
	}()
	path := filepath.Join(dir, "raft.db")
	if _, err := os.Stat(path); err != nil {
		return i, missingDirectory(path, err)
	}
	db, err := openDatabase(path, true)
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	i = Inspection{ID: id, Servers: []Member{}}
	if err := inspectSnapshot(dir, &i); err != nil {
		return i, err
	}
	return i, inspectLog(db, &i)
}

func missingDirectory(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s does not exist: this server has never been part of a cluster: %w", path, eboot.ErrNotFound)
	}
	return err
}

func inspectSnapshot(dir string, i *Inspection) error {
	if _, err := os.Stat(filepath.Join(dir, "snapshots")); errors.Is(err, os.ErrNotExist) {
		return nil // the store would make it
	}
	store, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	list, err := store.List()
	if err != nil {
		return err
	}
	for _, meta := range list {
		_, source, err := store.Open(meta.ID) // verifies the checksum
		if err != nil {
			continue
		}
		i.SnapshotIndex, i.SnapshotTerm = meta.Index, meta.Term
		i.LastIndex, i.LastTerm = meta.Index, meta.Term
		i.Servers = membersOf(meta.Configuration.Servers)
		return source.Close()
	}
	return nil
}

func inspectLog(db *raftboltdb.BoltStore, i *Inspection) error {
	first, err := db.FirstIndex()
	if err != nil {
		return err
	}
	last, err := db.LastIndex()
	if err != nil {
		return err
	}
	for index := max(first, i.SnapshotIndex+1); index <= last && index > 0; index++ {
		var entry raft.Log
		if err := db.GetLog(index, &entry); err != nil {
			return fmt.Errorf("log entry %d: %w: %w", index, eboot.ErrDamaged, err)
		}
		i.LastIndex, i.LastTerm = entry.Index, entry.Term
		if entry.Type == raft.LogConfiguration {
			i.Servers = membersOf(raft.DecodeConfiguration(entry.Data).Servers)
		}
	}
	return nil
}

// Recover makes servers the configuration of this stopped server, when so many
// were lost that no majority is left. It must name this one as a voter. Everything in this server's
// log counts as committed from then on, and whatever only the lost servers had is lost.
//
// The survivor that knows the most is recovered alone, and the others are reset and join
// again. When several get the same configuration, before one of them is started, those that
// know less may be a majority of it (of six or more voters three are left, one of them
// ahead), elect one of themselves, and what only the other one had is lost.
//
// The StateMachine of o only reads the log and is of no use afterwards. The
// directory is first copied to one beside it, NAME.before-recovery-N.
// eboot.ErrInvalid: servers is no configuration; ErrNotFound: nothing to recover;
// ErrConflict: a process uses the directory; ErrDamaged.
func Recover(o Options, servers []Member) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = damaged(o.Dir, fmt.Sprint(p))
		}
		if err != nil {
			err = fmt.Errorf("recover: %w", err)
		}
	}()
	to, err := recoveryConfiguration(o.ServerID, servers)
	if err != nil {
		return err
	}
	path := filepath.Join(o.Dir, "raft.db")
	if _, err := os.Stat(path); err != nil {
		return missingDirectory(path, err)
	}
	db, err := openDatabase(path, false) // from here on nobody else has it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	backup, err := backUp(o.Dir)
	if err != nil {
		return err
	}
	o.Logger.Info("the raft directory was copied before the recovery", "copy", backup)
	return rewrite(o, db, to)
}

// recoveryConfiguration checks what Raft would refuse only after the work.
func recoveryConfiguration(id string, servers []Member) (raft.Configuration, error) {
	var to raft.Configuration
	ids, addresses := map[string]bool{}, map[string]bool{}
	for _, m := range servers {
		if m.ID == "" || m.Address == "" || ids[m.ID] || addresses[m.Address] {
			return to, fmt.Errorf("server %q at %q: every server needs an id and an address of its own: %w", m.ID, m.Address, eboot.ErrInvalid)
		}
		ids[m.ID], addresses[m.Address] = true, true
		suffrage := raft.Nonvoter
		if m.Voter {
			suffrage = raft.Voter
		}
		to.Servers = append(to.Servers, raft.Server{Suffrage: suffrage, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Address)})
	}
	if m, ok := find(servers, id); !ok || !m.Voter {
		return to, fmt.Errorf("this server (%s) must be one of the voters: %w", id, eboot.ErrInvalid)
	}
	return to, nil
}

// rewrite replaces log and snapshot by one snapshot with the configuration.
func rewrite(o Options, db *raftboltdb.BoltStore, to raft.Configuration) error {
	store, err := openSnapshots(o)
	if err != nil {
		return err
	}
	if err := checkContinuity(o.Dir, db, db, store); err != nil {
		return err
	}
	if known, err := raft.HasExistingState(db, db, store); err != nil || !known {
		return cmp.Or(err, fmt.Errorf("%s holds nothing: this server has never been part of a cluster: %w", o.Dir, eboot.ErrNotFound))
	}
	m := newMachine(o.StateMachine, o.Logger)
	_, transport := raft.NewInmemTransport(raft.ServerAddress(o.Address))
	if err := raft.RecoverCluster(o.raftConfig(nil), m, db, db, store, transport, to); err != nil {
		return cmp.Or(m.err(), err)
	}
	return fsutil.SyncDir(filepath.Join(o.Dir, "snapshots"))
}

// backUp copies the directory to the first free name beside it.
func backUp(dir string) (string, error) {
	dir = filepath.Clean(dir)
	for n := 1; ; n++ {
		to := fmt.Sprintf("%s.before-recovery-%d", dir, n)
		err := os.Mkdir(to, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			err = os.CopyFS(to, os.DirFS(dir))
		}
		if err == nil {
			err = syncTree(to)
		}
		if err != nil {
			return "", fmt.Errorf("copy %s to %s: %w", dir, to, err)
		}
		return to, fsutil.SyncDir(filepath.Dir(to))
	}
}

// syncTree makes a copied tree durable, children first.
func syncTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = syncTree(path)
		} else {
			err = syncFile(path)
		}
		if err != nil {
			return err
		}
	}
	return fsutil.SyncDir(dir)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
