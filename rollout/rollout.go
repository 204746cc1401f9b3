package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"eboot"
)

// New returns a rollout in its first stage. base is what the channel points to, for each
// ERTS version of the target; the zero Ref: nothing. ErrInvalid; ErrConflict: the channel
// points to the target already.
func New(id, channel string, target eboot.Ref, base map[string]eboot.Ref, spec eboot.RolloutSpec, at time.Time) (eboot.Rollout, error) {
	if err := cmp.Or(eboot.CheckName("rollout id", id), eboot.CheckName("channel", channel), target.Check(), spec.Check()); err != nil {
		return eboot.Rollout{}, err
	}
	if len(base) == 0 {
		return eboot.Rollout{}, fmt.Errorf("rollout of channel %s: %s is there for no ERTS version: %w", channel, target, eboot.ErrInvalid)
	}
	moves := false
	for _, erts := range slices.Sorted(maps.Keys(base)) {
		moves = moves || base[erts] != target
	}
	if !moves {
		return eboot.Rollout{}, fmt.Errorf("rollout of channel %s: it points to %s already; roll out another bundle: %w", channel, target, eboot.ErrConflict)
	}
	return eboot.Rollout{
		ID: id, Channel: channel, Target: target, Base: maps.Clone(base), RolloutSpec: spec,
		Phase: eboot.RolloutRunning, StageAt: at, Totals: make([]eboot.StageTotals, 1), StartedAt: at, ChangedAt: at,
	}, nil
}

// Check reports whether r has the shape of what New, Observe and Steer return, as far as
// they rely on it: a rollout that was read from elsewhere may not. ErrInvalid.
func Check(r eboot.Rollout) error {
	if r.Stage < 0 || r.Stage >= len(r.Stages) || len(r.Totals) != r.Stage+1 {
		return fmt.Errorf("rollout of channel %s: stage %d of %d with totals of %d: %w", r.Channel, r.Stage, len(r.Stages), len(r.Totals), eboot.ErrInvalid)
	}
	return nil
}

// Observe takes the totals of each stage that was begun, and draws the consequence: at most
// one step. stage is the index of the stage that was begun last when they were counted; those of an
// older one are left out, as are those of a rollout that is over. One that is paused or stopped
// keeps them and does nothing else; one that waits for an operator does not go on by itself, and fails
// as a running one does.
func Observe(r eboot.Rollout, stage int, totals []eboot.StageTotals, at time.Time) eboot.Rollout {
	if r.Phase.Over() || stage != r.Stage || len(totals) != len(r.Totals) {
		return r
	}
	r.Totals = known(r.Totals, totals)
	if r.Phase != eboot.RolloutRunning && r.Phase != eboot.RolloutWaiting {
		return r
	}
	if reason := failure(r); reason != "" {
		if r.KeepOnFailure {
			return enter(r, eboot.RolloutStopped, reason, at)
		}
		return enter(r, eboot.RolloutRolledBack, reason, at)
	}
	now := r.Totals[r.Stage]
	proven := now.Healthy > 0 || now.Selected == 0 && r.Sum().Healthy > 0 // a percentage may fall on nobody
	switch {
	case !proven || now.Pending > 0 || now.Waiting > 0 || r.Phase == eboot.RolloutWaiting:
		return r
	case r.Approve && r.Stage < len(r.Stages)-1:
		return enter(r, eboot.RolloutWaiting, "", at)
	}
	return advance(r, "", at)
}

// Steer does what an operator says. reason is kept with the step. ErrInvalid: there is no
// such action; ErrConflict: it makes no sense in this phase, and the text says what would.
func Steer(r eboot.Rollout, action eboot.RolloutAction, reason string, at time.Time) (eboot.Rollout, error) {
	if err := action.Check(); err != nil {
		return r, err
	}
	if r.Phase.Over() {
		if action == eboot.RolloutUndo && r.Phase == eboot.RolloutSucceeded {
			return enter(r, eboot.RolloutUndone, reason, at), nil
		}
		return r, refused(r, action)
	}
	switch action {
	case eboot.RolloutPause:
		if r.Phase != eboot.RolloutRunning && r.Phase != eboot.RolloutWaiting {
			return r, refused(r, action)
		}
		return enter(r, eboot.RolloutPaused, reason, at), nil
	case eboot.RolloutResume:
		if r.Phase != eboot.RolloutPaused && r.Phase != eboot.RolloutStopped {
			return r, refused(r, action)
		}
		return enter(forgive(r, false), eboot.RolloutRunning, reason, at), nil
	case eboot.RolloutPromote:
		return advance(forgive(r, true), reason, at), nil // what came while it was paused or stopped is known to who says so
	case eboot.RolloutPromoteFull:
		return enter(r, eboot.RolloutSucceeded, reason, at), nil
	}
	// What stopped it is the better reason, unless the operator gives one.
	return enter(r, eboot.RolloutAborted, cmp.Or(reason, r.Reason), at), nil
}

