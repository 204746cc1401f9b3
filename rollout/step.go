package rollout

import (
	"fmt"

	"eboot"
)

// Step says what lies between two rollouts, of which Observe or Steer made the second one out
// of the first, or New for the zero Rollout: the kind of the event and a sentence for
// people. The kind is empty when nothing but totals changed.
func Step(before, after eboot.Rollout) (kind eboot.EventKind, text string) {
	stage, done := "stage "+after.Stages[after.Stage].Name, after.Totals[after.Stage]
	switch {
	case before.ID == "":
		kind, text = eboot.EventRolloutStarted, stage+" begins"
	case after.Stage != before.Stage:
		done = after.Totals[before.Stage]
		kind = eboot.EventRolloutAdvanced
		text = fmt.Sprintf("%s begins; in stage %s %d slaves were healthy and %d failed", stage, after.Stages[before.Stage].Name, done.Healthy, done.Failed)
	case after.Phase != before.Phase:
		switch after.Phase {
		case eboot.RolloutRunning:
			kind, text = eboot.EventRolloutResumed, stage+" goes on"
		case eboot.RolloutWaiting:
			kind = eboot.EventRolloutPassed
			text = fmt.Sprintf("%s has passed, with %d slaves healthy and %d failed, and waits for `promote`", stage, done.Healthy, done.Failed)
		case eboot.RolloutPaused:
			kind, text = eboot.EventRolloutPaused, "paused in "+stage
		case eboot.RolloutStopped:
			kind, text = eboot.EventRolloutStopped, "stopped"
		case eboot.RolloutSucceeded:
			kind, text = eboot.EventRolloutSucceeded, "succeeded in "+stage
		case eboot.RolloutAborted:
			kind, text = eboot.EventRolloutAborted, "aborted in "+stage
		case eboot.RolloutRolledBack:
			kind, text = eboot.EventRolloutRolledBack, "rolled back"
		case eboot.RolloutUndone:
			kind, text = eboot.EventRolloutUndone, "undone"
		}
	}
	if kind == "" {
		return "", ""
	}
	text = fmt.Sprintf("rollout of channel %s to %s: %s", after.Channel, after.Target, text)
	if after.Reason != "" {
		text += ": " + after.Reason
	}
	return kind, text
}

// Moves reports whether a step of this kind changes what some slave boots.
func Moves(kind eboot.EventKind) bool {
	switch kind {
	case eboot.EventRolloutStarted, eboot.EventRolloutAdvanced, eboot.EventRolloutSucceeded,
		eboot.EventRolloutAborted, eboot.EventRolloutRolledBack, eboot.EventRolloutUndone:
		return true
	}
	return false
}
