package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/cluster"
	"eboot/fsm"
)

// Inspection is what is on the disk of a server that does not run.
type Inspection struct {
	ID            string         `json:"id"`
	Cluster       string         `json:"cluster,omitempty"` // UUID; empty: it never belonged to one
	LastIndex     uint64         `json:"last_index"`
	LastTerm      uint64         `json:"last_term"`
	SnapshotIndex uint64         `json:"snapshot_index"`
	SnapshotTerm  uint64         `json:"snapshot_term"`
	Servers       []eboot.Member `json:"servers"` // as its log has them
}

// openStopped opens the data directory of a server that does not run. eboot.ErrNotFound:
// there is none; ErrConflict: the server runs.
func openStopped(dir string) (*dataDir, error) {
	if _, err := os.Stat(filepath.Join(dir, "node-id")); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("data directory %s: no server has used it (node-id is missing): %w", dir, eboot.ErrNotFound)
		}
		return nil, err
	}
	return openDataDir(dir)
}

// InspectDataDir reads who a stopped server is and how far its log goes.
func InspectDataDir(dir string) (i Inspection, err error) {
	data, err := openStopped(dir)
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, data.close()) }()
	if i.ID, err = data.serverID(); err != nil {
		return i, err
	}
	if i.Cluster, err = data.cluster(); err != nil {
		return i, err
	}
	raft, err := cluster.Inspect(data.raft(), i.ID)
	if err != nil {
		return i, err
	}
	i.LastIndex, i.LastTerm, i.SnapshotIndex, i.SnapshotTerm = raft.LastIndex, raft.LastTerm, raft.SnapshotIndex, raft.SnapshotTerm
	i.Servers = members(cluster.Status{Servers: raft.Servers})
	return i, nil
}

// RecoverDataDir makes servers the members of the cluster that a stopped server knows,
// and takes every entry of its log for committed: the way on when a quorum is lost for
// good. The raft directory from before is kept beside it.
func RecoverDataDir(dir string, servers []eboot.Member, logger hclog.Logger) (err error) {
	data, err := openStopped(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.close()) }()
	id, err := data.serverID()
	if err != nil {
		return err
	}
	list := make([]cluster.Member, len(servers))
	address := ""
	for i, s := range servers {
		list[i] = cluster.Member{ID: s.ID, Address: s.Address, Voter: s.Voter}
		if s.ID == id {
			address = s.Address
		}
	}
	if address == "" {
		return fmt.Errorf("recover: the list does not have this server (%s): %w", id, eboot.ErrInvalid)
	}
	return cluster.Recover(cluster.Options{
		Dir: data.raft(), ServerID: id, Address: address, StateMachine: stateMachine{fsm.New(nil)}, Logger: logger.Named("raft"),
	}, list)
}

// ResetDataDir makes a stopped server a new one: it loses its id, its log and its
// serving cache, and keeps the blobs.
func ResetDataDir(dir string) (err error) {
	data, err := openStopped(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.close()) }()
	// The id goes last: until then the directory is that of a server, and a reset that
	// was interrupted can be repeated.
	for _, name := range []string{data.raft(), data.servingCache(), data.pins(), data.plans(), data.peers(), data.foundedPath(), data.idPath()} {
		if err := os.RemoveAll(name); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	return data.sync()
}
