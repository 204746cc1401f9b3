package eboot

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RolloutPhase is where a rollout stands.
type RolloutPhase string

// The phases of a rollout. From RolloutRunning on, the slaves that its stages select boot
// the target; once it is over, all boot what the channel points to.
const (
	RolloutRunning    RolloutPhase = "running"     // the boots of its stage are watched
	RolloutWaiting    RolloutPhase = "waiting"     // its stage has passed; `promote` begins the next
	RolloutPaused     RolloutPhase = "paused"      // by an operator; nothing changes until `resume`
	RolloutStopped    RolloutPhase = "stopped"     // failed, with rollback switched off; an operator decides
	RolloutSucceeded  RolloutPhase = "succeeded"   // the channel points to the target
	RolloutAborted    RolloutPhase = "aborted"     // ended by an operator; the channel never moved
	RolloutRolledBack RolloutPhase = "rolled_back" // ended by failures; the channel never moved
	RolloutUndone     RolloutPhase = "undone"      // succeeded, and the channel was moved back
)

// Over reports whether a rollout in this phase decides about no slave any more.
func (p RolloutPhase) Over() bool {
	switch p {
	case RolloutSucceeded, RolloutAborted, RolloutRolledBack, RolloutUndone:
		return true
	}
	return false
}

// Rollout is the staged move of a channel to another bundle.
type Rollout struct {
	ID      string `json:"id"`
	Channel string `json:"channel"`
	Target  Ref    `json:"target"`
	// Base is what the channel pointed to when it began, for each ERTS version of the
	// target; the zero Ref: nothing.
	Base map[string]Ref `json:"base"`
	RolloutSpec
	Phase      RolloutPhase  `json:"phase"`
	Stage      int           `json:"stage"` // index of the stage that was begun last
	StageAt    time.Time     `json:"stage_at"`
	Totals     []StageTotals `json:"totals"`           // of each stage that was begun
	Reason     string        `json:"reason,omitempty"` // of the latest step: which failures, or what the operator said
	StartedAt  time.Time     `json:"started_at"`
	ChangedAt  time.Time     `json:"changed_at"` // latest step
	Generation uint64        `json:"generation"` // after the latest step that changed what slaves boot
	// Forgiven is how many failed boots are no reason to end it any more, because an operator
	// went on in spite of them; ForgivenLoops is the same of slaves that boot again and again.
	Forgiven      int `json:"forgiven,omitempty"`
	ForgivenLoops int `json:"forgiven_loops,omitempty"`
}

// RolloutSpec is what an operator asks of a rollout.
type RolloutSpec struct {
	Stages []Stage `json:"stages"`
	// MaxFailures is how many boots may fail without consequence; one more ends it.
	MaxFailures int `json:"max_failures"`
	// DeadlineMS is how long a boot may take, from its boot script to its end.
	DeadlineMS int64 `json:"deadline_ms"`
	// MinHealthyMS is for how long after that a slave must stay up to count as healthy.
	MinHealthyMS int64 `json:"min_healthy_ms"`
	// Approve: a stage that has passed waits for an operator.
	Approve bool `json:"approve,omitempty"`
	// KeepOnFailure: failures stop the rollout where it is, and do not take it back.
	KeepOnFailure bool `json:"keep_on_failure,omitempty"`
	// Restart is how many slaves may be restarted at a time so that they boot the target (or,
	// after a failure, what they had); 0: slaves boot when they do.
	Restart int `json:"restart,omitempty"`
}

// Bounds and defaults of a RolloutSpec.
const (
	MaxStages           = 32
	MaxRolloutRestart   = 10_000
	MaxRolloutFailures  = 1 << 20
	DefaultBootDeadline = 60 * time.Second
	DefaultMinHealthy   = 30 * time.Second
	maxRolloutWait      = 24 * time.Hour
)

// Deadline is DeadlineMS.
func (s RolloutSpec) Deadline() time.Duration { return time.Duration(s.DeadlineMS) * time.Millisecond }

// MinHealthy is MinHealthyMS.
func (s RolloutSpec) MinHealthy() time.Duration {
	return time.Duration(s.MinHealthyMS) * time.Millisecond
}

