package fsm

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"eboot"
)

// rolledOut is a log of a cluster: channel stable points to
// app@1, and app@2 is there, both for two ERTS versions.
func rolledOut(t testing.TB) *log { return rolledOutAt(t, Version) }

func rolledOutAt(t testing.TB, version int) *log {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: version})
	for _, version := range []string{"1", "2"} {
		for _, erts := range []string{"13.1", "14.0"} {
			l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", version, erts, version+" for "+erts)})
		}
	}
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@1")})
	return l
}

func (l *log) start(ref, id string, stages ...string) *Result {
	l.t.Helper()
	return l.must(StartRollout{Header: l.header(), ID: id, Channel: "stable", Ref: refOf(ref), Spec: specOf(stages...)})
}

func (l *log) steer(action eboot.RolloutAction) *Result {
	l.t.Helper()
	return l.apply(SteerRollout{Header: l.header(), Channel: "stable", Action: action})
}

func (l *log) observe(id string, totals ...eboot.StageTotals) *Result {
	l.t.Helper()
	return l.apply(ObserveRollout{Header: l.header(), Channel: "stable", ID: id, Stage: len(totals) - 1, Totals: totals})
}

// boots returns what a slave in rack r1 and one elsewhere get.
func (l *log) boots(erts string) (canary, other string) {
	s := l.machine.State()
	boot := func(labels map[string]string) string {
		b, ok := s.Target(&eboot.WhitelistEntry{Channel: "stable", Labels: labels}, netip.MustParseAddr("10.1.2.3"), erts)
		if !ok {
			return "nothing"
		}
		return b.Ref().String()
	}
	return boot(map[string]string{"rack": "r1"}), boot(nil)
}

func (l *log) mustBoot(erts, canary, other string) {
	l.t.Helper()
	if c, o := l.boots(erts); c != canary || o != other {
		l.t.Fatalf("for ERTS %s slaves of the canary boot %s and others %s, want %s and %s", erts, c, o, canary, other)
	}
}

func conflict(t *testing.T, what string, r *Result, words ...string) {
	t.Helper()
	if !errors.Is(r.Err, eboot.ErrConflict) || r.Changed {
		t.Errorf("%s: %+v", what, r)
		return
	}
	for _, word := range words {
		if !strings.Contains(r.Err.Error(), word) {
			t.Errorf("%s: %q does not say %q", what, r.Err, word)
		}
	}
}

var healthy = eboot.StageTotals{Booted: 2, Healthy: 2}

func TestRolloutToTheEndAndBack(t *testing.T) {
	l := rolledOut(t)
	generation := l.machine.State().Generation()
	step := func(what string, r *Result, raised uint64) {
		t.Helper()
		generation += raised
		if r.Err != nil || !r.Changed || r.Generation != generation {
			t.Fatalf("%s: %+v, want generation %d", what, r, generation)
		}
		if again := reread(t, l.machine.State()); again.Digest() != l.machine.State().Digest() {
			t.Fatalf("%s: another digest when it was read", what)
		}
	}
	step("start", l.start("app@2", "one", "canary:rack=r1", "100%"), 1)
	l.mustBoot("13.1", "app@2", "app@1")
	step("totals", l.observe("one", eboot.StageTotals{Booted: 1, Pending: 1}), 0)
	if r := l.observe("one", eboot.StageTotals{Booted: 1, Pending: 1}); r.Err != nil || r.Changed {
		t.Fatalf("the same totals: %+v", r)
	}
	step("first stage", l.observe("one", healthy), 1)
	l.mustBoot("14.0", "app@2", "app@2")
	if r := l.observe("one", healthy); r.Err != nil || r.Changed {
		t.Fatalf("totals of an older stage: %+v", r)
	}
	if c, _ := l.machine.State().Channel("stable"); c.Bundles["13.1"] != refOf("app@1") {
		t.Fatalf("the channel moved early: %v", c.Bundles)
	}
	step("pause", l.steer(eboot.RolloutPause), 0)
	step("resume", l.steer(eboot.RolloutResume), 0)
	step("second stage", l.observe("one", healthy, healthy), 1)
	r, _ := l.machine.State().Rollout("stable")
	c, _ := l.machine.State().Channel("stable")
	if r.Phase != eboot.RolloutSucceeded || r.Generation != generation || c.Bundles["13.1"] != refOf("app@2") || c.Bundles["14.0"] != refOf("app@2") {
		t.Fatalf("%+v, channel %v", r, c.Bundles)
	}
	step("undo", l.steer(eboot.RolloutUndo), 1)
	l.mustBoot("13.1", "app@1", "app@1")
	conflict(t, "undo again", l.steer(eboot.RolloutUndo), "undone", "start")
	step("the channel's own undo", l.must(UndoChannel{Header: l.header(), Channel: "stable"}), 1)
	l.mustBoot("14.0", "app@2", "app@2")
}

