package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/fleet"
	"eboot/fsm"
	"eboot/rollout"
)

const (
	// rolloutTick is how often the leader judges the boots of a rollout.
	rolloutTick = 500 * time.Millisecond
	// totalsEvery is how often totals alone go into the log. A step goes at once.
	totalsEvery = time.Second
)

// Rollouts returns the latest rollout of each channel.
func (a *Agent) Rollouts() []eboot.Rollout { return a.view.State().Rollouts() }

// Rollout returns the latest rollout of a channel.
func (a *Agent) Rollout(channel string) (eboot.Rollout, error) {
	if err := eboot.CheckName("channel", channel); err != nil {
		return eboot.Rollout{}, err
	}
	r, ok := a.view.State().Rollout(channel)
	if !ok {
		return r, fmt.Errorf("channel %s: has had no rollout; `eboot rollout start %s NAME@VERSION` begins one: %w", channel, channel, eboot.ErrNotFound)
	}
	return r, nil
}

// StartRollout begins the staged move of a channel.
func (a *Agent) StartRollout(ctx context.Context, w api.Write, channel string, s api.RolloutStart) (api.RolloutResult, error) {
	start := fsm.StartRollout{Header: a.header(w), ID: rolloutID(w), Channel: channel, Ref: s.Bundle, Spec: s.RolloutSpec}
	return a.stepRollout(ctx, channel, start)
}

// rolloutID is the same for a repeat of the request.
func rolloutID(w api.Write) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("rollout "+w.RequestID)).String()
}

// SteerRollout pauses, resumes, promotes, aborts or takes back a rollout.
func (a *Agent) SteerRollout(ctx context.Context, w api.Write, channel string, s api.RolloutSteer) (api.RolloutResult, error) {
	return a.stepRollout(ctx, channel, fsm.SteerRollout{Header: a.header(w), Channel: channel, ID: s.ID, Action: s.Action, Reason: s.Reason})
}

func (a *Agent) stepRollout(ctx context.Context, channel string, command fsm.Command) (api.RolloutResult, error) {
	result, err := a.writeNew(ctx, command)
	if err != nil {
		return api.RolloutResult{}, err
	}
	r, _ := a.view.State().Rollout(channel)
	return api.RolloutResult{WriteResult: result, Rollout: r}, nil
}

// rolloutDriver judges the boots of rollouts while this server leads, and has the state
// machine told. What it remembers may be lost with its server: the next leader sees the same boots.
type rolloutDriver struct {
	agent *Agent
	told  map[slaveKey]time.Time // slaves that were told to restart, and when
	sent  map[string]time.Time   // when totals of a rollout last went into the log, by its id
}

// slaveKey is a slave as the fleet tells slaves apart.
type slaveKey struct {
	slave netip.Addr
	erts  string
}

// driveRollouts runs the driver until ctx ends. While no rollout wants it, it sleeps.
func (a *Agent) driveRollouts(ctx context.Context) error {
	d := &rolloutDriver{agent: a, told: map[slaveKey]time.Time{}, sent: map[string]time.Time{}}
	for {
		changed, led := a.machine.Changed(), a.cluster.LeaderChanged()
		var tick <-chan time.Time
		if a.cluster.Status().Role == roleLeader && d.drive(ctx) {
			tick = time.After(rolloutTick)
			changed = nil // its own entries change the state: once each tick is enough
		}
		select {
		case <-tick:
		case <-changed:
		case <-led:
		case <-ctx.Done():
			return nil
		}
	}
}

// drive looks at every rollout once, and reports whether one needs it again.
func (d *rolloutDriver) drive(ctx context.Context) (again bool) {
	state := d.agent.machine.State()
	now := d.agent.now()
	var slaves []fleet.SlaveRecord
	for _, r := range state.Rollouts() {
		active := !r.Phase.Over()
		restoring := r.Restart > 0 && r.Phase.Over() && r.Phase != eboot.RolloutSucceeded && now.Sub(r.ChangedAt) < restoreFor
		if !active && !restoring {
			continue
		}
		if slaves == nil {
			slaves = d.agent.fleet.Slaves()
		}
		again = true
		if active {
			d.observe(ctx, state, r, slaves, now)
		}
		if r.Restart > 0 {
			d.restart(ctx, state, r, slaves, now)
		}
	}
	if !again {
		clear(d.told)
		clear(d.sent)
	}
	return again
}

