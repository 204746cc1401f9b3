package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// TestAcceptanceRolloutCrash rolls out a bundle whose application crashes when it starts: it
// is stopped at the canary stage and rolled back with no hand on it, the canary runs again what
// it had, and no other slave ever saw it.
func TestAcceptanceRolloutCrash(t *testing.T) {
	for _, loader := range []string{eboot.LoaderEboot, eboot.LoaderStock} {
		for _, failures := range []int{0, 2} {
			if failures > 0 && !acceptance() {
				continue
			}
			t.Run(strings.Join([]string{loader, []string{0: "none may fail", 2: "two may fail"}[failures]}, ", "), func(t *testing.T) {
				testRolloutCrash(t, loader, failures)
			})
		}
	}
}

// crashMinHealthy is less than what it takes to tell a node that is gone from one that has
// changed its server.
const crashMinHealthy = 2 * time.Second

func testRolloutCrash(t *testing.T, loader string, failures int) {
	w := newRolloutWorld(t, loader, many(4, 30), 2, marked("B", true))
	canary, other := w.nodes()[0], w.nodes()[1]
	w.Canaries(t, canary.Address.String())
	w.Simulate(t)
	w.RunNodes(t, []*testnet.Host{other})
	if version := w.startNode(t, canary).WaitRuns(t, 1, bootDeadline); version != "A" {
		t.Fatalf("the canary runs %s, want A", version)
	}
	others := w.places
	testutil.Poll(t, bootDeadline, "slaves are to boot A", func() bool {
		w.counts.mu.Lock()
		defer w.counts.mu.Unlock()
		return len(w.counts.Latest) == len(others)+1 || t.Failed()
	})

	began := time.Now()
	args := []string{"rollout", "start", eboot.DefaultChannel, w.b.Ref.String(), "--min-healthy", crashMinHealthy.String(), "--deadline", "20s", "--max-failures", []string{0: "0", 2: "2"}[failures]}
	for _, s := range w.stages {
		args = append(args, "--stage", s.String())
	}
	// The limits of the others stay as they are: none may boot B.
	w.cluster.Run(t, args...).want(t, 0)
	w.cluster.WaitApplied(t)
	crashes := 0
	var back *node
	testutil.Poll(t, 2*bootDeadline, "canary is to run A again", func() bool {
		if t.Failed() {
			return true
		}
		// What supervises nodes on a real host starts them again and again.
		back = w.startNode(t, canary)
		testutil.Poll(t, bootDeadline, "canary is to run A or to crash", func() bool {
			versions, _ := back.Runs() // B too: a node gets to say so while it goes down
			return back.Exited() || len(versions) > 0 && versions[0] == "A"
		})
		if !back.Exited() {
			return true
		}
		if !strings.Contains(back.Output(), "crashed") {
			t.Fatalf("the canary ended, and not by the crash:\n%s", back.Output())
		}
		if crashes++; crashes == 1 {
			// One that is not there any more is not well either, however long nobody starts it.
			<-time.After(crashMinHealthy + 2*time.Second)
		}
		return false
	})
	r := w.cluster.WaitRollout(t, bootDeadline, eboot.RolloutRolledBack)
	took := r.ChangedAt.Sub(r.StartedAt)
	if r.Stage != 0 || r.Totals[0].Healthy != 0 || r.Totals[0].Failures <= failures || r.Reason == "" {
		t.Errorf("rolled back: %s", asJSON(r))
	}
	w.cluster.Run(t, "rollout", "status", eboot.DefaultChannel).want(t, 8).says(t, "rolled_back", r.Reason)
	channel, err := w.cluster.client.Channel(t.Context(), eboot.DefaultChannel)
	if err != nil || channel.Bundles[w.erl.ERTS] != w.a.Ref {
		t.Errorf("the channel points to %v (%v), want %s", channel.Bundles, err, w.a.Ref)
	}
	w.Stop()
	w.cluster.wantEvents(t, map[eboot.EventKind]int{eboot.EventRolloutStarted: 1, eboot.EventRolloutRolledBack: 1, eboot.EventRolloutAdvanced: 0, eboot.EventRolloutAborted: 0})
	for _, s := range w.cluster.servers {
		w.wantFailed(t, s, canary.Address, crashes)
	}
	if w.counts.Boots["B"] != 0 {
		t.Errorf("%d boots of slaves that are no canaries were of B", w.counts.Boots["B"])
	}
	t.Logf("loader %s, %d failures allowed: the canary crashed %d times; rolled back %v after the start (%s), on A again after %v; meanwhile %d boots of %d other slaves, none of them of B",
		loader, failures, crashes, took.Round(time.Millisecond), r.Reason, time.Since(began).Round(time.Millisecond), w.counts.Boots["A"], len(others)+1)
}

// wantFailed waits until a server knows that all boots of B failed, that there were so many, and
// that they were those of one slave.
func (w *rolloutWorld) wantFailed(t *testing.T, s *clusterServer, slave netip.Addr, n int) {
	t.Helper()
	var boots []eboot.Boot
	defer func() {
		if t.Failed() {
			t.Logf("%s knows of %d boots of %s: %s", s.Name, len(boots), w.b.Ref, asJSON(boots))
		}
	}()
	testutil.Poll(t, 15*time.Second, fmt.Sprintf("%s is to know of %d boots of %s that failed", s.Name, n, w.b.Ref), func() bool {
		var err error
		if boots, err = s.Client.Boots(t.Context(), netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		boots = slices.DeleteFunc(boots, func(b eboot.Boot) bool { return b.Bundle != w.b.Ref })
		failed := 0
		for _, b := range boots {
			if b.Slave != slave {
				t.Errorf("%s: slave %s, which is no canary, booted %s", s.Name, b.Slave, b.Bundle)
			}
			if b.Failure != "" {
				failed++
			}
		}
		return failed == n && len(boots) == n || t.Failed()
	})
}