func TestRolloutAborted(t *testing.T) {
	l := rolledOut(t)
	for id, end := range map[string]func(id string) *Result{
		"abort":    func(string) *Result { return l.steer(eboot.RolloutAbort) },
		"undo":     func(string) *Result { return l.steer(eboot.RolloutUndo) },
		"failures": func(id string) *Result { return l.observe(id, eboot.StageTotals{Booted: 3, Failed: 3, Failures: 3}) },
		"loop":     func(id string) *Result { return l.observe(id, eboot.StageTotals{Booted: 1, Looping: 1}) },
	} {
		moves, _ := l.machine.State().Channel("stable")
		before := l.start("app@2", id, "canary:rack=r1", "100%").Generation
		l.mustBoot("13.1", "app@2", "app@1")
		if r := end(id); r.Err != nil || r.Generation != before+1 {
			t.Fatalf("%s: %+v", id, r)
		}
		l.mustBoot("13.1", "app@1", "app@1")
		if c, _ := l.machine.State().Channel("stable"); len(c.History) != len(moves.History) {
			t.Errorf("%s: the channel moved: %v", id, c.History)
		}
		if r := l.observe(id, healthy); r.Err != nil || r.Changed {
			t.Errorf("%s: totals after it: %+v", id, r)
		}
	}
}

// Nothing moves a channel behind the back of its rollout, or takes away what it needs.
func TestRolloutHasItsChannelToItself(t *testing.T) {
	l := rolledOut(t)
	l.start("app@2", "one", "100%")
	other := bundleOf("app", "3", "13.1", "three")
	for name, c := range map[string]Command{
		"set":       SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@1")},
		"configure": ConfigureChannel{Header: l.header(), Channel: "stable", Options: eboot.ChannelOptions{Control: "on"}, Ref: refOf("app@2")},
		"publish":   AddBundle{Header: l.header(), Bundle: other, Channel: "stable"},
		"undo":      UndoChannel{Header: l.header(), Channel: "stable"},
		"start":     StartRollout{Header: l.header(), ID: "two", Channel: "stable", Ref: refOf("app@2"), Spec: specOf("100%")},
		"target":    RemoveBundle{Header: l.header(), Ref: refOf("app@2")},
		"base":      RemoveBundle{Header: l.header(), Ref: refOf("app@1"), ERTS: "14.0"},
	} {
		conflict(t, name, l.apply(c), "stable", "running", "eboot rollout abort stable")
	}
	if _, ok := l.machine.State().Bundle(other.Ref(), "13.1"); ok {
		t.Error("a refused publish entered its bundle")
	}
	l.must(AddBundle{Header: l.header(), Bundle: other})
	l.must(ConfigureChannel{Header: l.header(), Channel: "stable", Options: eboot.ChannelOptions{Control: "on"}})
	l.must(SetChannel{Header: l.header(), Channel: "canary", Ref: refOf("app@1")})
	conflict(t, "an id that was used", l.apply(StartRollout{Header: l.header(), ID: "one", Channel: "canary", Ref: refOf("app@2"), Spec: specOf("100%")}))
	l.steer(eboot.RolloutAbort)
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@3")})
	l.must(RemoveBundle{Header: l.header(), Ref: refOf("app@2")})
}

