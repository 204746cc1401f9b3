package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"eboot"
)

var app2 = eboot.Ref{Name: "app", Version: "2"}

func someRollout() eboot.Rollout {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return eboot.Rollout{
		ID: "r7", Channel: "stable", Target: app2, Base: map[string]eboot.Ref{"15.0": {Name: "app", Version: "1"}, "16.0": {}},
		RolloutSpec: NewRolloutStart(app2).RolloutSpec, Phase: eboot.RolloutRunning, StageAt: at, StartedAt: at, ChangedAt: at,
		Totals: []eboot.StageTotals{{Booted: 3, Pending: 1, Healthy: 1, Failed: 1, Failures: 2, Looping: 1}}, Generation: 9,
	}
}

func (b *fewAnswers) Rollouts() []eboot.Rollout { return nil }

func (b *fewAnswers) Rollout(channel string) (eboot.Rollout, error) {
	if channel != "stable" {
		return eboot.Rollout{}, fmt.Errorf("rollout of channel %s: %w", channel, eboot.ErrNotFound)
	}
	return someRollout(), nil
}

func (b *fewAnswers) PlanRollout(_ context.Context, channel string, s RolloutStart) (RolloutPlan, error) {
	b.starts = append(b.starts, s)
	return RolloutPlan{
		Channel: channel, Bundle: s.Bundle, Moves: []PlannedMove{{ERTS: "15.0", To: s.Bundle}},
		Stages:        []PlannedStage{{Stage: s.Stages[0], Slaves: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Count: 1, Restartable: 1}},
		WithoutBundle: []PlannedGap{{ERTS: "9.0", Slaves: []netip.Addr{}, Count: 101}}, Unselected: 2, Unreachable: 3, Unseen: 4,
	}, nil
}

func (b *fewAnswers) StartRollout(_ context.Context, w Write, channel string, s RolloutStart) (RolloutResult, error) {
	b.starts = append(b.starts, s)
	b.done = append(b.done, fmt.Sprintf("start %s %s %t", channel, s.Bundle, w.RequestID != ""))
	return RolloutResult{WriteResult: WriteResult{Generation: 9, Changed: true}, Rollout: someRollout()}, nil
}

func (b *fewAnswers) SteerRollout(_ context.Context, w Write, channel string, s RolloutSteer) (RolloutResult, error) {
	b.done = append(b.done, fmt.Sprintf("steer %s %+v %t", channel, s, w.RequestID != ""))
	if s.Action == eboot.RolloutResume {
		return RolloutResult{}, fmt.Errorf("rollout r7 is running: %w", eboot.ErrConflict)
	}
	return RolloutResult{WriteResult: WriteResult{Generation: 10, Changed: true}, Rollout: someRollout()}, nil
}

func (b *fewAnswers) UndoChannel(_ context.Context, w Write, channel string) (WriteResult, error) {
	b.done = append(b.done, fmt.Sprintf("undo %s %t", channel, w.RequestID != ""))
	return WriteResult{Generation: 11, Changed: true}, nil
}

func (b *fewAnswers) ProtectBundle(_ context.Context, w Write, ref eboot.Ref, protected bool) (WriteResult, error) {
	b.done = append(b.done, fmt.Sprintf("protect %s %t %t", ref, protected, w.RequestID != ""))
	return WriteResult{Generation: 12, Changed: true}, nil
}

func (b *fewAnswers) DiffBundles(_ context.Context, from, to eboot.Ref, erts string) (BundleDiff, error) {
	return BundleDiff{From: from, To: to, ERTS: erts}, nil
}