// known is what is counted now, and failures that were counted before: who counts may have
// forgotten them.
func known(before, now []eboot.StageTotals) []eboot.StageTotals {
	totals := slices.Clone(now)
	for i := range totals {
		totals[i].Failures = max(totals[i].Failures, before[i].Failures)
	}
	return totals
}

// advance begins the next stage; after the last one the rollout has succeeded.
func advance(r eboot.Rollout, reason string, at time.Time) eboot.Rollout {
	if r.Stage == len(r.Stages)-1 {
		return enter(r, eboot.RolloutSucceeded, reason, at)
	}
	r.Stage++
	r.StageAt = at
	r.Totals = append(slices.Clip(r.Totals), eboot.StageTotals{})
	return enter(r, eboot.RolloutRunning, reason, at)
}

func enter(r eboot.Rollout, phase eboot.RolloutPhase, reason string, at time.Time) eboot.Rollout {
	r.Phase, r.Reason, r.ChangedAt = phase, reason, at
	return r
}

// forgive makes what stopped a rollout no reason to stop it again.
func forgive(r eboot.Rollout, promoting bool) eboot.Rollout {
	if r.Phase == eboot.RolloutStopped || r.Phase == eboot.RolloutPaused && promoting {
		sum := r.Sum()
		r.Forgiven, r.ForgivenLoops = sum.Failures, sum.Looping
	}
	return r
}

// failure says why a rollout has failed; empty: it has not.
func failure(r eboot.Rollout) string {
	all := r.Sum()
	if all.Looping > r.ForgivenLoops {
		i := worst(r.Totals, func(t eboot.StageTotals) int { return t.Looping })
		return fmt.Sprintf("stage %s: %d of %d slaves that booted boot again and again", r.Stages[i].Name, r.Totals[i].Looping, r.Totals[i].Booted)
	}
	if all.Failures-r.Forgiven <= r.MaxFailures {
		return ""
	}
	i := worst(r.Totals, func(t eboot.StageTotals) int { return t.Failures })
	text := fmt.Sprintf("stage %s: %d boots of %d slaves failed", r.Stages[i].Name, r.Totals[i].Failures, r.Totals[i].Booted)
	if all.Failures != r.Totals[i].Failures {
		text += fmt.Sprintf(", %d in all stages", all.Failures)
	}
	return text + fmt.Sprintf("; %d may", r.MaxFailures+r.Forgiven)
}

// worst is the stage with most of something, of several the latest.
func worst(totals []eboot.StageTotals, of func(eboot.StageTotals) int) int {
	found := 0
	for i, t := range totals {
		if of(t) >= of(totals[found]) {
			found = i
		}
	}
	return found
}

// refused says why an action makes no sense and what would.
func refused(r eboot.Rollout, action eboot.RolloutAction) error {
	advice := "`resume` or `promote` goes on, `abort` takes it back"
	switch r.Phase {
	case eboot.RolloutRunning:
		advice = "`pause` holds it, `promote` begins the next stage, `abort` takes it back"
	case eboot.RolloutWaiting:
		advice = "`promote` begins the next stage, `abort` takes it back"
	case eboot.RolloutSucceeded:
		advice = "`undo` takes it back, `start` begins another"
	case eboot.RolloutAborted, eboot.RolloutRolledBack:
		advice = "the channel never moved; `start` begins another"
	case eboot.RolloutUndone:
		advice = "`start` begins another"
	}
	return fmt.Errorf("%s the rollout of channel %s to %s: it is %s; %s: %w", action, r.Channel, r.Target, r.Phase, advice, eboot.ErrConflict)
}
