package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"eboot"
	"eboot/fsm"
)

// leaderPatience is how long a write looks for a leader that takes it: longer than an
// election takes, shorter than people wait.
const leaderPatience = 2500 * time.Millisecond

// appliedPatience is how long a write that is done waits to be seen on this server.
const appliedPatience = time.Second

// propose has the replicated state machine apply one command, wherever the leader is.
// Errors of the command itself come back as the state machine returned them.
//
// An attempt that was not proposed, or whose outcome is not known, is repeated while
// leaderPatience lasts: the state machine tells repeats apart by the request id.
func (a *Agent) propose(ctx context.Context, command fsm.Command) (*fsm.Result, error) {
	entry, err := command.Encode()
	if err != nil {
		return nil, err
	}
	if want, have := fsm.MinimumVersion(command), a.machine.State().Version(); want > have {
		return nil, fmt.Errorf("write: the cluster is at version %d and this change needs %d: upgrade every server first (`eboot cluster members`): %w", have, want, eboot.ErrConflict)
	}
	var result *fsm.Result
	err = a.withLeader(ctx, "write", func(ctx context.Context, leader string) error {
		encoded, err := a.applyAt(ctx, leader, entry)
		if err != nil {
			return err
		}
		result, err = fsm.DecodeResult(encoded)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Who asked this server for a change sees it here from now on.
	applied, cancel := context.WithTimeout(ctx, appliedPatience)
	defer cancel()
	if err := a.cluster.WaitApplied(applied, result.Index); err != nil {
		a.logger.Debug("the change is made and not yet seen here", "index", result.Index, "error", err)
	}
	return result, result.Err
}

func (a *Agent) applyAt(ctx context.Context, leader string, entry []byte) ([]byte, error) {
	if leader == a.server {
		return a.ApplyEntry(ctx, entry)
	}
	return a.peers.rpc.Apply(ctx, leader, entry)
}

// ApplyEntry proposes an encoded command on this server, which must lead.
func (a *Agent) ApplyEntry(ctx context.Context, entry []byte) ([]byte, error) {
	if err := a.raftStopped(); err != nil {
		return nil, err
	}
	if a.behindCache() != nil {
		// A new leader may not have applied its log yet; one that has knows less than
		// it has served.
		if err := a.cluster.VerifiedRead(ctx); err != nil {
			return nil, err
		}
		if err := a.behindCache(); err != nil {
			return nil, err
		}
	}
	answer, err := a.cluster.Apply(ctx, entry)
	if err != nil {
		return nil, err
	}
	result, ok := answer.(*fsm.Result)
	if !ok {
		return nil, fmt.Errorf("apply: the state machine stopped: %w", eboot.ErrUnavailable)
	}
	return result.Encode(), nil
}

// withLeader calls task with the leader's id until it has an outcome that will not
// pass, or leaderPatience is over.
func (a *Agent) withLeader(ctx context.Context, what string, task func(ctx context.Context, leader string) error) error {
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	var unknown, latest error
	for {
		if err := a.raftStopped(); err != nil {
			return errors.Join(unknown, err)
		}
		changed := a.cluster.LeaderChanged()
		leader := a.cluster.Status().Leader
		if leader != "" {
			switch err := task(ctx, leader); {
			case errors.Is(err, eboot.ErrUnknownOutcome):
				unknown = err
			case errors.Is(err, eboot.ErrNoLeader), errors.Is(err, eboot.ErrUnreachable), errors.Is(err, eboot.ErrTimeout):
				latest = err
			default:
				return err
			}
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond): // who leads is seen late by some
		case <-ctx.Done():
			if unknown != nil {
				return fmt.Errorf("%s: %w (%s)", what, unknown, a.missingVoters())
			}
			if latest != nil {
				return fmt.Errorf("%s: %s: %v: %w", what, a.missingVoters(), latest, eboot.ErrNoLeader)
			}
			return fmt.Errorf("%s: %s: %w", what, a.missingVoters(), eboot.ErrNoLeader)
		}
	}
}

// missingVoters says in words why there may be no leader.
func (a *Agent) missingVoters() string {
	if err := a.cluster.Standing(); err != nil {
		return err.Error()
	}
	var missing []string
	for _, m := range a.cluster.Status().Missing {
		missing = append(missing, fmt.Sprintf("%s at %s", m.ID, m.Address))
	}
	if len(missing) == 0 {
		return "no leader answers, though all servers that vote are alive"
	}
	return "no leader answers; missing: " + strings.Join(missing, ", ")
}

// ReadIndex returns the log index that a server must have applied to know everything
// that was acknowledged before the call. This server must lead.
func (a *Agent) ReadIndex(ctx context.Context) (uint64, error) {
	if err := a.cluster.VerifiedRead(ctx); err != nil {
		return 0, err
	}
	// Of the latest command: Raft's own entries, such as the first of a term, count
	// elsewhere only when a command has followed them.
	return a.machine.State().Index(), nil
}

// Fresh returns when this server knows everything that was acknowledged before the
// call.
func (a *Agent) Fresh(ctx context.Context) error {
	var index uint64
	err := a.withLeader(ctx, "read", func(ctx context.Context, leader string) (err error) {
		if leader == a.server {
			index, err = a.ReadIndex(ctx)
		} else {
			index, err = a.peers.rpc.ReadIndex(ctx, leader)
		}
		return err
	})
	if err == nil {
		err = a.cluster.WaitApplied(ctx, index)
	}
	if err == nil {
		err = a.behindCache()
	}
	return err
}