// Check reports whether s can be started.
func (s RolloutSpec) Check() error {
	if len(s.Stages) == 0 || len(s.Stages) > MaxStages {
		return fmt.Errorf("rollout: %d stages, want 1 to %d: %w", len(s.Stages), MaxStages, ErrInvalid)
	}
	for i, stage := range s.Stages {
		if err := stage.Check(); err != nil {
			return err
		}
		if slices.ContainsFunc(s.Stages[:i], func(other Stage) bool { return other.Name == stage.Name }) {
			return fmt.Errorf("stage %s: stands twice; name stages as NAME:SELECTOR: %w", stage.Name, ErrInvalid)
		}
	}
	switch {
	case s.MaxFailures < 0 || s.MaxFailures > MaxRolloutFailures:
		return fmt.Errorf("rollout: %d failures allowed, want 0 to %d: %w", s.MaxFailures, MaxRolloutFailures, ErrInvalid)
	case s.Deadline() < time.Second || s.Deadline() > maxRolloutWait:
		return fmt.Errorf("rollout: deadline %v, want 1s to %v: %w", s.Deadline(), maxRolloutWait, ErrInvalid)
	case s.MinHealthyMS < 0 || s.MinHealthy() > maxRolloutWait:
		return fmt.Errorf("rollout: healthy after %v, want 0s to %v: %w", s.MinHealthy(), maxRolloutWait, ErrInvalid)
	case s.Restart < 0 || s.Restart > MaxRolloutRestart:
		return fmt.Errorf("rollout: restart %d at a time, want 0 to %d: %w", s.Restart, MaxRolloutRestart, ErrInvalid)
	}
	return nil
}

// AnyLabel in Stage.Labels stands for any label: its value is the key or the value of one.
const AnyLabel = "label"

