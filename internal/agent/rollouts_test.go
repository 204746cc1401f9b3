package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// fed is a fleet that another server tells of: boots of slaves 10.0.0.N.
type fed struct {
	*server
	revision uint64
}

func (f *fed) slave(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }

// boot tells of the end of a boot of a slave with what it boots now.
func (f *fed) boot(t *testing.T, n int, change func(*eboot.Boot)) eboot.Boot {
	t.Helper()
	slave := f.slave(n)
	state := f.machine.State()
	entry, ok := state.Lookup(slave)
	if !ok {
		t.Fatalf("%s is not whitelisted", slave)
	}
	bundle, ok := state.Target(entry, slave, testERTS)
	if !ok {
		t.Fatalf("%s has no bundle", slave)
	}
	f.revision++
	now := time.Now()
	b := eboot.Boot{
		BootRecord: eboot.BootRecord{ID: fmt.Sprintf("other-%d", f.revision), Revision: f.revision}, Slave: slave, Server: "other", ERTS: testERTS,
		Channel: entry.Channel, Bundle: bundle.Ref(), Manifest: bundle.Manifest, Loader: eboot.LoaderEboot, Phase: eboot.BootStarted,
		Began: now, Latest: now, Loaded: now, Cured: &eboot.CuredBoot{Number: f.revision, Mode: "embedded"},
	}
	b.Rollout = rolloutOf(state, entry, slave, bundle)
	if change != nil {
		change(&b)
	}
	f.TakeBoots([]eboot.Boot{b})
	return b
}

func failing(b *eboot.Boot) {
	b.Phase, b.Failure, b.FailedAt = eboot.BootFailed, "the node was gone 0.1s after its boot", b.Loaded
}

func (f *fed) until(t *testing.T, want string, so func(eboot.Rollout) bool) eboot.Rollout {
	t.Helper()
	var r eboot.Rollout
	testutil.Poll(t, 15*time.Second, want, func() bool {
		var err error
		if r, err = f.Rollout("stable"); err != nil {
			t.Fatal(err)
		}
		return so(r)
	})
	return r
}

func stages(t *testing.T, texts ...string) (found []eboot.Stage) {
	t.Helper()
	for _, text := range texts {
		s, err := eboot.ParseStage(text)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, s)
	}
	return found
}

// rolling starts a server whose channel is being moved from app@1 to app@2: first slave 1, the
// only canary, then all.
func rolling(t *testing.T, change func(*api.RolloutStart)) *fed {
	t.Helper()
	f := &fed{server: start(t, settings(t))}
	f.publish(t, "1", "stable")
	f.publish(t, "2", "")
	f.allow(t, "10.0.0.0/24", "stable")
	if _, err := f.client.Allow(t.Context(), eboot.WhitelistEntry{
		Prefix: netip.PrefixFrom(f.slave(1), 32), Channel: "stable", Labels: map[string]string{"rack": "r1"},
	}); err != nil {
		t.Fatal(err)
	}
	begin := api.NewRolloutStart(app("2"))
	begin.Stages, begin.MinHealthyMS = stages(t, "canary:rack=r1", "100%"), 100
	if change != nil {
		change(&begin)
	}
	if _, err := f.client.StartRollout(t.Context(), "stable", begin); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fed) next(t *testing.T, n int) eboot.Ref {
	t.Helper()
	entry, _ := f.machine.State().Lookup(f.slave(n))
	b, _ := f.machine.State().Target(entry, f.slave(n), testERTS)
	return b.Ref()
}