func TestRolloutRefused(t *testing.T) {
	l := rolledOut(t)
	conflict(t, "to where it is", l.apply(StartRollout{Header: l.header(), ID: "x", Channel: "stable", Ref: refOf("app@1"), Spec: specOf("100%")}), "already")
	for name, c := range map[string]Command{
		"no bundle":          StartRollout{Header: l.header(), ID: "x", Channel: "stable", Ref: refOf("no@1"), Spec: specOf("100%")},
		"nothing to steer":   SteerRollout{Header: l.header(), Channel: "stable", Action: eboot.RolloutAbort},
		"nothing to observe": ObserveRollout{Header: l.header(), Channel: "stable", ID: "x", Totals: make([]eboot.StageTotals, 1)},
		"nothing to protect": ProtectBundle{Header: l.header(), Ref: refOf("no@1"), Protected: true},
		"no channel to undo": UndoChannel{Header: l.header(), Channel: "no"},
	} {
		if r := l.apply(c); !errors.Is(r.Err, eboot.ErrNotFound) || r.Changed {
			t.Errorf("%s: %+v", name, r)
		}
	}
	l.start("app@2", "one", "100%")
	conflict(t, "totals of another rollout", l.observe("two", healthy), "one", "two")
	conflict(t, "another rollout", l.apply(SteerRollout{Header: l.header(), Channel: "stable", ID: "two", Action: eboot.RolloutAbort}), "eboot rollout status stable")
	conflict(t, "resume of what runs", l.steer(eboot.RolloutResume), "running", "pause")
	if r, _ := l.machine.State().Rollout("stable"); r.Phase != eboot.RolloutRunning {
		t.Fatalf("%+v", r)
	}
	if len(l.machine.State().Rollouts()) != 1 {
		t.Fatalf("%+v", l.machine.State().Rollouts())
	}
}

// A channel that nobody has set is made by the rollout; undo leaves it pointing to nothing.
func TestRolloutOfANewChannel(t *testing.T) {
	l := rolledOut(t)
	l.must(StartRollout{Header: l.header(), ID: "one", Channel: "new", Ref: refOf("app@2"), Spec: specOf("100%")})
	if c, ok := l.machine.State().Channel("new"); !ok || len(c.Bundles) != 0 {
		t.Fatalf("%+v %v", c, ok)
	}
	for _, action := range []eboot.RolloutAction{eboot.RolloutPromote, eboot.RolloutUndo} {
		l.must(SteerRollout{Header: l.header(), Channel: "new", Action: action})
	}
	c, _ := reread(t, l.machine.State()).Channel("new")
	if len(c.Bundles) != 0 || len(c.History) != 4 || !c.History[3].To.IsZero() || c.History[3].From != refOf("app@2") {
		t.Fatalf("%+v", c)
	}
	l.must(UndoChannel{Header: l.header(), Channel: "new"})
	if c, _ := l.machine.State().Channel("new"); len(c.Bundles) != 2 {
		t.Fatalf("undone twice: %+v", c)
	}
}

// Who may publish decides nothing for slaves: a target that is published for a further ERTS
// version while its rollout is under way reaches them by the next rollout. In a cluster
// below coverageVersion it was part of the one under way, as every server has to do alike.
func TestRolloutOfALaterERTSVersion(t *testing.T) {
	for version, joins := range map[int]bool{operatorsVersion: true, coverageVersion: false} {
		l := rolledOutAt(t, version)
		l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "1", "15.0", "1 for 15.0"), Channel: "stable"})
		l.start("app@2", "one", "canary:rack=r1", "100%")
		l.mustBoot("15.0", "app@1", "app@1")
		l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "2", "15.0", "2 for 15.0")})
		later := "app@1"
		if joins {
			later = "app@2"
		}
		l.mustBoot("15.0", later, "app@1")
		l.mustBoot("14.0", "app@2", "app@1")
		r, _ := l.machine.State().Rollout("stable")
		if b, ok := l.machine.State().RolloutBundle(&r, "15.0"); ok != joins || ok && b.Ref() != refOf("app@2") {
			t.Errorf("version %d: %v %v", version, b.Ref(), ok)
		}
		l.steer(eboot.RolloutPromoteFull)
		l.mustBoot("15.0", later, later)
		l.mustBoot("14.0", "app@2", "app@2")
		if c, _ := reread(t, l.machine.State()).Channel("stable"); c.Bundles["15.0"] != refOf(later) {
			t.Errorf("version %d: the channel points to %v", version, c.Bundles)
		}
		if !joins {
			l.start("app@2", "two", "100%") // for 15.0 alone
			l.mustBoot("15.0", "app@2", "app@2")
			l.steer(eboot.RolloutPromote)
		}
		l.mustBoot("15.0", "app@2", "app@2")
		l.steer(eboot.RolloutUndo)
		l.mustBoot("15.0", "app@1", "app@1")
	}
}

