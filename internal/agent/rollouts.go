package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
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
	totalsEvery = 2 * time.Second
	// settleTime is how long the others may take to tell a server that was just started what
	// they have seen.
	settleTime = 6 * time.Second
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
	if err := a.checkRollout(channel); err != nil {
		return api.RolloutResult{}, err
	}
	return a.stepRollout(ctx, w, channel, func(h fsm.Header) fsm.Command {
		return fsm.StartRollout{Header: h, ID: rolloutID(w), Channel: channel, Ref: s.Bundle, Spec: s.RolloutSpec}
	})
}

// checkRollout refuses what would begin and never come to anything: a mistyped channel would be
// made, and wait for slaves for ever.
func (a *Agent) checkRollout(channel string) error {
	state := a.view.State()
	known, ok := state.Channel(channel)
	switch {
	case !ok && channel != eboot.DefaultChannel:
		return fmt.Errorf("channel %s: does not exist; `eboot channel set %s NAME@VERSION` makes it: %w", channel, channel, eboot.ErrNotFound)
	case known.Options.Live == eboot.LiveOn:
		return fmt.Errorf("channel %s: is live, so slaves would change their bundle while they run; `eboot channel set %s --live off` first: %w", channel, channel, eboot.ErrConflict)
	}
	return nil
}

// rolloutID is the same for a repeat of the request.
func rolloutID(w api.Write) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("rollout "+w.RequestID)).String()
}

// SteerRollout pauses, resumes, promotes, aborts or takes back a rollout.
func (a *Agent) SteerRollout(ctx context.Context, w api.Write, channel string, s api.RolloutSteer) (api.RolloutResult, error) {
	return a.stepRollout(ctx, w, channel, func(h fsm.Header) fsm.Command {
		return fsm.SteerRollout{Header: h, Channel: channel, ID: s.ID, Action: s.Action, Reason: s.Reason}
	})
}

func (a *Agent) stepRollout(ctx context.Context, w api.Write, channel string, command func(fsm.Header) fsm.Command) (api.RolloutResult, error) {
	result, err := a.write(ctx, w, command)
	if err != nil {
		return api.RolloutResult{}, err
	}
	r, _ := a.view.State().Rollout(channel)
	return api.RolloutResult{WriteResult: result, Rollout: r}, nil
}

// rolloutDriver judges the boots of rollouts while this server leads, and has the state
// machine told. It remembers nothing that matters: the next leader sees the same boots.
type rolloutDriver struct {
	agent    *Agent
	restarts *restarter
	sent     map[string]time.Time // when totals of a rollout last went into the log, by its id
}

// slaveKey is a slave as the fleet tells slaves apart.
type slaveKey struct {
	slave netip.Addr
	erts  string
}

// driveRollouts judges boots, and restarts slaves beside that, until ctx ends. While no
// rollout wants it, it sleeps.
func (a *Agent) driveRollouts(ctx context.Context) error {
	d := &rolloutDriver{agent: a, restarts: newRestarter(a), sent: map[string]time.Time{}}
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { a.whileLeading(ctx, d.restarts.round) })
	a.whileLeading(ctx, d.round)
	return nil
}

// whileLeading calls round each rolloutTick while this server leads and round reports that it
// wants it, and whenever the state or the leader changes otherwise, until ctx ends.
func (a *Agent) whileLeading(ctx context.Context, round func(context.Context) (again bool)) {
	for {
		changed, led := a.machine.Changed(), a.cluster.LeaderChanged()
		var tick <-chan time.Time
		if a.cluster.Status().Role == roleLeader && round(ctx) {
			tick = time.After(rolloutTick)
			changed = nil // a rollout's own entries change the state: once each tick is enough
		}
		select {
		case <-tick:
		case <-changed:
		case <-led:
		case <-ctx.Done():
			return
		}
	}
}

