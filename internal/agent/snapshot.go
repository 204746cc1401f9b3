package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/fsm"
)

// SaveSnapshot writes the replicated state as of a moment after the call began. A
// server that finds no leader saves what it serves, and says that it may be old: that
// may be the last copy.
func (a *Agent) SaveSnapshot(ctx context.Context, by eboot.Actor, w io.Writer) (api.SnapshotInfo, error) {
	stale := a.raftFailure() != nil || a.Fresh(ctx) != nil
	state := a.view.State()
	_, err := state.WriteTo(w)
	if err == nil {
		a.note(ctx, by, eboot.EventSnapshotSaved, fmt.Sprintf("the state as of log entry %d was taken out", state.Index()))
	}
	info := DescribeSnapshot(state)
	info.Stale = stale
	return info, err
}

// restorePatience bounds a restore that Raft does not finish.
const restorePatience = 5 * time.Minute

// RestoreSnapshot replaces the replicated state of this cluster.
func (a *Agent) RestoreSnapshot(ctx context.Context, by eboot.Actor, r io.Reader, force bool) (api.SnapshotInfo, error) {
	if err := a.awaitLeader(ctx); err != nil {
		return api.SnapshotInfo{}, fmt.Errorf("restore: %s: %w", a.missingVoters(), err)
	}
	// It is sent once: what it is read from cannot be read again.
	if leader := a.cluster.Status().Leader; leader != a.server {
		return a.peers.rpc.Restore(ctx, leader, by, r, force)
	}
	return a.RestoreHere(ctx, by, r, force)
}

// RestoreHere is RestoreSnapshot on the leader.
func (a *Agent) RestoreHere(ctx context.Context, by eboot.Actor, r io.Reader, force bool) (api.SnapshotInfo, error) {
	restored, err := fsm.ReadState(r)
	if err != nil {
		return api.SnapshotInfo{}, err
	}
	// A server that could not read the state would halt.
	if err := a.awaitVersion(ctx, restored.MinimumVersion()); err != nil {
		return api.SnapshotInfo{}, err
	}
	if err := a.checkVersion("restore", restored.MinimumVersion()); err != nil {
		return api.SnapshotInfo{}, err
	}
	header, err := a.header(ctx, api.Write{RequestID: uuid.NewString(), By: by}) // before writes are held: it may need one
	if err != nil {
		return api.SnapshotInfo{}, err
	}
	release, err := a.cluster.HoldWrites(ctx)
	if err != nil {
		return api.SnapshotInfo{}, err
	}
	defer release()
	now := a.machine.State()
	if !force && (now.WhitelistSize() > 0 || len(now.Bundles()) > 0 || len(now.Channels()) > 0) {
		return api.SnapshotInfo{}, fmt.Errorf("restore: this cluster is in use (%d whitelist entries, %d bundles); restore into a new one, or use --force to replace everything: %w",
			now.WhitelistSize(), len(now.Bundles()), eboot.ErrConflict)
	}
	var out bytes.Buffer
	if _, err := restored.ForRestore(now, a.cluster.Status().LastIndex, header).WriteTo(&out); err != nil {
		return api.SnapshotInfo{}, err
	}
	// Once begun it is waited for: writes are held until it is decided.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restorePatience)
	defer cancel()
	if err := a.cluster.Restore(ctx, int64(out.Len()), &out); err != nil {
		return api.SnapshotInfo{}, err
	}
	return DescribeSnapshot(a.machine.State()), nil
}

// DescribeSnapshot sums a state up.
func DescribeSnapshot(s *fsm.State) api.SnapshotInfo {
	return api.SnapshotInfo{
		Cluster: s.Cluster(), Index: s.Index(), Generation: s.Generation(), Digest: s.Digest(),
		Entries: s.WhitelistSize(), Bundles: len(s.Bundles()), Channels: len(s.Channels()),
	}
}
