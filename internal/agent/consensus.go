package agent

import (
	"context"
	"fmt"
	"io"

	"eboot"
	"eboot/cluster"
)

// consensus is what the agent asks of Raft.
type consensus interface {
	// Apply returns what the state machine answered. eboot.ErrNoLeader and
	// ErrTimeout: nothing happened; ErrUnknownOutcome: it may have.
	Apply(ctx context.Context, command []byte) (any, error)
	// Barrier returns when everything committed before has been applied here.
	Barrier(ctx context.Context) error
	// VerifiedRead returns when the state is as new as when it was called.
	VerifiedRead(ctx context.Context) error
	WaitForLeader(ctx context.Context) error
	WaitApplied(ctx context.Context, index uint64) error
	// HoldWrites and Restore replace the whole state: see cluster.Cluster.
	HoldWrites(ctx context.Context) (release func(), err error)
	Restore(ctx context.Context, size int64, r io.Reader) error
	membership
	consensusState
	Close() error
}

// membership is who belongs to the group: see cluster.Cluster.
type membership interface {
	Form(ctx context.Context) error
	Found(ctx context.Context) error
	Transfer(ctx context.Context, to string) error
	Remove(ctx context.Context, id string) error
	Replace(ctx context.Context, old string) error
	Knowledge() cluster.Knowledge
	Learning() []cluster.Candidate
}

// consensusState is how Raft is on this server.
type consensusState interface {
	Status() cluster.Status
	Failure() error // why Raft does not run here; nil while it does
	// Standing says why this server is not a member of a cluster; nil while it is.
	Standing() error
	LeaderChanged() <-chan struct{}
}

var (
	_ consensus = (*cluster.Cluster)(nil)
	_ consensus = noRaft{}
)

// noRaft stands for a Raft that could not be opened on a server that has a
// serving cache: serving never needs a quorum, and so not a log either. Whatever
// needs Raft says why there is none.
type noRaft struct{ cause error }

func (n noRaft) err() error {
	return fmt.Errorf("this server's raft could not be opened and it serves the state of its cache (%v); put a good raft directory back, or %s: %w", n.cause, beginAnew, eboot.ErrNoLeader)
}

// Failure says why Raft does not run.
func (n noRaft) Failure() error { return n.err() }

// Status has no servers: nothing is known of a group.
func (n noRaft) Status() cluster.Status {
	return cluster.Status{Role: "shutdown", Servers: []cluster.Member{}}
}

// Apply did nothing.
func (n noRaft) Apply(context.Context, []byte) (any, error) { return nil, n.err() }

// Barrier cannot be passed.
func (n noRaft) Barrier(context.Context) error { return n.err() }

// VerifiedRead cannot be given.
func (n noRaft) VerifiedRead(context.Context) error { return n.err() }

// WaitForLeader does not wait.
func (n noRaft) WaitForLeader(context.Context) error { return n.err() }

// HoldWrites holds nothing.
func (n noRaft) HoldWrites(context.Context) (func(), error) { return nil, n.err() }

// Restore did nothing.
func (n noRaft) Restore(context.Context, int64, io.Reader) error { return n.err() }

// WaitApplied does not wait.
func (n noRaft) WaitApplied(context.Context, uint64) error { return n.err() }

// Form has nothing to form with.
func (n noRaft) Form(context.Context) error { return nil }

// Found founds nothing.
func (n noRaft) Found(context.Context) error { return n.err() }

// Transfer has no leadership to give.
func (n noRaft) Transfer(context.Context, string) error { return n.err() }

// Remove removes nobody.
func (n noRaft) Remove(context.Context, string) error { return n.err() }

// Replace replaces nobody.
func (n noRaft) Replace(context.Context, string) error { return n.err() }

// Knowledge is nothing: not even this server's id, so nobody takes it for an answer.
func (n noRaft) Knowledge() cluster.Knowledge { return cluster.Knowledge{} }

// Learning is what only a leader knows.
func (n noRaft) Learning() []cluster.Candidate { return nil }

// Standing says why Raft does not run.
func (n noRaft) Standing() error { return n.err() }

// LeaderChanged never happens.
func (n noRaft) LeaderChanged() <-chan struct{} { return nil }

// Close has nothing to close.
func (n noRaft) Close() error { return nil }
