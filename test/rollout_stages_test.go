package test

import (
	"fmt"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// marked returns what makes a release of a version.
func marked(version string, crash bool) func(testing.TB, testutil.Erlang) *markedTree {
	return func(t testing.TB, erl testutil.Erlang) *markedTree { return makeMarked(t, erl, version, crash) }
}

// TestAcceptanceRollout moves a fleet that boots again and again to another bundle, in
// stages, while each stage loses the leader: aborted in the second, then to the end, then undone. No boot fails
// or mixes versions, and no slave is moved before its stage.
func TestAcceptanceRollout(t *testing.T) {
	testRollout(t, eboot.LoaderEboot, many(12, 200), many(1, 5))
}

// TestAcceptanceRolloutStock is the same with slaves that say nothing of their boots.
func TestAcceptanceRolloutStock(t *testing.T) {
	acceptanceOnly(t) // of this kind there is one already in each run
	testRollout(t, eboot.LoaderStock, many(12, 60), many(1, 3))
}

func testRollout(t *testing.T, loader string, simulated, nodes int) {
	w := newRolloutWorld(t, loader, simulated, nodes, marked("B", false))
	began := time.Now()
	w.Canaries(t, append([]string{w.nodes()[0].Address.String()}, w.places[:many(2, simulated/20)]...)...)
	var stages [3]int
	for _, address := range w.all() {
		stages[w.stageOf(address)]++
	}
	t.Logf("%d slaves in the canary stage, %d more in the second, %d in the third", stages[0], stages[1], stages[2])
	w.Simulate(t)
	w.RunNodes(t, w.nodes())
	w.WaitBooted(t, noStage)
	kills := 0

	w.begin(t)
	if acceptance() {
		kills += w.replaceLeader(t, 0)
	}
	w.passed(t, 0)
	w.promote(t, 1)
	kills += w.replaceLeader(t, 1)
	w.end(t, "abort", 8)

	w.begin(t)
	for stage := range w.stages {
		if acceptance() || stage == 2 {
			kills += w.replaceLeader(t, stage)
		}
		w.passed(t, stage)
		if stage < len(w.stages)-1 {
			w.promote(t, stage+1)
		}
	}
	w.cluster.Run(t, "rollout", "status", eboot.DefaultChannel, "--watch").want(t, 0)
	w.WaitBooted(t, len(w.stages))
	w.end(t, "undo", 8)
	w.Stop()
	w.cluster.wantEvents(t, map[eboot.EventKind]int{
		eboot.EventRolloutStarted: 2, eboot.EventRolloutAdvanced: 3, eboot.EventRolloutAborted: 1,
		eboot.EventRolloutSucceeded: 1, eboot.EventRolloutUndone: 1, eboot.EventRolloutRolledBack: 0, eboot.EventRolloutStopped: 0,
	})
	if t.Failed() {
		return
	}
	counts := &w.counts
	t.Logf("loader %s: %d simulated slaves and %d nodes booted %d times in %v (A %d, B %d; nodes %d) and loaded %d modules later, over %d kills of the leader:"+
		" no boot failed, none mixed versions, none came before its stage; %d switches between servers, %d refusals",
		loader, simulated, nodes, counts.Boots["A"]+counts.Boots["B"], time.Since(began).Round(time.Second), counts.Boots["A"], counts.Boots["B"], counts.Nodes,
		counts.Loads, kills, counts.Switches, counts.Refusals)
}

// dwell is how long a boot may take: for longer than that, boots of each stage are watched.
const dwell = 10 * time.Second

// begin starts the rollout of B, whose stages wait for approval.
func (w *rolloutWorld) begin(t *testing.T) {
	t.Helper()
	w.limits.set(0, noStage)
	args := []string{"rollout", "start", eboot.DefaultChannel, w.b.Ref.String(), "--approve", "--min-healthy", minHealthy.String(), "--deadline", dwell.String()}
	for _, s := range w.stages {
		args = append(args, "--stage", s.String())
	}
	w.cluster.Run(t, args...).want(t, 0)
	w.cluster.WaitApplied(t)
	w.limits.set(0, 0)
}

// passed waits until the stage has passed: the slaves that it has come to are well.
func (w *rolloutWorld) passed(t *testing.T, stage int) {
	t.Helper()
	w.WaitBooted(t, stage)
	phase := eboot.RolloutWaiting
	if stage == len(w.stages)-1 {
		phase = eboot.RolloutSucceeded
	}
	r := w.cluster.WaitRollout(t, bootDeadline, phase)
	for i, totals := range r.Totals {
		if totals.Failures != 0 || totals.Failed != 0 || totals.Looping != 0 {
			t.Errorf("stage %d: failures where there were none: %+v", i, totals)
		}
	}
	if r.Stage != stage || r.Totals[stage].Healthy == 0 {
		t.Errorf("stage %d has passed: %s", stage, asJSON(r))
	}
}

func (w *rolloutWorld) promote(t *testing.T, stage int) {
	t.Helper()
	w.limits.set(stage, stage-1)
	w.cluster.Run(t, "rollout", "promote", eboot.DefaultChannel).want(t, 0)
	w.cluster.WaitApplied(t)
	w.limits.set(stage, stage)
}

// end takes the rollout back. code is the exit code of its status then.
func (w *rolloutWorld) end(t *testing.T, verb string, code int) {
	t.Helper()
	may, _ := w.limits.get()
	w.limits.set(may, noStage)
	w.cluster.Run(t, "rollout", verb, eboot.DefaultChannel, "--reason", "for a test").want(t, 0).says(t, w.b.Ref.String())
	w.cluster.WaitApplied(t)
	w.limits.set(noStage, noStage)
	w.cluster.Run(t, "rollout", "status", eboot.DefaultChannel).want(t, code)
	w.WaitBooted(t, noStage)
}

// replaceLeader kills the leader once a slave of the stage has booted B.
func (w *rolloutWorld) replaceLeader(t *testing.T, stage int) (kills int) {
	t.Helper()
	booted := func() int {
		w.counts.mu.Lock()
		defer w.counts.mu.Unlock()
		return w.counts.ByStage[stage]
	}
	before := booted()
	testutil.Poll(t, bootDeadline, fmt.Sprintf("slaves of stage %d are to boot", stage), func() bool { return booted() > before || t.Failed() })
	w.cluster.ReplaceLeader(t)
	if acceptance() {
		// A boot that seems to have failed does so now.
		<-time.After(dwell + 5*time.Second)
	}
	return 1
}
