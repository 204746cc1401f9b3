package cluster

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"eboot"
)

// StateMachine is what the agreed commands are for. Raft calls it from one
// goroutine at a time.
type StateMachine interface {
	// Apply takes the command that is log entry index, and returns what Apply of
	// Cluster returns to the proposer. It must do the same on every server. A panic,
	// best with an error that says what to do, stops Raft on this server.
	Apply(index uint64, command []byte) any
	// Snapshot captures the state at once; it is written later, while Apply goes on.
	Snapshot() (io.WriterTo, error)
	// Restore replaces the state by what a snapshot wrote; when it fails the state
	// stays as it was.
	Restore(io.Reader) error
}

// Options are what a Cluster is made of.
type Options struct {
	Dir      string // of the log and the snapshots; made when missing, and nobody else's
	ServerID string // the server's UUID, by which it votes; never changes
	Address  string // host:port where the other servers find this one

	// Bootstrap makes a server that has no state yet a cluster of one at Open.
	Bootstrap bool
	// Stream carries Raft between servers: see NewStream. Its Addr is Address. Close
	// closes it, and it then closes the connections it has accepted, which the library
	// does not. Nil: nobody can be reached, the server is alone.
	Stream raft.StreamLayer

	Directory Directory // of the other servers; nil: alone
	Expect    int       // cluster.expect: how many servers found the cluster; 0: never found one
	// MayFound is false for a server that has belonged to a cluster: it never founds
	// one by itself. Keep that beside the server's id, so that both are lost together.
	MayFound bool
	// Removed, unless nil, reports whether the replicated state says that the server
	// with this id was removed; such a server is never added again.
	Removed func(id string) bool
	// Cluster, unless nil, returns the UUID of the cluster that this server belongs to, or
	// belonged to when its log is gone; "": none yet. Servers of different ones never take
	// each other in.
	Cluster func() string
	// Admit, unless nil, is told once that this server may take part: its raft protocol
	// may let connections in. For one that is in a configuration that is at Open.
	Admit func()

	StateMachine StateMachine
	Logger       hclog.Logger // nil: silent

	// OnStorageFailure, unless nil, is told once when the log can no longer be
	// relied upon. It is called by a goroutine of the Cluster and may not call Close
	// from there.
	OnStorageFailure func(error)

	// Multiplier, 1 to 10, stretches all timeouts between servers for slow machines
	// or networks; 0 is 1.
	Multiplier int

	pace pace
}

// pace is how fast things go; only tests change it.
type pace struct {
	poll      time.Duration // 0: 500 ms, between looks at what does not tell of its changes
	heartbeat time.Duration // 0: 1 s, times Multiplier
	stable    time.Duration // 0: 10 s, for which a non-voter must have been alive before it may vote
}

const (
	defaultStable    = 10 * time.Second
	defaultPoll      = 500 * time.Millisecond
	defaultHeartbeat = time.Second
)

func (o *Options) check() error {
	switch {
	case o.Dir == "" || o.ServerID == "" || o.Address == "" || o.StateMachine == nil:
		return fmt.Errorf("cluster: directory, server id, address and state machine are needed: %w", eboot.ErrInvalid)
	case o.Multiplier < 0 || o.Multiplier > 10:
		return fmt.Errorf("cluster: multiplier %d: want 1 to 10: %w", o.Multiplier, eboot.ErrInvalid)
	}
	o.Multiplier = max(o.Multiplier, 1)
	o.pace.stable = cmp.Or(o.pace.stable, defaultStable)
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return nil
}

// heartbeatTimeout is how long a server waits for its leader.
func (o *Options) heartbeatTimeout() time.Duration {
	return time.Duration(o.Multiplier) * cmp.Or(o.pace.heartbeat, defaultHeartbeat)
}

func (o *Options) poll() time.Duration { return cmp.Or(o.pace.poll, defaultPoll) }

// electionNudge is what the timeouts begin above their value, so that electAlone
// can lower them.
const electionNudge = time.Millisecond

func (o *Options) raftConfig(notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(o.ServerID)
	c.HeartbeatTimeout = o.heartbeatTimeout() + electionNudge
	c.ElectionTimeout = c.HeartbeatTimeout
	// A follower hears of a commit with the next message, which is that long in coming
	// when nothing else is written: a write through a follower waits for it.
	c.CommitTimeout = 15 * time.Millisecond * time.Duration(o.Multiplier)
	c.LeaderLeaseTimeout = o.heartbeatTimeout() / 2
	c.SnapshotInterval = 30 * time.Second
	// An older snapshot is of use only while the log covers what came after it, and
	// a server that lags is fed from the log: R13.
	c.SnapshotThreshold, c.TrailingLogs = 2048, 10240
	c.ShutdownOnRemove = false
	c.NoLegacyTelemetry = true
	c.BatchApplyCh = false // true would break the timeout of Apply
	c.NotifyCh = notify
	c.Logger = o.Logger
	return c
}
