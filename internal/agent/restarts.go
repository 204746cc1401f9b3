package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"eboot"
	"eboot/fleet"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

const (
	// restoreFor is how long after the end of a rollout that failed its slaves are restarted,
	// so that they run again what they had.
	restoreFor = time.Hour
	// restartTimeout is of telling one slave, and restartRetry when one that could not be told is
	// told again.
	restartTimeout = 2 * time.Second
	restartRetry   = 30 * time.Second
	restartsAtOnce = 16 // servers' answers that are waited for
)

// restarter restarts slaves because of rollouts, while this server leads. What it remembers
// may be lost with its server: the next leader sees who takes notice and who is booting.
type restarter struct {
	agent *Agent

	mu    sync.Mutex
	told  map[slaveKey]toldBoot
	retry map[slaveKey]time.Time // those that could not be told, and when to try again
}

// toldBoot is a boot that was told to end.
type toldBoot struct {
	boot string // its id
	at   time.Time
}

func newRestarter(a *Agent) *restarter {
	return &restarter{agent: a, told: map[slaveKey]toldBoot{}, retry: map[slaveKey]time.Time{}}
}

// round tells as many slaves of each rollout as it may, and reports whether there is a rollout
// that restarts slaves.
func (t *restarter) round(ctx context.Context) bool {
	if !slices.ContainsFunc(t.agent.machine.State().Rollouts(), t.wants) {
		t.mu.Lock()
		defer t.mu.Unlock()
		clear(t.told)
		clear(t.retry)
		return false
	}
	// A new leader may not have applied that a rollout was aborted.
	if err := t.agent.Fresh(ctx); err != nil {
		return true
	}
	state := t.agent.machine.State()
	slaves := t.agent.fleet.Slaves()
	wanted := slices.DeleteFunc(state.Rollouts(), func(r eboot.Rollout) bool { return !t.wants(r) })
	boots := t.agent.rolloutBoots(wanted)
	var telling errgroup.Group
	telling.SetLimit(restartsAtOnce)
	for _, r := range wanted {
		for _, s := range t.choose(state, &r, slaves, boots[r.ID], t.agent.now()) {
			telling.Go(func() error {
				if err := t.agent.tellRestart(ctx, s.Latest); err != nil {
					t.untold(slaveKey{s.Slave, s.ERTS}, err)
				}
				return nil
			})
		}
	}
	_ = telling.Wait() // each deals with its own error
	return true
}

// wants reports whether a rollout restarts slaves now: those that it has come to, and after
// its failure those that run its target.
func (t *restarter) wants(r eboot.Rollout) bool {
	switch {
	case r.Restart == 0:
		return false
	case r.Phase.Over():
		return r.Phase != eboot.RolloutSucceeded && t.agent.now().Sub(r.ChangedAt) < restoreFor
	}
	return r.Phase == eboot.RolloutRunning || r.Phase == eboot.RolloutWaiting
}

// choose returns the slaves that are to be told now, and notes that they are. A slave takes its
// place until it is healthy or has failed: with one at a time, the next one waits for that.
func (t *restarter) choose(state *fsm.State, r *eboot.Rollout, slaves []fleet.SlaveRecord, boots [][]eboot.Boot, now time.Time) (chosen []fleet.SlaveRecord) {
	room := r.Restart
	pending := map[slaveKey]bool{}
	for _, each := range boots {
		if fleet.Judge(each, now, r.Deadline(), r.MinHealthy()).State == fleet.Pending {
			pending[slaveKey{each[0].Slave, each[0].ERTS}] = true
		}
	}
	for _, s := range slaves {
		entry, ok := state.Lookup(s.Slave)
		if !ok || entry.Channel != r.Channel {
			continue
		}
		switch t.standing(state, r, s, now) {
		case onItsWay:
			room--
		case toBeTold:
			chosen = append(chosen, s)
		default:
			loading := s.Latest.Phase == eboot.BootLoading && now.Sub(s.Latest.Began) < r.Deadline()
			if loading || pending[slaveKey{s.Slave, s.ERTS}] {
				room--
			}
		}
	}
	chosen = chosen[:max(0, min(room, len(chosen)))]
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range chosen {
		t.told[slaveKey{s.Slave, s.ERTS}] = toldBoot{boot: s.Latest.ID, at: now}
	}
	return chosen
}

