package eboot

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
)

func TestParseStage(t *testing.T) {
	for text, want := range map[string]Stage{
		"10%":                {Name: "10%", Percent: 10},
		"all:100%":           {Name: "all", Percent: 100},
		"canary:label=rack1": {Name: "canary", Labels: map[string]string{"label": "rack1"}},
		"rack=r1":            {Name: "rack-r1", Labels: map[string]string{"rack": "r1"}},
		"w:site=west,50%":    {Name: "w", Percent: 50, Labels: map[string]string{"site": "west"}},
		"rack=r1,role=db":    {Name: "rack-r1-role-db", Labels: map[string]string{"rack": "r1", "role": "db"}},
	} {
		got, err := ParseStage(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParseStage(got.String()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%q written as %q: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "0%", "101%", "x%", "10%,20%", "canary", "canary:", ":10%", "a b:10%", "rack=r1,rack=r2", "=r1", "10%,"} {
		if got, err := ParseStage(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestStageSelects(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.1")
	for _, tc := range []struct {
		stage  string
		labels map[string]string
		want   bool
	}{
		{"rack=r1", map[string]string{"rack": "r1", "x": "y"}, true},
		{"rack=r1", map[string]string{"rack": "r2"}, false},
		{"rack=r1", nil, false},
		{"rack=r1,role=db", map[string]string{"rack": "r1"}, false},
		{"label=rack1", map[string]string{"label": "rack1"}, true},
		{"label=rack1", map[string]string{"rack": "rack1"}, true},
		{"label=rack1", map[string]string{"rack1": ""}, true},
		{"label=rack1", map[string]string{"rack": "rack2"}, false},
		{"100%", nil, true},
		{"rack=r1,100%", nil, false},
	} {
		s, err := ParseStage(tc.stage)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.selects(7, a, tc.labels); got != tc.want {
			t.Errorf("%s of %v: %v", tc.stage, tc.labels, got)
		}
	}
}

// A percentage holds for neighbouring addresses, grows without anybody leaving, and falls
// on others in another rollout.
func TestStagePercentages(t *testing.T) {
	const n = 10_000
	ten, thirty := Stage{Name: "a", Percent: 10}, Stage{Name: "b", Percent: 30}
	one := (&Rollout{Channel: "stable", Target: Ref{"app", "1"}}).seed()
	two := (&Rollout{Channel: "stable", Target: Ref{"app", "2"}}).seed()
	counts := map[string]int{}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		in := ten.selects(one, a, nil)
		if in {
			counts["ten"]++
			if !thirty.selects(one, a, nil) {
				t.Fatalf("%v left", a)
			}
		}
		if thirty.selects(one, a, nil) {
			counts["thirty"]++
		}
		if in && ten.selects(two, a, nil) {
			counts["both"]++
		}
	}
	for name, want := range map[string]int{"ten": n / 10, "thirty": 3 * n / 10, "both": n / 100} {
		if got := counts[name]; got < want*8/10 || got > want*12/10 {
			t.Errorf("%s: %d of %d, want about %d", name, got, n, want)
		}
	}
	// What a slave boots rests on it: these never change.
	var chosen []string
	for i := range 40 {
		if a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}); thirty.selects(one, a, nil) {
			chosen = append(chosen, fmt.Sprint(i))
		}
	}
	if got, want := fmt.Sprint(chosen), "[0 3 4 6 7 9 10 11 14 16 18 19 24 27 36]"; got != want {
		t.Errorf("chosen %v, want %v", got, want)
	}
}

func TestRolloutMoves(t *testing.T) {
	r := Rollout{ID: "x", Phase: RolloutRunning, RolloutSpec: RolloutSpec{Stages: []Stage{
		{Name: "canary", Labels: map[string]string{"rack": "r1"}}, {Name: "all", Percent: 100},
	}}}
	a, canary := netip.MustParseAddr("10.0.0.1"), map[string]string{"rack": "r1"}
	if !r.Moves(a, canary) || r.Moves(a, nil) {
		t.Error("first stage: wrong slaves")
	}
	r.Stage = 1
	if !r.Moves(a, canary) || !r.Moves(a, nil) {
		t.Error("second stage: wrong slaves")
	}
	for _, p := range []RolloutPhase{RolloutSucceeded, RolloutAborted, RolloutRolledBack, RolloutUndone} {
		r.Phase = p
		if r.Moves(a, canary) {
			t.Errorf("%s: still moves slaves", p)
		}
	}
}

func TestRolloutSpecCheck(t *testing.T) {
	good := RolloutSpec{Stages: []Stage{{Name: "all", Percent: 100}}, DeadlineMS: 60_000, MinHealthyMS: 30_000}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*RolloutSpec){
		"no stages":      func(s *RolloutSpec) { s.Stages = nil },
		"two of a name":  func(s *RolloutSpec) { s.Stages = append(s.Stages, s.Stages[0]) },
		"empty stage":    func(s *RolloutSpec) { s.Stages = []Stage{{Name: "x"}} },
		"failures":       func(s *RolloutSpec) { s.MaxFailures = -1 },
		"deadline":       func(s *RolloutSpec) { s.DeadlineMS = 0 },
		"health":         func(s *RolloutSpec) { s.MinHealthyMS = -1 },
		"restart":        func(s *RolloutSpec) { s.Restart = -1 },
		"a day and more": func(s *RolloutSpec) { s.DeadlineMS = 1 << 40 },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