func TestRolloutPasses(t *testing.T) {
	t.Parallel()
	f := rolling(t, nil)
	if got := f.next(t, 1); got != app("2") {
		t.Errorf("the canary boots %s", got)
	}
	if got := f.next(t, 2); got != app("1") {
		t.Errorf("another slave boots %s", got)
	}
	f.boot(t, 2, nil) // of app@1: it says nothing of app@2
	f.boot(t, 1, nil)
	r := f.until(t, "the second stage", func(r eboot.Rollout) bool { return r.Stage == 1 })
	if r.Totals[0].Healthy != 1 || r.Totals[0].Booted != 1 {
		t.Errorf("totals of the first stage: %+v", r.Totals)
	}
	if got := f.next(t, 2); got != app("2") {
		t.Errorf("in the second stage another slave boots %s", got)
	}
	if e := f.Explain(f.slave(2)); !slices.ContainsFunc(e.Steps, func(s eboot.ExplainStep) bool {
		return s.Step == "rollout" && strings.Contains(s.Detail, "app@2") && strings.Contains(s.Detail, "this slave boots it")
	}) {
		t.Errorf("explain says nothing of the rollout: %+v", e.Steps)
	}
	if _, err := f.client.SetChannel(t.Context(), "stable", api.ChannelSet{Bundle: app("2")}); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("the channel was moved in the middle of a rollout: %v", err)
	}
	f.boot(t, 2, nil)
	f.until(t, "success", func(r eboot.Rollout) bool { return r.Phase == eboot.RolloutSucceeded })
	if c, err := f.Channel("stable"); err != nil || c.Bundles[testERTS] != app("2") {
		t.Errorf("channel %+v, %v", c, err)
	}
	var kinds []eboot.EventKind
	for _, e := range f.Events() {
		if e.Rollout != "" {
			kinds = append(kinds, e.Kind)
		}
	}
	if want := []eboot.EventKind{eboot.EventRolloutStarted, eboot.EventRolloutAdvanced, eboot.EventRolloutSucceeded}; !slices.Equal(kinds, want) {
		t.Errorf("events %v, want %v", kinds, want)
	}
	if _, err := f.client.SteerRollout(t.Context(), "stable", api.RolloutSteer{Action: eboot.RolloutUndo}); err != nil {
		t.Fatal(err)
	}
	if got := f.next(t, 1); got != app("1") {
		t.Errorf("after the undo the canary boots %s", got)
	}
}

func TestRolloutIsTakenBack(t *testing.T) {
	t.Parallel()
	f := rolling(t, func(s *api.RolloutStart) { s.MaxFailures = 1 })
	f.boot(t, 1, failing)
	r := f.until(t, "one failure", func(r eboot.Rollout) bool { return r.Totals[0].Failures == 1 })
	if r.Phase != eboot.RolloutRunning {
		t.Fatalf("one failure is allowed, and the rollout is %s: %s", r.Phase, r.Reason)
	}
	f.boot(t, 1, failing)
	r = f.until(t, "the end", func(r eboot.Rollout) bool { return r.Phase.Over() })
	if r.Phase != eboot.RolloutRolledBack || !strings.Contains(r.Reason, "canary") {
		t.Errorf("%s: %q", r.Phase, r.Reason)
	}
	if got := f.next(t, 1); got != app("1") {
		t.Errorf("the canary boots %s", got)
	}
}

// A slave that takes longer than it may has failed, without a word from anybody.
func TestRolloutDeadline(t *testing.T) {
	t.Parallel()
	f := rolling(t, func(s *api.RolloutStart) { s.DeadlineMS = 1000 })
	f.boot(t, 1, func(b *eboot.Boot) { b.Loaded, b.Phase = time.Time{}, eboot.BootLoading })
	if r := f.until(t, "the end", func(r eboot.Rollout) bool { return r.Phase.Over() }); r.Phase != eboot.RolloutRolledBack {
		t.Errorf("%s: %q", r.Phase, r.Reason)
	}
}

