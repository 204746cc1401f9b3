package agent

import (
	"context"
	"fmt"
	"time"

	"eboot"
	"eboot/fleet"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

const (
	// restoreFor is how long after the end of a rollout that failed its slaves are restarted,
	// so that they run again what they had.
	restoreFor = 10 * time.Minute
	// restartTimeout is of telling one slave.
	restartTimeout = 2 * time.Second
)

// restart tells slaves to boot again that do not run what they would boot now: those that the
// rollout has come to, and after its failure those that run its target. At most r.Restart are
// on their way at a time.
func (d *rolloutDriver) restart(ctx context.Context, state *fsm.State, r eboot.Rollout, slaves []fleet.SlaveRecord, now time.Time) {
	if r.Phase == eboot.RolloutPaused || r.Phase == eboot.RolloutStopped {
		return
	}
	room := r.Restart
	var candidates []fleet.SlaveRecord
	for _, s := range slaves {
		entry, ok := state.Lookup(s.Slave)
		if !ok || entry.Channel != r.Channel {
			continue
		}
		key := slaveKey{s.Slave, s.ERTS}
		at, told := d.told[key]
		if told && (s.Latest.Began.After(at) && s.Latest.Phase != eboot.BootLoading || now.Sub(at) > r.Deadline()) {
			delete(d.told, key)
			told = false
		}
		switch loading := s.Latest.Phase == eboot.BootLoading && now.Sub(s.Latest.Began) < r.Deadline(); {
		case told, loading:
			room--
		case restartable(s.Latest) && d.outdated(state, &r, entry, s):
			candidates = append(candidates, s)
		}
	}
	for _, s := range candidates[:max(0, min(room, len(candidates)))] {
		d.told[slaveKey{s.Slave, s.ERTS}] = now
		if err := d.agent.tellRestart(ctx, s.Latest); err != nil && ctx.Err() == nil {
			d.agent.logger.Debug("slave was not told to restart; trying again", "slave", s.Slave, "error", err)
		}
	}
}

// outdated reports whether the rollout is why a slave runs another bundle than it would boot
// now.
func (d *rolloutDriver) outdated(state *fsm.State, r *eboot.Rollout, entry *eboot.WhitelistEntry, s fleet.SlaveRecord) bool {
	next, ok := state.Target(entry, s.Slave, s.ERTS)
	if !ok || next.Manifest == s.Latest.Manifest {
		return false
	}
	if !r.Phase.Over() {
		return r.Moves(s.Slave, entry.Labels) && next.Ref() == r.Target
	}
	target, ok := state.Bundle(r.Target, s.ERTS)
	return ok && s.Latest.Manifest == target.Manifest && !s.Latest.Began.Before(r.StartedAt)
}

// restartable reports whether a slave can be told to restart: it has booted, runs our loader,
// and keeps its session open.
func restartable(b eboot.Boot) bool {
	return b.Cured != nil && b.Cured.Control && b.Phase == eboot.BootStarted
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