// That the cluster is raised while a rollout is under way changes nothing for slaves: what it moved
// then, it goes on to move, and nothing further.
func TestRolloutWhileTheVersionIsRaised(t *testing.T) {
	l := rolledOutAt(t, operatorsVersion)
	l.start("app@2", "one", "canary:rack=r1", "100%")
	for _, erts := range []string{"15.0", "16.0"} {
		l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "1", erts, "1 for "+erts)})
	}
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "2", "15.0", "2 for 15.0")})
	l.mustBoot("15.0", "app@2", "nothing")
	before := l.machine.State()
	if r := l.must(RaiseVersion{Header: l.header(), Version: coverageVersion}); !r.Changed || r.Generation != before.Generation() {
		t.Fatalf("%+v", r)
	}
	l.mustBoot("15.0", "app@2", "nothing")
	if old, _ := before.Rollout("stable"); len(old.Base) != 2 {
		t.Errorf("the older state changed: %v", old.Base)
	}
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "2", "16.0", "2 for 16.0")})
	l.mustBoot("16.0", "nothing", "nothing")
	l.steer(eboot.RolloutPromoteFull)
	l.mustBoot("15.0", "app@2", "app@2")
	l.mustBoot("16.0", "nothing", "nothing")
	l.steer(eboot.RolloutUndo)
	l.mustBoot("15.0", "nothing", "nothing")
}

func TestUndoOfARolloutThatWasOverridden(t *testing.T) {
	l := rolledOut(t)
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "3", "13.1", "three")})
	l.start("app@2", "one", "100%")
	l.steer(eboot.RolloutPromote)
	l.must(RemoveBundle{Header: l.header(), Ref: refOf("app@1"), ERTS: "14.0"})
	conflict(t, "the base is gone", l.steer(eboot.RolloutUndo), "app@1", "14.0", "eboot channel set stable")
	l.mustBoot("13.1", "app@2", "app@2") // no half of it
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@3")})
	conflict(t, "the channel was moved", l.steer(eboot.RolloutUndo), "was moved", "eboot channel set stable")
}

func TestUndoChannel(t *testing.T) {
	l := rolledOut(t)
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@2"), ERTS: "13.1"})
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@2")}) // 14.0 only
	for _, want := range []string{"app@1", "app@2", "app@1"} {
		before := l.machine.State().Generation()
		if r := l.must(UndoChannel{Header: l.header(), Channel: "stable"}); !r.Changed || r.Generation != before+1 {
			t.Fatalf("%+v", r)
		}
		l.mustBoot("13.1", "app@2", "app@2")
		l.mustBoot("14.0", want, want)
	}
	l.must(RemoveBundle{Header: l.header(), Ref: refOf("app@2"), ERTS: "14.0"})
	conflict(t, "what it pointed to is gone", l.apply(UndoChannel{Header: l.header(), Channel: "stable"}), "app@2", "removed", "eboot channel set stable")
	l.must(ConfigureChannel{Header: l.header(), Channel: "new", Options: eboot.ChannelOptions{Control: "on"}})
	if r := l.apply(UndoChannel{Header: l.header(), Channel: "new"}); !errors.Is(r.Err, eboot.ErrNotFound) {
		t.Errorf("never moved: %+v", r)
	}
}