// Stage selects slaves: those that have all of Labels, and of these Percent in a hundred
// (0: all), chosen by their address, the channel and the target.
type Stage struct {
	Name    string            `json:"name"`
	Percent int               `json:"percent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// ParseStage reads [NAME:]TERM[,TERM…], a term being N% or KEY=VALUE: "10%",
// "canary:rack=r1", "west:site=west,50%". Without a name the terms are the name.
// KEY=VALUE is a label of the whitelist entry; label=WORD is any label with that key or value.
func ParseStage(text string) (Stage, error) {
	name, terms, named := strings.Cut(text, ":")
	if !named {
		name, terms = "", text
	}
	var s Stage
	for term := range strings.SplitSeq(terms, ",") {
		if number, ok := strings.CutSuffix(term, "%"); ok {
			percent, err := strconv.Atoi(number)
			if err != nil || percent < 1 || percent > 100 || s.Percent != 0 {
				return Stage{}, fmt.Errorf("stage %q: want one percentage from 1%% to 100%%: %w", abbreviate(text), ErrInvalid)
			}
			s.Percent = percent
			continue
		}
		key, value, ok := strings.Cut(term, "=")
		if _, twice := s.Labels[key]; !ok || twice {
			return Stage{}, fmt.Errorf("stage %q: want [NAME:]10%% or [NAME:]KEY=VALUE, several with commas, each key once: %w", abbreviate(text), ErrInvalid)
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[key] = value
	}
	if s.Name = name; !named {
		s.Name = s.terms("-")
	}
	return s, s.Check()
}

// Check reports whether s may stand in a rollout.
func (s Stage) Check() error {
	if err := CheckName("stage", strings.ReplaceAll(s.Name, "%", "")); err != nil {
		return err
	}
	if s.Percent < 0 || s.Percent > 100 || s.Percent == 0 && len(s.Labels) == 0 {
		return fmt.Errorf("stage %s: want a percentage from 1 to 100, or labels: %w", s.Name, ErrInvalid)
	}
	if err := CheckLabels(s.Labels); err != nil {
		return fmt.Errorf("stage %s: %w", s.Name, err)
	}
	return nil
}

// String returns what ParseStage reads.
func (s Stage) String() string {
	if terms := s.terms(","); s.Name != s.terms("-") {
		return s.Name + ":" + terms
	} else {
		return terms
	}
}

func (s Stage) terms(separator string) string {
	var terms []string
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		terms = append(terms, key+"="+s.Labels[key])
	}
	if s.Percent > 0 {
		terms = append(terms, strconv.Itoa(s.Percent)+"%")
	}
	text := strings.Join(terms, separator)
	if separator == "-" {
		text = strings.ReplaceAll(text, "=", "-")
	}
	return text
}

// selects reports whether a slave with these labels belongs to the stage. Every server must
// answer alike for ever: it is part of what a slave boots.
func (s Stage) selects(seed uint64, slave netip.Addr, labels map[string]string) bool {
	for key, value := range s.Labels {
		if key == AnyLabel && labels[key] != value {
			if !anyLabel(labels, value) {
				return false
			}
		} else if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return s.Percent == 0 || s.Percent == 100 || lot(seed, slave) < uint64(s.Percent)*100
}

func anyLabel(labels map[string]string, word string) bool {
	if _, ok := labels[word]; ok {
		return true
	}
	for _, value := range labels {
		if value == word {
			return true
		}
	}
	return false
}

// lot is the place of a slave among all of one rollout, 0 to 9999, spread evenly.
func lot(seed uint64, slave netip.Addr) uint64 { return Draw(seed, slave) % 10_000 }

// seed makes percentages fall on the same slaves in a plan, in the rollout, and when it is
// tried again, and on others for another channel or target.
func (r *Rollout) seed() uint64 {
	return DrawSeed(r.Channel, "/", r.Target.Name, "/", r.Target.Version)
}

// StageOf returns the first stage that selects a slave, begun or not; false: none does.
func (r *Rollout) StageOf(slave netip.Addr, labels map[string]string) (int, bool) {
	seed := r.seed()
	for i, s := range r.Stages {
		if s.selects(seed, slave, labels) {
			return i, true
		}
	}
	return 0, false
}

// Moves reports whether a slave boots the target now: the rollout is not over, and a stage
// that was begun selects the slave.
func (r *Rollout) Moves(slave netip.Addr, labels map[string]string) bool {
	if r.Phase.Over() {
		return false
	}
	stage, ok := r.StageOf(slave, labels)
	return ok && stage <= r.Stage
}

// StageTotals is what became of the slaves that one stage was the first to select. A slave
// is in one of Pending, Healthy and Failed, by its latest boot of the target.
type StageTotals struct {
	Selected int `json:"selected"` // slaves that were seen, of ERTS versions that the rollout moves
	Booted   int `json:"booted"`   // slaves that booted the target
	Pending  int `json:"pending"`  // of them, those of which it is not known yet
	Healthy  int `json:"healthy"`  // reached the end of their boot in time and stayed up
	Failed   int `json:"failed"`
	// Failures counts boots that failed: one slave may fail several times.
	Failures int `json:"failures"`
	Looping  int `json:"looping,omitempty"` // slaves that boot again and again
	// Waiting counts slaves that are to be restarted, or were and have not booted yet.
	Waiting int `json:"waiting,omitempty"`
}

// Sum adds the totals of all stages.
func (r *Rollout) Sum() (sum StageTotals) {
	for _, t := range r.Totals {
		sum.Selected += t.Selected
		sum.Booted += t.Booted
		sum.Pending += t.Pending
		sum.Healthy += t.Healthy
		sum.Failed += t.Failed
		sum.Failures += t.Failures
		sum.Looping += t.Looping
		sum.Waiting += t.Waiting
	}
	return sum
}

// RolloutAction is what an operator tells a rollout.
type RolloutAction string

// Actions. Each is answered ErrConflict where it makes no sense.
const (
	RolloutPause       RolloutAction = "pause"
	RolloutResume      RolloutAction = "resume"
	RolloutPromote     RolloutAction = "promote"      // begin the next stage, or end with success
	RolloutPromoteFull RolloutAction = "promote_full" // end with success
	RolloutAbort       RolloutAction = "abort"
	RolloutUndo        RolloutAction = "undo" // abort it, or take a success back
)

// Check reports whether a is one of the actions.
func (a RolloutAction) Check() error {
	switch a {
	case RolloutPause, RolloutResume, RolloutPromote, RolloutPromoteFull, RolloutAbort, RolloutUndo:
		return nil
	}
	return fmt.Errorf("rollout action %q: want pause, resume, promote, promote_full, abort or undo: %w", abbreviate(string(a)), ErrInvalid)
}