func TestRolloutsOverTheWire(t *testing.T) {
	ctx := context.Background()
	b := &fewAnswers{}
	c := serve(t, b, ClientOptions{Stale: true})
	if list, err := c.Rollouts(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("rollouts: %#v, %v; want a list without elements", list, err)
	}
	if r, err := c.Rollout(ctx, "stable"); err != nil || !cmp.Equal(r, someRollout(), cmpopts.EquateEmpty()) {
		t.Errorf("rollout: %v\n%s", err, cmp.Diff(r, someRollout()))
	}
	if _, err := c.Rollout(ctx, "canary"); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("no rollout: %v", err)
	}
	start := RolloutStart{Bundle: app2, RolloutSpec: eboot.RolloutSpec{
		Stages:      []eboot.Stage{{Name: "canary", Labels: map[string]string{"rack": "r1"}}, {Name: "10%", Percent: 10}},
		MaxFailures: 2, DeadlineMS: 5000, MinHealthyMS: 0, Approve: true, KeepOnFailure: true, Restart: 4,
	}}
	plan, err := c.PlanRollout(ctx, "stable", start)
	want, _ := (&fewAnswers{}).PlanRollout(ctx, "stable", start)
	if err != nil || !cmp.Equal(plan, want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("plan: %+v, %v; want %+v", plan, err, want)
	}
	if r, err := c.StartRollout(ctx, "stable", start); err != nil || !r.Changed || r.Generation != 9 || r.Rollout.ID != "r7" || r.Rollout.Generation != 9 {
		t.Errorf("start: %+v, %v", r, err)
	}
	for i, got := range b.starts {
		if !cmp.Equal(got, start) {
			t.Errorf("start %d arrived as %+v", i, got)
		}
	}
	if r, err := c.SteerRollout(ctx, "stable", RolloutSteer{Action: eboot.RolloutAbort, ID: "r7", Reason: "why"}); err != nil || r.Generation != 10 {
		t.Errorf("abort: %+v, %v", r, err)
	}
	if _, err := c.SteerRollout(ctx, "stable", RolloutSteer{Action: eboot.RolloutResume}); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("resume: %v", err)
	}
	if r, err := c.UndoChannel(ctx, "stable"); err != nil || r.Generation != 11 {
		t.Errorf("undo: %+v, %v", r, err)
	}
	if r, err := c.ProtectBundle(ctx, app2, true); err != nil || r.Generation != 12 {
		t.Errorf("protect: %+v, %v", r, err)
	}
	if diff, err := c.DiffBundles(ctx, eboot.Ref{Name: "app", Version: "1"}, app2, "15.0"); err != nil || diff.From.Version != "1" || diff.To != app2 || diff.ERTS != "15.0" {
		t.Errorf("diff: %+v, %v", diff, err)
	}
	done := []string{"start stable app@2 true", "steer stable {Action:abort ID:r7 Reason:why} true", "steer stable {Action:resume ID: Reason:} true",
		"undo stable true", "protect app@2 true true"}
	if !cmp.Equal(b.done, done) {
		t.Errorf("%s", cmp.Diff(b.done, done))
	}
}

// What a body leaves out has a default, what it names stands, and what makes no sense does
// not get to the backend.
func TestRolloutBodies(t *testing.T) {
	hundred := []eboot.Stage{{Name: "100%", Percent: 100}}
	for _, tc := range []struct {
		path, body string
		status     int
		want       RolloutStart // of 200
	}{
		{"rollout", `{"bundle":"app@2"}`, 200, RolloutStart{app2, eboot.RolloutSpec{Stages: hundred, DeadlineMS: 60_000, MinHealthyMS: 30_000}}},
		{"rollout/plan", `{"bundle":"app@2"}`, 200, RolloutStart{app2, eboot.RolloutSpec{Stages: hundred, DeadlineMS: 60_000, MinHealthyMS: 30_000}}},
		{"rollout", `{"bundle":"app@2","min_healthy_ms":0,"deadline_ms":1000,"stages":[{"name":"a","labels":{"x":"y"}}]}`, 200,
			RolloutStart{app2, eboot.RolloutSpec{Stages: []eboot.Stage{{Name: "a", Labels: map[string]string{"x": "y"}}}, DeadlineMS: 1000}}},
		{"rollout", `{}`, 400, RolloutStart{}},
		{"rollout", `{"bundle":"app"}`, 400, RolloutStart{}},
		{"rollout", `{"bundle":"app@2","deadline_ms":0}`, 400, RolloutStart{}},
		{"rollout", `{"bundle":"app@2","stages":[]}`, 400, RolloutStart{}},
		{"rollout/plan", `{"bundle":"app@2","stages":[{"name":"a"}]}`, 400, RolloutStart{}},
		{"rollout", `{"bundle":"app@2","max_failures":-1}`, 400, RolloutStart{}},
		{"rollout", `{"bundle":"app@2","unknown":1}`, 400, RolloutStart{}},
		{"rollout/steer", `{"action":"stop"}`, 400, RolloutStart{}},
		{"rollout/steer", `{"action":"abort","reason":"` + strings.Repeat("x", MaxRolloutReason+1) + `"}`, 400, RolloutStart{}},
	} {
		b := &fewAnswers{}
		c := serve(t, b, ClientOptions{})
		request, err := http.NewRequest("POST", c.endpoints[0].base+"/v1/channels/stable/"+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(headerRequestID, "1")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		response.Body.Close()
		switch {
		case response.StatusCode != tc.status:
			t.Errorf("%s %s: status %d, want %d: %s", tc.path, tc.body, response.StatusCode, tc.status, text)
		case tc.status != 200 && len(b.starts) > 0:
			t.Errorf("%s %s: got to the backend", tc.path, tc.body)
		case tc.status == 200 && !cmp.Equal(b.starts, []RolloutStart{tc.want}):
			t.Errorf("%s %s: %s", tc.path, tc.body, cmp.Diff(b.starts, []RolloutStart{tc.want}))
		}
	}
}

func FuzzRolloutBody(f *testing.F) {
	f.Add(`{"bundle":"app@2","stages":[{"name":"10%","percent":10}],"max_failures":1}`)
	f.Add(`{"stages":null}`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := http.NewRequest("POST", "/", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		r.SetPathValue("channel", "stable")
		_, start, err := readRollout(r)
		if err == nil {
			err = start.Check()
		}
		if err != nil && !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
			t.Errorf("%q: %v is no fault of the caller", text, err)
		}
	})
}