func TestRolloutPlan(t *testing.T) {
	t.Parallel()
	f := rolling(t, nil)
	f.boot(t, 2, nil)
	f.boot(t, 3, func(b *eboot.Boot) { b.Cured.Control = true }) // with a server that is not there
	f.boot(t, 4, func(b *eboot.Boot) { b.ERTS = "99.1" })
	start := api.NewRolloutStart(app("2"))
	start.Stages = stages(t, "canary:rack=r1", "100%")
	plan, err := f.client.PlanRollout(t.Context(), "stable", start)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Moves) != 1 || plan.Moves[0] != (api.PlannedMove{ERTS: testERTS, From: app("1"), To: app("2")}) {
		t.Errorf("moves %+v", plan.Moves)
	}
	if plan.Stages[0].Count != 0 || plan.Stages[1].Count != 2 || plan.Stages[1].Restartable != 0 || plan.Unreachable != 2 || plan.Unseen != 1 {
		t.Errorf("plan %+v", plan)
	}
	if len(plan.WithoutBundle) != 1 || plan.WithoutBundle[0].ERTS != "99.1" || plan.WithoutBundle[0].Count != 1 {
		t.Errorf("slaves without a bundle: %+v", plan.WithoutBundle)
	}
	rows, err := f.client.Slaves(t.Context())
	if err != nil || len(rows) != 4 { // three that were seen, and the entry of the canary
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if first := rows[0]; first.Slave.IsValid() || first.Prefix != netip.PrefixFrom(f.slave(1), 32) || first.Labels["rack"] != "r1" {
		t.Errorf("row of a slave that was never seen: %+v", first)
	}
	if second := rows[1]; second.Slave != f.slave(2) || second.Next != app("1") || second.Boot == nil || second.Boot.Bundle != app("1") {
		t.Errorf("row of a slave: %+v", second)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	c := settings(t)
	c.Retention.Keep = 1
	s := start(t, c)
	s.publish(t, "1", "stable")
	pinned := s.machine.State().Bundles()[0]
	s.fleet.MergePins([]eboot.Pin{{Slave: netip.MustParseAddr("10.0.0.1"), ERTS: testERTS, Manifest: pinned.Manifest, At: time.Now()}})
	s.publish(t, "2", "stable")
	if _, err := s.client.ProtectBundle(t.Context(), app("2"), true); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"3", "4", "5", "6"} {
		s.publish(t, version, "stable")
	}
	// 1 is run, 2 is protected, 5 is where an undo would go, 6 is the newest.
	testutil.Poll(t, 15*time.Second, "app@3 and app@4 are to be removed, and nothing else", func() bool {
		var left []string
		for _, b := range s.machine.State().Bundles() {
			left = append(left, b.Version)
		}
		return slices.Equal(left, []string{"1", "2", "5", "6"})
	})
	if _, err := s.client.RemoveBundle(t.Context(), app("2"), "", true); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("a protected bundle was removed: %v", err)
	}
	if _, err := s.client.UndoChannel(t.Context(), "stable"); err != nil {
		t.Fatal(err)
	}
	if ch, _ := s.Channel("stable"); ch.Bundles[testERTS] != app("5") {
		t.Errorf("after the undo: %+v", ch.Bundles)
	}
}

// Events come from the log and from the fleet, each once, and a follower misses none.
func TestFollowEvents(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	s.publish(t, "1", "stable")
	s.settled(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.FollowEvents(ctx)
	s.allow(t, "10.0.0.0/8", "stable")
	s.fleet.Refused(netip.MustParseAddr("10.0.0.1"), "99.1", "stable", "channel stable has no bundle for ERTS 99.1")
	seen := map[eboot.EventKind]int{}
	for seen[eboot.EventSlavesAllowed] == 0 || seen[eboot.EventSlaveRefused] == 0 {
		select {
		case e := <-events:
			seen[e.Kind]++
		case <-time.After(10 * time.Second):
			t.Fatalf("events %v", seen)
		}
	}
	if seen[eboot.EventSlavesAllowed] != 1 || seen[eboot.EventSlaveRefused] != 1 {
		t.Errorf("events %v", seen)
	}
	if all := s.Events(); len(all) < 2 || !slices.IsSortedFunc(all, func(a, b eboot.Event) int { return a.At.Compare(b.At) }) {
		t.Errorf("events %+v", all)
	}
}