func TestProtectBundle(t *testing.T) {
	l := rolledOut(t)
	before := l.machine.State()
	protect := ProtectBundle{Ref: refOf("app@2"), Protected: true}
	for _, want := range []bool{true, false} {
		protect.Header = l.header()
		if r := l.must(protect); r.Changed != want || r.Generation != before.Generation() {
			t.Fatalf("%+v, want changed %v", r, want)
		}
	}
	conflict(t, "remove", l.apply(RemoveBundle{Header: l.header(), Ref: refOf("app@2"), ERTS: "14.0"}), "protected", "eboot bundle protect app@2 --off")
	again := bundleOf("app", "2", "13.1", "2 for 13.1")
	l.must(AddBundle{Header: l.header(), Bundle: again})
	later := bundleOf("app", "2", "15.0", "2 for 15.0")
	later.Protected = true
	l.must(AddBundle{Header: l.header(), Bundle: later})
	for erts, want := range map[string]bool{"13.1": true, "14.0": true, "15.0": false} {
		if b, _ := reread(t, l.machine.State()).Bundle(refOf("app@2"), erts); b.Protected != want {
			t.Errorf("for ERTS %s: protected %v", erts, b.Protected)
		}
	}
	if b, _ := before.Bundle(refOf("app@2"), "13.1"); b.Protected {
		t.Error("the older state changed")
	}
	protect.Header, protect.Protected = l.header(), false
	l.must(protect)
	l.must(RemoveBundle{Header: l.header(), Ref: refOf("app@2")})
}

// What an older program could not read is not proposed to it.
func TestMinimumVersion(t *testing.T) {
	h := Header{RequestID: "a"}
	protected := bundleOf("app", "1", "13.1", "one")
	protected.Protected = true
	for _, tc := range []struct {
		command Command
		want    int
	}{
		{SetChannel{Header: h}, firstVersion},
		{ConfigureChannel{Header: h, Options: eboot.ChannelOptions{Loader: "stock"}}, optionsVersion},
		{ConfigureChannel{Header: h, Options: eboot.ChannelOptions{Live: "off"}}, rolloutVersion},
		{AddBundle{Header: h, Bundle: bundleOf("app", "1", "13.1", "one")}, firstVersion},
		{AddBundle{Header: h, Bundle: protected}, rolloutVersion},
		{StartRollout{Header: h}, rolloutVersion}, {ObserveRollout{Header: h}, rolloutVersion}, {SteerRollout{Header: h}, rolloutVersion},
		{ProtectBundle{Header: h}, rolloutVersion}, {UndoChannel{Header: h}, rolloutVersion},
	} {
		if got := MinimumVersion(tc.command); got != tc.want {
			t.Errorf("%+v needs %d, want %d", tc.command, got, tc.want)
		}
	}
	entry := mustEncode(t, AddBundle{Header: h, Bundle: protected})
	if strings.Contains(string(entry), "protected") {
		t.Errorf("encoded: %s", entry)
	}
	text := strings.Replace(string(entry), `"holders"`, `"protected":true,"holders"`, 1)
	if c, err := CheckEntry([]byte(text)); err != nil || MinimumVersion(c) != rolloutVersion {
		t.Errorf("from outside: %+v, %v", c, err)
	}
	l := newLog(t)
	if r := l.applyEntry([]byte(text)); r.Err != nil || l.machine.State().Bundles()[0].Protected {
		t.Errorf("from outside: %+v, %+v", r, l.machine.State().Bundles())
	}
}

