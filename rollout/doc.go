// Package rollout is the staged move of a channel to another bundle, as a state machine:
// each function takes an eboot.Rollout and returns the next one. The replicated state
// (package fsm) holds what it returns, so that a rollout survives its leader at every step.
//
// A rollout begins in its first stage (New). While it is running, what became of the boots
// of its target is counted elsewhere, and the sums come in as totals of each stage that was
// begun (Observe): too many failures, or a slave that boots again and again, end it; a stage
// whose slaves are well makes way for the next one. An operator may pause, go on, abort or
// take it back (Steer).
//
//	           ┌──────── promote, passed ────────┐
//	           ▼                                 │
//	New ──▶ running ──── passed, Approve ──▶ waiting
//	           │  ▲ ╲                            │
//	     pause │  │  ╲ failed, KeepOnFailure     │ pause
//	           ▼  │   ▼                          ▼
//	        paused   stopped                  paused
//	     resume, promote: running
//
//	last stage passed or promoted, promote_full  ──▶ succeeded ── undo ──▶ undone
//	failed, running or waiting                   ──▶ rolled_back, or stopped
//	abort, from each phase that is not over      ──▶ aborted
//
// Failures are summed over all stages: a slave of the canary stage that boots while the second
// stage runs, and fails, counts. A stage passes with one healthy slave and none of which it
// is not known yet; slaves that have not booted since it began do not hold it up, as nobody
// knows when they will, unless they are to be restarted. A stage that selects none of the slaves
// that were seen passes when slaves of an earlier one are well.
//
// There is no clock and no randomness, no argument is changed, and what is returned shares
// memory with the arguments: nothing in a Rollout is ever changed in place.
package rollout
