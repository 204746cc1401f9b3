package test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// TestAcceptanceRolloutRestart has a rollout restart the slaves, two at a time, over the
// sessions that they keep open: real nodes run the new bundle, in the same process, with nobody near
// them. Undone, they are restarted into what they had.
func TestAcceptanceRolloutRestart(t *testing.T) {
	t.Parallel()
	const atOnce = 2
	w := newRolloutWorld(t, eboot.LoaderEboot, 0, many(3, 6), marked("B", false))
	w.cluster.setOptions(t, eboot.ChannelOptions{Control: eboot.ControlOn})
	w.cluster.WaitApplied(t)
	var nodes []*node
	for _, host := range w.nodes() {
		nodes = append(nodes, w.startNode(t, host))
	}
	for _, n := range nodes {
		if version := n.WaitRuns(t, 1, bootDeadline); version != "A" {
			t.Fatalf("a node runs %s, want A", version)
		}
	}
	plan := w.cluster.Run(t, "rollout", "plan", eboot.DefaultChannel, w.b.Ref.String(), "--restart", "2").want(t, 0)
	t.Logf("the plan:\n%s", plan.Out)

	began := time.Now()
	w.cluster.Run(t, "rollout", "start", eboot.DefaultChannel, w.b.Ref.String(), "--stage", "first:"+"50%", "--stage", "100%", "--restart", "2",
		"--min-healthy", "1s", "--deadline", "20s", "--watch").want(t, 0)
	for _, n := range nodes {
		if version := n.WaitRuns(t, 2, bootDeadline); version != "B" {
			t.Errorf("a node that was restarted runs %s, want B", version)
		}
	}
	moved := time.Since(began)
	most := w.bootingAtOnce(t, w.b.Ref)
	if most > atOnce {
		t.Errorf("%d nodes were restarted at a time, want %d at most", most, atOnce)
	}
	w.cluster.Run(t, "rollout", "undo", eboot.DefaultChannel).want(t, 0)
	for i, n := range nodes {
		if version := n.WaitRuns(t, 3, 2*bootDeadline); version != "A" {
			t.Errorf("a node that was restarted when the rollout was undone runs %s, want A", version)
		}
		if _, pids := n.Runs(); len(slices.Compact(pids)) != 1 {
			t.Errorf("node %d was in several processes: %v", i, pids)
		}
		if late := n.Late(t); late != "A" {
			t.Errorf("node %d runs A and loads a module of %s", i, late)
		}
	}
	// Nobody is restarted twice for one move.
	w.cluster.WaitApplied(t)
	for i, n := range nodes {
		if versions, _ := n.Runs(); len(versions) != 3 {
			t.Errorf("node %d was restarted for nothing: %v", i, versions)
		}
	}
	r := w.cluster.rollout(t)
	if r.Phase != eboot.RolloutUndone {
		t.Errorf("rollout is %s", asJSON(r))
	}
	t.Logf("%d nodes were restarted to B in %v, %d at a time at most, and back to A, in their processes; totals %+v", len(nodes), moved.Round(time.Millisecond), most, r.Totals)
}

// bootingAtOnce is how many boots of a bundle were under way at the same moment, at most, as
// the first server knows it.
func (w *rolloutWorld) bootingAtOnce(t *testing.T, ref eboot.Ref) (most int) {
	t.Helper()
	var boots []eboot.Boot
	testutil.Poll(t, bootDeadline, "boots are to be known", func() bool {
		var err error
		if boots, err = w.cluster.servers[0].Client.Boots(t.Context(), netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		boots = slices.DeleteFunc(boots, func(b eboot.Boot) bool { return b.Bundle != ref || b.Loaded.IsZero() })
		return len(boots) >= len(w.nodes())
	})
	for _, one := range boots {
		now := 0
		for _, other := range boots {
			if !other.Began.After(one.Began) && other.Loaded.After(one.Began) {
				now++
			}
		}
		most = max(most, now)
	}
	return most
}