func (t *restarter) untold(key slaveKey, err error) {
	t.agent.logger.Debug("slave was not told to restart; trying again", "slave", key.slave, "error", err)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.told, key)
	t.retry[key] = t.agent.now().Add(restartRetry)
}

// restartStanding is what a slave is to a rollout that restarts slaves.
type restartStanding int

const (
	leftAlone restartStanding = iota // it runs what it should, or cannot be told
	toBeTold
	onItsWay  // it was told, and has not booted anew
	neverBack // likewise, for longer than a boot may take
)

// standing looks at the latest boot of a slave.
func (t *restarter) standing(state *fsm.State, r *eboot.Rollout, s fleet.SlaveRecord, now time.Time) restartStanding {
	if !outdated(state, r, s) {
		return leftAlone
	}
	key := slaveKey{s.Slave, s.ERTS}
	t.mu.Lock()
	defer t.mu.Unlock()
	told, known := t.told[key]
	switch {
	case known && told.boot != s.Latest.ID: // it has booted, and again not what it should
		delete(t.told, key)
	case known && now.Sub(told.at) > r.Deadline():
		return neverBack
	case known:
		return onItsWay
	case tookNotice(s.Latest) && s.Latest.Latest.After(r.StartedAt): // another leader has told it
		if now.Sub(s.Latest.Latest) > r.Deadline() {
			return neverBack
		}
		return onItsWay
	}
	if now.Before(t.retry[key]) || !t.agent.restartable(s.Latest) {
		return leftAlone
	}
	return toBeTold
}

// outdated reports whether the rollout is why a slave runs another bundle than it would boot
// now.
func outdated(state *fsm.State, r *eboot.Rollout, s fleet.SlaveRecord) bool {
	entry, ok := state.Lookup(s.Slave)
	if !ok || entry.Channel != r.Channel {
		return false
	}
	next, ok := state.Target(entry, s.Slave, s.ERTS)
	if !ok || next.Manifest == s.Latest.Manifest {
		return false
	}
	if !r.Phase.Over() {
		return r.Moves(s.Slave, entry.Labels) && next.Ref() == r.Target
	}
	target, ok := state.RolloutBundle(r, s.ERTS)
	return ok && s.Latest.Manifest == target.Manifest
}

// tookNotice reports whether a slave has said that it restarts.
func tookNotice(b eboot.Boot) bool {
	return b.Cured != nil && slices.ContainsFunc(b.Cured.Phases, func(m eboot.BootMark) bool { return m.Phase == eboot.MarkRestarting })
}

// restartable reports whether a slave can be told to restart: it has booted, runs our loader,
// and keeps its session open with a server that is there.
func (a *Agent) restartable(b eboot.Boot) bool {
	return b.Cured != nil && b.Cured.Control && b.Cured.Number != 0 && b.Phase == eboot.BootStarted && a.peers.alive(b.Server)
}

// tellRestart has the server with the session of a boot tell its slave.
func (a *Agent) tellRestart(ctx context.Context, b eboot.Boot) error {
	request := peerrpc.RestartRequest{Slave: b.Slave, Number: b.Cured.Number}
	if b.Server == a.server {
		return a.RestartSlave(request)
	}
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	return a.peers.rpc.RestartSlave(ctx, b.Server, request)
}

// RestartSlave tells a slave that keeps a session open with this server to boot again.
func (a *Agent) RestartSlave(r peerrpc.RestartRequest) error {
	if err := a.files.Restart(r.Slave, r.Number); err != nil {
		return fmt.Errorf("%w: %w", err, eboot.ErrUnavailable)
	}
	a.fleet.Observe(eboot.Event{Kind: eboot.EventSlaveRestarted, Slave: r.Slave, Text: fmt.Sprintf("%s was told to restart, to boot what its channel's rollout wants", r.Slave)})
	return nil
}