// observe has the state machine told what became of the slaves that booted the target.
func (d *rolloutDriver) observe(ctx context.Context, state *fsm.State, r eboot.Rollout, slaves []fleet.SlaveRecord, now time.Time) {
	totals := d.tally(state, &r, slaves, now)
	next := rollout.Observe(r, r.Stage, totals, now)
	step := next.Phase != r.Phase || next.Stage != r.Stage
	if !step && (slices.Equal(next.Totals, r.Totals) || now.Sub(d.sent[r.ID]) < totalsEvery) {
		return
	}
	d.sent[r.ID] = now
	_, err := d.agent.propose(ctx, fsm.ObserveRollout{Header: d.agent.ownHeader(), Channel: r.Channel, ID: r.ID, Stage: r.Stage, Totals: totals})
	if err != nil && ctx.Err() == nil {
		d.agent.logger.Debug("what became of a rollout's boots is not entered yet", "channel", r.Channel, "error", err)
	}
}

// tally counts, for each stage that was begun, what became of the slaves that it was the
// first to select.
func (d *rolloutDriver) tally(state *fsm.State, r *eboot.Rollout, slaves []fleet.SlaveRecord, now time.Time) []eboot.StageTotals {
	totals := make([]eboot.StageTotals, r.Stage+1)
	targets := map[string]eboot.Digest{}
	for _, b := range state.BundlesOf(r.Target) {
		targets[b.ERTS] = b.Manifest
	}
	for _, s := range slaves {
		manifest, ok := targets[s.ERTS]
		if !ok || s.Latest.Began.Before(r.StartedAt) {
			continue
		}
		entry, ok := state.Lookup(s.Slave)
		if !ok || entry.Channel != r.Channel {
			continue
		}
		stage, ok := r.StageOf(s.Slave, entry.Labels)
		if !ok || stage > r.Stage {
			continue
		}
		boots := bootsOf(d.agent.fleet.BootsOf(s.Slave), s.ERTS, manifest, r.StartedAt)
		boots = slices.DeleteFunc(boots, func(b eboot.Boot) bool { return now.Sub(b.Began) > r.Deadline() && d.unknown(b) })
		if len(boots) == 0 {
			continue
		}
		count(&totals[stage], fleet.Judge(boots, now, r.Deadline(), r.MinHealthy()))
	}
	return totals
}

// unknown reports whether nobody saw how a boot went on: its server was lost or restarted in the
// middle of it, and no other has the slave. It may be up; then no loader says so a second time.
func (d *rolloutDriver) unknown(b eboot.Boot) bool {
	return b.Loaded.IsZero() && b.Failure == "" &&
		(b.Phase == eboot.BootClosed || b.Phase == eboot.BootLoading && !d.agent.peers.alive(b.Server))
}

// bootsOf returns the boots of one bundle since a time, oldest first; boots has the newest first.
func bootsOf(boots []eboot.Boot, erts string, manifest eboot.Digest, since time.Time) []eboot.Boot {
	boots = slices.DeleteFunc(boots, func(b eboot.Boot) bool {
		return b.ERTS != erts || b.Manifest != manifest || b.Began.Before(since)
	})
	slices.Reverse(boots)
	return boots
}

func count(t *eboot.StageTotals, v fleet.Verdict) {
	t.Booted++
	t.Failures += v.Failures
	if v.Looping {
		t.Looping++
	}
	switch v.State {
	case fleet.Healthy:
		t.Healthy++
	case fleet.Failed:
		t.Failed++
	default:
		t.Pending++
	}
}