// round looks at every rollout once, and reports whether one needs it again. A server that was
// just started waits until the others have told it of boots.
func (d *rolloutDriver) round(ctx context.Context) (again bool) {
	state := d.agent.machine.State()
	now := d.agent.now()
	active := activeRollouts(state)
	if len(active) == 0 {
		clear(d.sent)
		return false
	}
	if d.agent.config.Clustered() && now.Sub(d.agent.startedAt) < settleTime {
		return true
	}
	boots, slaves := d.agent.rolloutBoots(active), d.agent.fleet.Slaves()
	for _, r := range active {
		d.observe(ctx, state, &r, boots[r.ID], slaves, now)
	}
	return true
}

// activeRollouts are those that decide what slaves boot.
func activeRollouts(state *fsm.State) []eboot.Rollout {
	return slices.DeleteFunc(state.Rollouts(), func(r eboot.Rollout) bool { return r.Phase.Over() })
}

// moves reports whether a rollout gives slaves with an ERTS version another bundle than the one
// that the channel pointed to before.
func moves(state *fsm.State, r *eboot.Rollout, erts string) bool {
	_, ok := state.RolloutBundle(r, erts)
	return ok && r.Base[erts] != r.Target
}

// rolloutBoots are the boots of each rollout, by its id, and of each slave, oldest first.
func (a *Agent) rolloutBoots(rollouts []eboot.Rollout) map[string][][]eboot.Boot {
	ids := map[string]bool{}
	for _, r := range rollouts {
		ids[r.ID] = true
	}
	return a.fleet.RolloutBoots(ids)
}

// observe has the state machine told what became of the slaves that booted the target.
func (d *rolloutDriver) observe(ctx context.Context, state *fsm.State, r *eboot.Rollout, boots [][]eboot.Boot, slaves []fleet.SlaveRecord, now time.Time) {
	totals := d.tally(state, r, boots, slaves, now)
	next := rollout.Observe(*r, r.Stage, totals, now)
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
// first to select: of their boots because of this rollout, and of those that it restarts.
func (d *rolloutDriver) tally(state *fsm.State, r *eboot.Rollout, boots [][]eboot.Boot, slaves []fleet.SlaveRecord, now time.Time) []eboot.StageTotals {
	totals := make([]eboot.StageTotals, r.Stage+1)
	moved := map[string]bool{}
	for _, b := range state.BundlesOf(r.Target) {
		moved[b.ERTS] = moves(state, r, b.ERTS)
	}
	stageOf := func(slave netip.Addr) *eboot.StageTotals {
		entry, ok := state.Lookup(slave)
		if !ok || entry.Channel != r.Channel {
			return nil
		}
		if stage, ok := r.StageOf(slave, entry.Labels); ok && stage <= r.Stage {
			return &totals[stage]
		}
		return nil
	}
	for _, each := range boots {
		total := stageOf(each[0].Slave)
		if total == nil {
			continue
		}
		each = slices.DeleteFunc(each, func(b eboot.Boot) bool { return now.Sub(b.Began) > r.Deadline() && d.unknown(b) })
		if len(each) > 0 {
			count(total, fleet.Judge(each, now, r.Deadline(), r.MinHealthy()))
		}
	}
	for _, s := range slaves {
		if !moved[s.ERTS] {
			continue
		}
		total := stageOf(s.Slave)
		if total == nil {
			continue
		}
		total.Selected++
		if r.Restart == 0 {
			continue
		}
		switch d.restarts.standing(state, r, s, now) {
		case onItsWay, toBeTold:
			total.Waiting++
		case neverBack:
			total.Failed++
			total.Failures++
		}
	}
	return totals
}

// unknown reports whether nobody saw how a boot went on: its server was lost or restarted in the
// middle of it, and no other has the slave. It may be up; then no loader says so a second time.
func (d *rolloutDriver) unknown(b eboot.Boot) bool {
	server, known := d.agent.peers.member(b.Server)
	return b.Loaded.IsZero() && b.Failure == "" &&
		(b.Phase == eboot.BootClosed || b.Phase == eboot.BootLoading && known && !server.Alive)
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
