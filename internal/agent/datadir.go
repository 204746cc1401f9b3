package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"eboot"
	"eboot/internal/fsutil"
)

// dataDir is what one server keeps, and the lock that keeps a second process out.
//
//	LOCK            held while a process uses the directory
//	node-id         the server's UUID, made once
//	founded         the cluster it belongs to, so that it founds no second one
//	raft/           log and snapshots
//	store/          blobs
//	serving-cache   the newest state, to serve from before Raft has replayed its log
//	pins.json       which bundle each slave booted
//	plans.json      what boots of each bundle needed
//	peers           where other servers were heard of last
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory when it is missing. eboot.ErrConflict:
// another process uses it.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(lock, 64))
		return nil, errors.Join(fmt.Errorf("data directory %s: is in use by process %s: %w", path, strings.TrimSpace(string(holder)), eboot.ErrConflict), lock.Close())
	}
	err = lock.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(lock, os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), lock.Close())
	}
	if err := fsutil.RemoveTemporary(path); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), lock.Close())
	}
	return &dataDir{path: path, lock: lock}, nil
}

func (d *dataDir) close() error { return d.lock.Close() }

func (d *dataDir) raft() string         { return filepath.Join(d.path, "raft") }
func (d *dataDir) store() string        { return filepath.Join(d.path, "store") }
func (d *dataDir) servingCache() string { return filepath.Join(d.path, "serving-cache") }
func (d *dataDir) pins() string         { return filepath.Join(d.path, "pins.json") }
func (d *dataDir) plans() string        { return filepath.Join(d.path, "plans.json") }
func (d *dataDir) peers() string        { return filepath.Join(d.path, "peers") }
func (d *dataDir) foundedPath() string  { return filepath.Join(d.path, "founded") }
func (d *dataDir) idPath() string       { return filepath.Join(d.path, "node-id") }

func (d *dataDir) sync() error { return fsutil.SyncDir(d.path) }

// cluster returns the id of the cluster that this server has belonged to; empty: none.
func (d *dataDir) cluster() (string, error) {
	text, err := os.ReadFile(d.foundedPath())
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// founded reports whether this server has belonged to a cluster.
func (d *dataDir) founded() (bool, error) {
	_, err := os.Stat(d.foundedPath())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// markFounded notes the cluster that this server belongs to.
func (d *dataDir) markFounded(cluster string) error {
	if is, err := d.founded(); is || err != nil || cluster == "" {
		return err
	}
	return fsutil.WriteAtomic(d.foundedPath(), 0o600, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, cluster)
		return err
	})
}

// serverID returns the server's UUID, made on the first start. Raft knows a
// server by it, not by its address, so it must never change.
func (d *dataDir) serverID() (string, error) {
	path := d.idPath()
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		id := uuid.NewString()
		return id, fsutil.WriteAtomic(path, 0o600, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, id)
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("server id: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(data)))
	if err != nil {
		return "", fmt.Errorf("server id: %s: %v; restore the file, or empty the whole data directory to make a new server: %w", path, err, eboot.ErrDamaged)
	}
	return id.String(), nil
}
