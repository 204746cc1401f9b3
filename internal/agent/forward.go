package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"eboot"
	"eboot/cluster"
	"eboot/fsm"
)

// leaderPatience is how long a write looks for a leader that takes it: longer than an
// election takes, shorter than people wait.
const leaderPatience = 2300 * time.Millisecond

// attemptPatience is how long one attempt of a write or a read may take. Another attempt
// does no harm: the state machine tells repeats apart.
const attemptPatience = time.Second

// probePatience is how long, after that, the others may take to say that they are there.
const probePatience = 300 * time.Millisecond

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
	if err := a.checkVersion("write", fsm.MinimumVersion(command)); err != nil {
		return nil, err
	}
	if err := a.checkTrust(ctx, command); err != nil {
		return nil, err
	}
	var result *fsm.Result
	err = a.withLeader(ctx, "write", attemptPatience, func(ctx context.Context, leader string) (err error) {
		if leader == a.server {
			result, err = a.applyHere(ctx, entry)
			return err
		}
		encoded, err := a.peers.rpc.Apply(ctx, leader, entry)
		if err == nil {
			result, err = fsm.DecodeResult(encoded)
		}
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

// checkVersion refuses what some server of the cluster could not read (R19).
func (a *Agent) checkVersion(what string, want int) error {
	if have := a.view.State().Version(); want > have {
		return fmt.Errorf("%s: the cluster is at version %d and this change needs %d: upgrade every server first (`eboot cluster members`): %w", what, have, want, eboot.ErrConflict)
	}
	return nil
}

// ApplyEntry proposes a command that another server encoded. This one must lead.
func (a *Agent) ApplyEntry(ctx context.Context, entry []byte) ([]byte, error) {
	if err := a.raftStopped(); err != nil {
		return nil, err
	}
	command, err := fsm.CheckEntry(entry) // one that cannot be read would halt every server
	if err != nil {
		return nil, err
	}
	wants := fsm.MinimumVersion(command)
	if a.checkVersion("write", wants) != nil {
		// A leader that has just been elected may not have applied that the version was raised.
		if err := a.cluster.VerifiedRead(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.checkVersion("write", wants); err != nil {
		return nil, err
	}
	if err := a.checkTrust(ctx, command); err != nil {
		return nil, err
	}
	result, err := a.applyHere(ctx, entry)
	if err != nil {
		return nil, err
	}
	return result.Encode(), nil
}

// applyHere proposes an entry on this server, which must lead.
func (a *Agent) applyHere(ctx context.Context, entry []byte) (*fsm.Result, error) {
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
	return result, nil
}

// withLeader calls task with the leader's id until it has an outcome that will not
// pass, or leaderPatience is over. limit bounds one attempt; one that is longer than
// leaderPatience may outlast it, but no other follows.
func (a *Agent) withLeader(ctx context.Context, what string, limit time.Duration, task func(ctx context.Context, leader string) error) error {
	lasting := ctx
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	if limit <= leaderPatience {
		lasting = ctx
	}
	var unknown, latest error
	for {
		if err := a.raftStopped(); err != nil {
			return whatItTells(what, unknown, err)
		}
		changed := a.cluster.LeaderChanged()
		leader := a.cluster.Status().Leader
		if leader != "" {
			switch err := a.attempt(lasting, limit, leader, task); {
			case errors.Is(err, eboot.ErrUnknownOutcome):
				unknown = err
			case errors.Is(err, eboot.ErrNoLeader), errors.Is(err, eboot.ErrUnreachable), errors.Is(err, eboot.ErrTimeout):
				latest = err
			case err != nil:
				return whatItTells(what, unknown, err)
			default:
				return nil
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

// attempt gives a task up when it takes too long, or another server leads: the one that
// was asked may hang, and its successor answers at once.
func (a *Agent) attempt(ctx context.Context, limit time.Duration, leader string, task func(ctx context.Context, leader string) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		for {
			changed := a.cluster.LeaderChanged()
			if now := a.cluster.Status().Leader; now != "" && now != leader {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	return task(ctx, leader)
}

// whatItTells is the outcome of an attempt that failed for good after one, perhaps, whose
// outcome is unknown: that of the whole is unknown then, and nothing else.
func whatItTells(what string, unknown, err error) error {
	if unknown == nil {
		return err
	}
	return fmt.Errorf("%s: %w (and then: %v)", what, unknown, err)
}

// missingVoters says in words why there may be no leader. Gossip needs seconds to miss a
// server; before that, the servers themselves are asked.
func (a *Agent) missingVoters() string {
	raft := a.cluster.Status()
	if silent := a.silentVoters(raft); len(silent) > 0 {
		return "no leader answers; missing: no answer from " + places(slices.Concat(raft.Missing, silent))
	}
	if err := a.cluster.Standing(); err != nil {
		return err.Error()
	}
	if len(raft.Missing) == 0 {
		return "no leader answers, though all servers that vote are alive"
	}
	return "no leader answers; missing: " + places(raft.Missing)
}

// silentVoters are those that gossip does not miss and that do not answer.
func (a *Agent) silentVoters(raft cluster.Status) []cluster.Member {
	voters := slices.DeleteFunc(slices.Clone(raft.Servers), func(m cluster.Member) bool {
		return !m.Voter || m.ID == a.server || slices.Contains(raft.Missing, m)
	})
	if len(voters) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), probePatience)
	defer cancel()
	infos := a.infos(ctx)
	return slices.DeleteFunc(voters, func(m cluster.Member) bool {
		_, answered := infos[m.ID]
		return answered
	})
}

func places(members []cluster.Member) string {
	var texts []string
	for _, m := range members {
		texts = append(texts, m.ID+" at "+m.Address)
	}
	return strings.Join(texts, ", ")
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
	err := a.withLeader(ctx, "read", attemptPatience, func(ctx context.Context, leader string) (err error) {
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
