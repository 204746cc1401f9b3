package rollout

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"eboot"
)

var drawTotals = rapid.Custom(func(t *rapid.T) totals {
	small := rapid.IntRange(0, 2)
	return totals{
		Booted: small.Draw(t, "booted"), Pending: small.Draw(t, "pending"), Healthy: small.Draw(t, "healthy"),
		Failed: small.Draw(t, "failed"), Failures: small.Draw(t, "failures"), Looping: rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "looping"),
	}
})

func encoded(t *rapid.T, r eboot.Rollout) string {
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestProperties walks at random, and asks after every step what must always hold.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := spec([]string{"a:10%", "b:20%", "c:100%"}[:rapid.IntRange(1, 3).Draw(t, "stages")]...)
		s.MaxFailures = rapid.IntRange(0, 3).Draw(t, "max failures")
		s.Approve, s.KeepOnFailure = rapid.Bool().Draw(t, "approve"), rapid.Bool().Draw(t, "keep")
		r, err := New("id", "stable", two, map[string]eboot.Ref{"13.1": one}, s, begin)
		if err != nil {
			t.Fatal(err)
		}
		history := map[string]eboot.Rollout{encoded(t, r): r}
		for i := range rapid.IntRange(1, 30).Draw(t, "steps") {
			at := begin.Add(time.Duration(i) * time.Second)
			before := r
			operator := rapid.IntRange(0, 3).Draw(t, "operator") == 0
			var action eboot.RolloutAction
			if operator {
				action = rapid.SampledFrom(actions).Draw(t, "action")
				if r, err = Steer(before, action, "", at); err != nil {
					if !errors.Is(err, eboot.ErrConflict) || !reflect.DeepEqual(r, before) {
						t.Fatalf("%s: %v, %+v", action, err, r)
					}
					if action == eboot.RolloutAbort && !before.Phase.Over() {
						t.Fatalf("abort is refused: %v", err)
					}
					continue
				}
			} else {
				stage := max(0, r.Stage-rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "late"))
				r = Observe(r, stage, rapid.SliceOfN(drawTotals, stage+1, stage+1).Draw(t, "totals"), at)
			}
			check(t, before, r, operator, at)
			history[encoded(t, r)] = r
		}
		for text, r := range history {
			if encoded(t, r) != text {
				t.Fatalf("changed after it was returned: %s, then %s", text, encoded(t, r))
			}
		}
	})
}

func check(t *rapid.T, before, r eboot.Rollout, operator bool, at time.Time) {
	if err := Check(r); err != nil {
		t.Fatal(err)
	}
	kind, text := Step(before, r)
	step := r.Phase != before.Phase || r.Stage != before.Stage
	switch {
	case step != (kind != "") || step != (text != "") || operator && !step:
		t.Fatalf("%s %d to %s %d is told as %q %q", before.Phase, before.Stage, r.Phase, r.Stage, kind, text)
	case step != r.ChangedAt.Equal(at) && !before.ChangedAt.Equal(at):
		t.Fatalf("step %v, changed at %v, now %v", step, r.ChangedAt, at)
	case r.Stage < before.Stage || r.Stage > before.Stage+1:
		t.Fatalf("stage %d, then %d", before.Stage, r.Stage)
	case before.Phase.Over() && step && (before.Phase != eboot.RolloutSucceeded || r.Phase != eboot.RolloutUndone):
		t.Fatalf("%s, then %s", before.Phase, r.Phase)
	case !operator && step && before.Phase != eboot.RolloutRunning && (before.Phase != eboot.RolloutWaiting || kind != eboot.EventRolloutRolledBack && kind != eboot.EventRolloutStopped):
		t.Fatalf("totals made %s of %s", r.Phase, before.Phase)
	case Moves(kind) != (r.Phase.Over() && step || r.Stage != before.Stage):
		t.Fatalf("%s: moves slaves %v", kind, Moves(kind))
	case r.Approve && !operator && r.Stage != before.Stage:
		t.Fatal("went on without approval")
	}
	if operator || r.Phase.Over() || before.Phase != eboot.RolloutRunning {
		return
	}
	if reflect.DeepEqual(r.Totals, before.Totals) {
		return // they were of an older stage
	}
	all := r.Sum()
	if failed := all.Looping > r.ForgivenLoops || all.Failures > r.MaxFailures+r.Forgiven; failed != (r.Phase == eboot.RolloutStopped) {
		t.Fatalf("failed %v, and is %s: %+v", failed, r.Phase, r)
	}
}