func TestRolloutCommandsAreChecked(t *testing.T) {
	h, id := Header{RequestID: "a"}, "one"
	totals := func(n int) []eboot.StageTotals { return make([]eboot.StageTotals, n) }
	for name, c := range map[string]Command{
		"start without id":    StartRollout{Header: h, Channel: "stable", Ref: refOf("app@1"), Spec: specOf("100%")},
		"without channel":     StartRollout{Header: h, ID: id, Ref: refOf("app@1"), Spec: specOf("100%")},
		"without bundle":      StartRollout{Header: h, ID: id, Channel: "stable", Spec: specOf("100%")},
		"without stages":      StartRollout{Header: h, ID: id, Channel: "stable", Ref: refOf("app@1"), Spec: specOf()},
		"observe without id":  ObserveRollout{Header: h, Channel: "stable", Totals: totals(1)},
		"without totals":      ObserveRollout{Header: h, Channel: "stable", ID: id},
		"too many totals":     ObserveRollout{Header: h, Channel: "stable", ID: id, Totals: totals(2)},
		"no such stage":       ObserveRollout{Header: h, Channel: "stable", ID: id, Stage: 32, Totals: totals(33)},
		"negative stage":      ObserveRollout{Header: h, Channel: "stable", ID: id, Stage: -1},
		"negative total":      ObserveRollout{Header: h, Channel: "stable", ID: id, Totals: []eboot.StageTotals{{Failures: -1}}},
		"huge total":          ObserveRollout{Header: h, Channel: "stable", ID: id, Totals: []eboot.StageTotals{{Looping: maxTotal + 1}}},
		"steer without doing": SteerRollout{Header: h, Channel: "stable"},
		"long reason":         SteerRollout{Header: h, Channel: "stable", Action: eboot.RolloutAbort, Reason: strings.Repeat("x", 257)},
		"two lines":           SteerRollout{Header: h, Channel: "stable", Action: eboot.RolloutAbort, Reason: "a\nb"},
		"no text":             SteerRollout{Header: h, Channel: "stable", Action: eboot.RolloutAbort, Reason: "\xff"},
		"bad id":              SteerRollout{Header: h, Channel: "stable", Action: eboot.RolloutAbort, ID: "a b"},
		"protect nothing":     ProtectBundle{Header: h}, "undo nothing": UndoChannel{Header: h},
	} {
		if _, err := c.Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (SteerRollout{Header: h, Channel: "stable", Action: eboot.RolloutAbort, Reason: strings.Repeat("é", 128)}).Encode(); err != nil {
		t.Errorf("256 bytes: %v", err)
	}
}

func TestLiveRaisesTheGeneration(t *testing.T) {
	l := rolledOut(t)
	before := l.machine.State().Generation()
	for i, live := range []string{"on", "on", "off"} {
		r := l.must(ConfigureChannel{Header: l.header(), Channel: "stable", Options: eboot.ChannelOptions{Live: live}})
		if want := []uint64{1, 1, 2}[i]; r.Generation != before+want {
			t.Errorf("live %s: %+v", live, r)
		}
	}
}

// Discovery asks for it with every packet.
func TestTargetAllocatesNothing(t *testing.T) {
	s, entry := targetState(t)
	slave := netip.MustParseAddr("10.1.2.3")
	if n := testing.AllocsPerRun(100, func() { s.Target(entry, slave, "13.1") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// targetState has many bundles and channels with a rollout each; it is in the third stage.
func targetState(t testing.TB) (*State, *eboot.WhitelistEntry) {
	l := newLog(t)
	channels := []string{"stable", "canary", "beta", "dev", "lab", "edge", "west", "east"}
	for i := range 100 {
		b := bundleOf("app", string(rune('a'+i/10))+string(rune('0'+i%10)), "13.1", "x")
		l.must(AddBundle{Header: l.header(), Bundle: b, Channel: channels[i%8]})
	}
	for _, c := range channels {
		l.must(StartRollout{Header: l.header(), ID: "5a0c1f3e-9f4b-4c39-9d53-0d5f3f1f9c11-" + c, Channel: c, Ref: refOf("app@a0"), Spec: specOf("canary:label=rack1", "5%", "10%", "100%")})
		for range 2 {
			l.must(SteerRollout{Header: l.header(), Channel: c, Action: eboot.RolloutPromote})
		}
	}
	return l.machine.State(), &eboot.WhitelistEntry{Channel: "stable", Labels: map[string]string{"rack": "rack7", "site": "west"}}
}

func BenchmarkTarget(b *testing.B) {
	s, entry := targetState(b)
	slaves := make([]netip.Addr, 1024)
	for i := range slaves {
		slaves[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	moved := 0
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if bundle, _ := s.Target(entry, slaves[i%len(slaves)], "13.1"); bundle.Version == "a0" {
			moved++
		}
	}
	if moved == 0 || moved == b.N && b.N > len(slaves) {
		b.Fatalf("%d of %d are moved", moved, b.N)
	}
}

// Older states share what the newest is made of.
func TestOlderStatesKeepTheirRollouts(t *testing.T) {
	l := rolledOut(t)
	l.start("app@2", "one", "canary:rack=r1", "100%")
	before := l.machine.State()
	kept, _ := before.Rollout("stable")
	l.observe("one", healthy)
	l.steer(eboot.RolloutPromoteFull)
	if now, _ := before.Rollout("stable"); now.Phase != eboot.RolloutRunning || now.Stage != 0 || !slices.Equal(now.Totals, kept.Totals) || now.Base["13.1"] != refOf("app@1") {
		t.Errorf("%+v", now)
	}
}
