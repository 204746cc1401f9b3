package rollout

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
)

var (
	begin = time.UnixMilli(1_700_000_000_000).UTC()
	one   = eboot.Ref{Name: "app", Version: "1"}
	two   = eboot.Ref{Name: "app", Version: "2"}
)

func spec(stages ...string) eboot.RolloutSpec {
	s := eboot.RolloutSpec{MaxFailures: 2, DeadlineMS: 60_000, MinHealthyMS: 30_000}
	for _, text := range stages {
		stage, err := eboot.ParseStage(text)
		if err != nil {
			panic(err)
		}
		s.Stages = append(s.Stages, stage)
	}
	return s
}

func started(t *testing.T, change func(*eboot.RolloutSpec)) eboot.Rollout {
	t.Helper()
	s := spec("canary:rack=r1", "10%", "100%")
	if change != nil {
		change(&s)
	}
	r, err := New("id", "stable", two, map[string]eboot.Ref{"13.1": one}, s, begin)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type totals = eboot.StageTotals

var (
	well    = totals{Booted: 3, Healthy: 3}
	pending = totals{Booted: 3, Healthy: 2, Pending: 1}
	ill     = totals{Booted: 3, Healthy: 1, Failed: 2, Failures: 3}
	loops   = totals{Booted: 3, Healthy: 2, Failed: 1, Looping: 1}
)

func TestNew(t *testing.T) {
	base := map[string]eboot.Ref{"13.1": one, "14.0": {}}
	r, err := New("id", "stable", two, base, spec("50%"), begin)
	if err != nil || r.Phase != eboot.RolloutRunning || !r.StageAt.Equal(begin) || len(r.Totals) != 1 || Check(r) != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	base["13.1"] = two
	if r.Base["13.1"] != one {
		t.Error("the base is the caller's")
	}
	for name, tc := range map[string]struct {
		id, channel string
		target      eboot.Ref
		base        map[string]eboot.Ref
		spec        eboot.RolloutSpec
		want        error
	}{
		"no id":         {"", "stable", two, base, spec("50%"), eboot.ErrInvalid},
		"no channel":    {"id", "", two, base, spec("50%"), eboot.ErrInvalid},
		"no target":     {"id", "stable", eboot.Ref{}, base, spec("50%"), eboot.ErrInvalid},
		"no stages":     {"id", "stable", two, base, spec(), eboot.ErrInvalid},
		"no ERTS":       {"id", "stable", two, nil, spec("50%"), eboot.ErrInvalid},
		"there already": {"id", "stable", two, map[string]eboot.Ref{"13.1": two, "14.0": two}, spec("50%"), eboot.ErrConflict},
	} {
		if r, err := New(tc.id, tc.channel, tc.target, tc.base, tc.spec, begin); !errors.Is(err, tc.want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestObserve(t *testing.T) {
	keep := func(s *eboot.RolloutSpec) { s.KeepOnFailure = true }
	approve := func(s *eboot.RolloutSpec) { s.Approve = true }
	last := func(s *eboot.RolloutSpec) { s.Approve, s.Stages = true, s.Stages[:1] }
	for name, tc := range map[string]struct {
		change func(*eboot.RolloutSpec)
		seen   [][]totals // each with the stage of its length
		phase  eboot.RolloutPhase
		stage  int
		reason string
	}{
		"nobody booted":                {nil, [][]totals{{{}}}, eboot.RolloutRunning, 0, ""},
		"one is not known yet":         {nil, [][]totals{{pending}}, eboot.RolloutRunning, 0, ""},
		"all failed, as many as may":   {nil, [][]totals{{{Booted: 2, Failed: 2, Failures: 2}}}, eboot.RolloutRunning, 0, ""},
		"one is well, some failed":     {nil, [][]totals{{{Booted: 3, Healthy: 1, Failed: 2, Failures: 2}}}, eboot.RolloutRunning, 1, ""},
		"passes":                       {nil, [][]totals{{well}}, eboot.RolloutRunning, 1, ""},
		"one step at a time":           {nil, [][]totals{{well}, {well}}, eboot.RolloutRunning, 1, ""},
		"earlier stages need not pass": {nil, [][]totals{{well}, {pending, well}}, eboot.RolloutRunning, 2, ""},
		"to the end":                   {nil, [][]totals{{well}, {well, well}, {well, well, well}}, eboot.RolloutSucceeded, 2, ""},
		"waits":                        {approve, [][]totals{{well}}, eboot.RolloutWaiting, 0, ""},
		"waits whatever is well":       {approve, [][]totals{{well}, {well}}, eboot.RolloutWaiting, 0, ""},
		"does not wait when it fails":  {approve, [][]totals{{well}, {ill}}, eboot.RolloutRolledBack, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
		"the last one does not wait":   {last, [][]totals{{well}}, eboot.RolloutSucceeded, 0, ""},
		"too many failures":            {nil, [][]totals{{ill}}, eboot.RolloutRolledBack, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
		"failures of several stages":   {nil, [][]totals{{well}, {{Booted: 9, Failures: 2}, {Booted: 5, Failures: 1}}}, eboot.RolloutRolledBack, 1, "stage canary: 2 boots of 9 slaves failed, 3 in all stages; 2 may"},
		"failures before passing":      {nil, [][]totals{{well}, {well, {Booted: 9, Healthy: 6, Failures: 3}}}, eboot.RolloutRolledBack, 1, "stage 10%: 3 boots of 9 slaves failed; 2 may"},
		"a loop":                       {nil, [][]totals{{loops}}, eboot.RolloutRolledBack, 0, "stage canary: 1 of 3 slaves that booted boot again and again"},
		"stopped":                      {keep, [][]totals{{ill}}, eboot.RolloutStopped, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
		"waits for those to restart":   {nil, [][]totals{{{Booted: 3, Healthy: 3, Waiting: 1}}}, eboot.RolloutRunning, 0, ""},
		"nobody to wait for":           {nil, [][]totals{{well}, {well, {}}}, eboot.RolloutRunning, 2, ""},
		"somebody to wait for":         {nil, [][]totals{{well}, {well, {Selected: 1}}}, eboot.RolloutRunning, 1, ""},
		"nobody has proved it":         {nil, [][]totals{{{}}}, eboot.RolloutRunning, 0, ""},
		"failures are not forgotten":   {nil, [][]totals{{{Booted: 3, Failures: 2}}, {{Booted: 1, Failures: 0}}, {{Booted: 3, Failures: 3}}}, eboot.RolloutRolledBack, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
		"stopped is not left":          {keep, [][]totals{{ill}, {well}}, eboot.RolloutStopped, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
		"over is over":                 {nil, [][]totals{{ill}, {well}}, eboot.RolloutRolledBack, 0, "stage canary: 3 boots of 3 slaves failed; 2 may"},
	} {
		r := started(t, tc.change)
		for i, seen := range tc.seen {
			r = Observe(r, len(seen)-1, seen, begin.Add(time.Duration(i+1)*time.Second))
		}
		if r.Phase != tc.phase || r.Stage != tc.stage || r.Reason != tc.reason {
			t.Errorf("%s: %s in stage %d, %q; want %s, %d, %q", name, r.Phase, r.Stage, r.Reason, tc.phase, tc.stage, tc.reason)
		}
		if err := Check(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestObserveKeepsTotalsAndTimes(t *testing.T) {
	r := started(t, nil)
	seen := []totals{pending}
	r = Observe(r, 0, seen, begin.Add(time.Second))
	seen[0] = totals{}
	if r.Totals[0] != pending || !r.ChangedAt.Equal(begin) {
		t.Fatalf("%+v", r)
	}
	later := begin.Add(time.Minute)
	next := Observe(r, 0, []totals{well}, later)
	if !next.StageAt.Equal(later) || !next.ChangedAt.Equal(later) || !next.StartedAt.Equal(begin) || next.Totals[0] != well || next.Totals[1] != (totals{}) {
		t.Fatalf("%+v", next)
	}
	for name, again := range map[string]eboot.Rollout{
		"an older stage":  Observe(next, 0, []totals{ill}, later),
		"its totals now":  Observe(next, 0, []totals{ill, ill}, later),
		"a later stage":   Observe(next, 2, []totals{ill, ill, ill}, later),
		"too few totals":  Observe(next, 1, []totals{ill}, later),
		"too many totals": Observe(next, 1, []totals{ill, ill, ill}, later),
	} {
		if !reflect.DeepEqual(again, next) {
			t.Errorf("%s: %+v", name, again)
		}
	}
	paused, err := Steer(next, eboot.RolloutPause, "lunch", later)
	if err != nil {
		t.Fatal(err)
	}
	if seen := Observe(paused, 1, []totals{ill, well}, later.Add(1)); seen.Phase != eboot.RolloutPaused || seen.Totals[0] != ill || seen.Reason != "lunch" || !seen.ChangedAt.Equal(later) {
		t.Errorf("paused: %+v", seen)
	}
}

// in returns a rollout of three stages in the second one, in this phase.
func in(t *testing.T, phase eboot.RolloutPhase) eboot.Rollout {
	t.Helper()
	r := started(t, nil)
	r.Stage, r.Totals, r.Phase = 1, []totals{well, ill}, phase
	return r
}

var phases = []eboot.RolloutPhase{
	eboot.RolloutRunning, eboot.RolloutWaiting, eboot.RolloutPaused, eboot.RolloutStopped,
	eboot.RolloutSucceeded, eboot.RolloutAborted, eboot.RolloutRolledBack, eboot.RolloutUndone,
}

var actions = []eboot.RolloutAction{
	eboot.RolloutPause, eboot.RolloutResume, eboot.RolloutPromote, eboot.RolloutPromoteFull, eboot.RolloutAbort, eboot.RolloutUndo,
}

func TestSteer(t *testing.T) {
	// By phase in the order of phases; "-" is a conflict.
	for action, want := range map[eboot.RolloutAction]string{
		eboot.RolloutPause:       "paused paused - - - - - -",
		eboot.RolloutResume:      "- - running running - - - -",
		eboot.RolloutPromote:     "running running running running - - - -",
		eboot.RolloutPromoteFull: "succeeded succeeded succeeded succeeded - - - -",
		eboot.RolloutAbort:       "aborted aborted aborted aborted - - - -",
		eboot.RolloutUndo:        "aborted aborted aborted aborted undone - - -",
	} {
		for i, want := range strings.Fields(want) {
			before := in(t, phases[i])
			at := begin.Add(time.Hour)
			r, err := Steer(before, action, "because", at)
			if want == "-" {
				if !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "it is "+string(phases[i])+"; ") || !strings.Contains(err.Error(), "`") {
					t.Errorf("%s when %s: %v", action, phases[i], err)
				}
				if !reflect.DeepEqual(r, before) {
					t.Errorf("%s when %s: refused and changed", action, phases[i])
				}
				continue
			}
			stage := 1
			if action == eboot.RolloutPromote {
				stage = 2
			}
			if err != nil || string(r.Phase) != want || r.Stage != stage || r.Reason != "because" || !r.ChangedAt.Equal(at) || Check(r) != nil {
				t.Errorf("%s when %s: %+v, %v", action, phases[i], r, err)
			}
			if kind, text := Step(before, r); kind == "" || !strings.HasSuffix(text, ": because") {
				t.Errorf("%s when %s is told as %q %q", action, phases[i], kind, text)
			}
		}
	}
	if _, err := Steer(in(t, eboot.RolloutRunning), "explode", "", begin); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("no action: %v", err)
	}
}

func TestPromoteAfterTheLastStage(t *testing.T) {
	r := in(t, eboot.RolloutWaiting)
	r.Stages = r.Stages[:2]
	if r, err := Steer(r, eboot.RolloutPromote, "", begin); err != nil || r.Phase != eboot.RolloutSucceeded || r.Stage != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What an operator has seen and gone on from does not stop it again; more of it does.
func TestStoppedIsForgiven(t *testing.T) {
	for _, action := range []eboot.RolloutAction{eboot.RolloutResume, eboot.RolloutPromote} {
		r := started(t, func(s *eboot.RolloutSpec) { s.KeepOnFailure = true })
		bad := ill
		bad.Looping = 1
		r = Observe(r, 0, []totals{bad}, begin)
		if r.Phase != eboot.RolloutStopped {
			t.Fatalf("%+v", r)
		}
		r, err := Steer(r, action, "", begin)
		if err != nil || r.Phase != eboot.RolloutRunning || r.Forgiven != 3 || r.ForgivenLoops != 1 || r.Reason != "" {
			t.Fatalf("%s: %+v, %v", action, r, err)
		}
		bad.Pending, bad.Failures = 1, 5
		seen := waiting(append([]totals{bad}, make([]totals, r.Stage)...))
		if r = Observe(r, r.Stage, seen, begin); r.Phase != eboot.RolloutRunning {
			t.Fatalf("%s: two more: %+v", action, r)
		}
		seen[0].Failures++
		if r := Observe(r, r.Stage, seen, begin); r.Phase != eboot.RolloutStopped || r.Reason != "stage canary: 6 boots of 3 slaves failed; 5 may" {
			t.Errorf("%s: three more: %+v", action, r)
		}
		seen[0].Failures, seen[0].Looping = 3, 2
		if r := Observe(r, r.Stage, seen, begin); r.Phase != eboot.RolloutStopped {
			t.Errorf("%s: another loop: %+v", action, r)
		}
	}
	// Failures that came while it was paused are nobody's decision.
	r := in(t, eboot.RolloutPaused)
	r, err := Steer(r, eboot.RolloutResume, "", begin)
	if err != nil || r.Forgiven != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r = Observe(r, 1, r.Totals, begin); r.Phase != eboot.RolloutRolledBack {
		t.Errorf("resumed with too many failures: %+v", r)
	}
}

func TestPauseOfWaitingPassesAgain(t *testing.T) {
	r := started(t, func(s *eboot.RolloutSpec) { s.Approve = true })
	r = Observe(r, 0, []totals{well}, begin)
	for _, action := range []eboot.RolloutAction{eboot.RolloutPause, eboot.RolloutResume} {
		var err error
		if r, err = Steer(r, action, "", begin); err != nil {
			t.Fatal(err)
		}
	}
	if r.Phase != eboot.RolloutRunning {
		t.Fatalf("%+v", r)
	}
	if r = Observe(r, 0, []totals{well}, begin); r.Phase != eboot.RolloutWaiting || r.Stage != 0 {
		t.Errorf("%+v", r)
	}
}

// An abort without a reason leaves that of the stop.
func TestAbortKeepsTheReason(t *testing.T) {
	stopped := in(t, eboot.RolloutStopped)
	stopped.Reason = "three failed"
	for reason, want := range map[string]string{"": "three failed", "enough": "enough"} {
		if r, err := Steer(stopped, eboot.RolloutAbort, reason, begin); err != nil || r.Reason != want {
			t.Errorf("%q: %+v, %v", reason, r, err)
		}
	}
}

func TestStepTells(t *testing.T) {
	r := started(t, nil)
	next := Observe(r, 0, []totals{well}, begin)
	for _, tc := range []struct {
		before, after eboot.Rollout
		kind          eboot.EventKind
		text          string
	}{
		{eboot.Rollout{}, r, eboot.EventRolloutStarted, "rollout of channel stable to app@2: stage canary begins"},
		{r, next, eboot.EventRolloutAdvanced, "rollout of channel stable to app@2: stage 10% begins; in stage canary 3 slaves were healthy and 0 failed"},
		{r, Observe(r, 0, []totals{ill}, begin), eboot.EventRolloutRolledBack, "rollout of channel stable to app@2: rolled back: stage canary: 3 boots of 3 slaves failed; 2 may"},
		{r, Observe(r, 0, []totals{pending}, begin), "", ""},
	} {
		if kind, text := Step(tc.before, tc.after); kind != tc.kind || text != tc.text {
			t.Errorf("%q %q, want %q %q", kind, text, tc.kind, tc.text)
		}
	}
	for kind, want := range map[eboot.EventKind]bool{
		eboot.EventRolloutStarted: true, eboot.EventRolloutAdvanced: true, eboot.EventRolloutSucceeded: true, eboot.EventRolloutAborted: true,
		eboot.EventRolloutRolledBack: true, eboot.EventRolloutUndone: true, eboot.EventRolloutPaused: false, eboot.EventRolloutResumed: false,
		eboot.EventRolloutPassed: false, eboot.EventRolloutStopped: false, "": false,
	} {
		if Moves(kind) != want {
			t.Errorf("%s moves slaves: %v", kind, !want)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*eboot.Rollout){
		"no stages": func(r *eboot.Rollout) { r.Stages = nil }, "negative": func(r *eboot.Rollout) { r.Stage, r.Totals = -1, nil },
		"too far": func(r *eboot.Rollout) { r.Stage, r.Totals = 3, make([]totals, 4) }, "no totals": func(r *eboot.Rollout) { r.Totals = nil },
	} {
		r := started(t, nil)
		if err := Check(r); err != nil {
			t.Fatal(err)
		}
		spoil(&r)
		if err := Check(r); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who promotes a paused rollout has seen what failed meanwhile; who resumes it wants it judged.
func TestFailuresDuringAPause(t *testing.T) {
	for action, want := range map[eboot.RolloutAction]eboot.RolloutPhase{
		eboot.RolloutPromote: eboot.RolloutRunning, eboot.RolloutResume: eboot.RolloutRolledBack,
	} {
		r := in(t, eboot.RolloutPaused)
		totals := slices.Clone(r.Totals)
		totals[0].Failures = r.MaxFailures + 1
		r = Observe(r, r.Stage, totals, begin)
		r, err := Steer(r, action, "", begin)
		if err != nil {
			t.Fatal(err)
		}
		if r = Observe(r, r.Stage, waiting(r.Totals), begin); r.Phase != want {
			t.Errorf("%s: %s, %q; want %s", action, r.Phase, r.Reason, want)
		}
	}
}

// waiting is totals with a slave that the latest stage waits for.
func waiting(totals []eboot.StageTotals) []eboot.StageTotals {
	totals = slices.Clone(totals)
	totals[len(totals)-1].Selected++
	return totals
}
