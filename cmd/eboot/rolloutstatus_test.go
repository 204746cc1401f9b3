package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"eboot"
	"eboot/api"
)

// watched runs `rollout status stable --watch` against a server that gives these answers, the
// last one for ever: an eboot.Rollout, or an error.
func watched(t *testing.T, answers []any, flags ...string) (code int, out, errOut string) {
	t.Helper()
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		if err, ok := answer.(error); ok {
			w.WriteHeader(http.StatusServiceUnavailable)
			answer = api.DescribeError(err)
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	code = run(ctx, append([]string{"rollout", "status", "stable", "--watch", "--address", server.URL}, flags...), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestWatchRollout(t *testing.T) {
	running := eboot.Rollout{
		ID: "r7", Channel: "stable", Target: eboot.Ref{Name: "app", Version: "2"}, Phase: eboot.RolloutRunning,
		RolloutSpec: eboot.RolloutSpec{Stages: []eboot.Stage{{Name: "10%", Percent: 10}, {Name: "100%", Percent: 100}}, MaxFailures: 1},
		Totals:      []eboot.StageTotals{{Selected: 2}}, Generation: 5,
	}
	with := func(phase eboot.RolloutPhase, stage int, generation uint64, totals ...eboot.StageTotals) eboot.Rollout {
		r := running
		r.Phase, r.Stage, r.Generation, r.Totals = phase, stage, generation, totals
		return r
	}
	booted := eboot.StageTotals{Selected: 2, Booted: 2, Healthy: 1, Pending: 1}
	other := running
	other.ID, other.Generation = "r9", 9
	const begin, zero = "rollout r7 of channel stable to app@2: ", ": 0 booted, 0 pending, 0 healthy, 0 failed; failures 0, 1 allowed"
	const two = ": 2 booted, 1 pending, 1 healthy, 0 failed; failures 0, 1 allowed"
	for _, tc := range []struct {
		name    string
		answers []any
		flags   []string
		code    int
		lines   []string
		told    string // on stderr
	}{
		{"success", []any{running, running, with(eboot.RolloutRunning, 0, 5, booted), eboot.ErrNoLeader, with(eboot.RolloutRunning, 1, 6, booted, eboot.StageTotals{Selected: 2}),
			running /* of a server that lags behind */, with(eboot.RolloutSucceeded, 1, 7, booted)}, nil, exitDone, []string{
			begin + "running, stage 1 of 2 (10%)" + zero, begin + "running, stage 1 of 2 (10%)" + two, begin + "running, stage 2 of 2 (100%)" + two,
			begin + "succeeded" + two}, ""},
		{"stopped", []any{with(eboot.RolloutStopped, 0, 6)}, nil, exitRollout, []string{begin + "stopped, stage 1 of 2 (10%)" + zero +
			"; `eboot rollout resume stable` forgives these failures, `eboot rollout promote stable` begins 100%, `eboot rollout abort stable` takes it back"}, ""},
		{"another one", []any{running, other}, nil, exitConflict, []string{begin + "running, stage 1 of 2 (10%)" + zero}, "r9 was begun since"},
		{"nobody knows more", []any{running, eboot.ErrUnavailable}, []string{"--timeout", "1s"}, exitFailed, []string{begin + "running, stage 1 of 2 (10%)" + zero}, "unavailable"},
		{"nobody selected", []any{with(eboot.RolloutRunning, 0, 5, eboot.StageTotals{}), with(eboot.RolloutSucceeded, 1, 7, booted)}, nil, exitDone, []string{
			begin + "running, stage 1 of 2 (10%)" + zero + "; the stage selects no slave that was seen: wait until one boots, or `eboot rollout promote stable` begins 100%",
			begin + "succeeded" + two}, ""},
		{"only old answers", []any{with(eboot.RolloutRunning, 1, 6), running}, []string{"--timeout", "1s"}, exitFailed, []string{begin + "running, stage 2 of 2 (100%)" + zero}, "know only what was before it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := watched(t, tc.answers, tc.flags...)
			lines := strings.Split(strings.TrimSpace(regexp.MustCompile(`(?m)^\S+Z `).ReplaceAllString(out, "")), "\n")
			if code != tc.code || !cmp.Equal(lines, tc.lines) {
				t.Errorf("exit code %d, want %d: %s\n%s", code, tc.code, errOut, cmp.Diff(lines, tc.lines))
			}
			if tc.told == "" && errOut != "" || !strings.Contains(errOut, tc.told) {
				t.Errorf("stderr %q, want %q", errOut, tc.told)
			}
		})
	}
}

// An interrupt is no success.
func TestWatchRolloutInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(eboot.Rollout{ID: "r7", Channel: "stable", Phase: eboot.RolloutPaused, Stage: 1}) // stages of the future
		time.AfterFunc(watchEvery/4, cancel)
	}))
	defer server.Close()
	var out, errOut bytes.Buffer
	if code := run(ctx, []string{"rollout", "status", "stable", "--watch", "--address", server.URL, "-o", "json"}, &out, &errOut); code != exitUnknown {
		t.Errorf("exit code %d: %s", code, &errOut)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 1 || !strings.Contains(errOut.String(), "goes on") {
		t.Errorf("%d lines: %s\n%s", lines, &out, &errOut)
	}
}
