package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"eboot"
)

func kindsOf(events []eboot.Event) []eboot.EventKind {
	kinds := make([]eboot.EventKind, len(events))
	for i, e := range events {
		kinds[i] = e.Kind
	}
	return kinds
}

// newEvents returns what one command added.
func (l *log) newEvents(c Command) []eboot.Event {
	l.t.Helper()
	before := len(l.machine.State().Events())
	l.must(c)
	return l.machine.State().Events()[before:]
}

func TestEvents(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	entry, other := entryOf("10.0.0.0/8", "stable", nil), entryOf("11.0.0.0/8", "canary", nil)
	one := bundleOf("app", "1", "13.1", "one")
	twoKinds := []eboot.EventKind{eboot.EventBundlePublished, eboot.EventChannelMoved}
	steer := func(a eboot.RolloutAction) Command {
		return SteerRollout{Header: l.header(), Channel: "stable", Action: a}
	}
	observe := func(id string, totals ...eboot.StageTotals) Command {
		return ObserveRollout{Header: l.header(), Channel: "stable", ID: id, Stage: len(totals) - 1, Totals: totals}
	}
	start := func(id, ref string, change func(*eboot.RolloutSpec)) Command {
		c := StartRollout{Header: l.header(), ID: id, Channel: "stable", Ref: refOf(ref), Spec: specOf("10%", "100%")}
		if change != nil {
			change(&c.Spec)
		}
		return c
	}
	ill := eboot.StageTotals{Booted: 3, Failed: 3, Failures: 3}
	only := func(k eboot.EventKind) []eboot.EventKind { return []eboot.EventKind{k} }
	seen := map[eboot.EventKind]bool{eboot.EventVersionRaised: true}
	for i, step := range []struct {
		command Command
		want    []eboot.EventKind
	}{
		{Init{Header: l.header(), ClusterID: "c"}, nil},
		{AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entry, entry}}, only(eboot.EventSlavesAllowed)},
		{AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entry}}, nil},
		{AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entry, other}}, only(eboot.EventSlavesAllowed)},
		{DenySlaves{Header: l.header(), Prefixes: []netip.Prefix{other.Prefix}}, only(eboot.EventSlavesDenied)},
		{AddBundle{Header: l.header(), Bundle: one, Channel: "stable"}, twoKinds},
		{AddBundle{Header: l.header(), Bundle: one, Channel: "stable"}, nil},
		{HoldBundle{Header: l.header(), Server: "b", Manifests: []eboot.Digest{one.Manifest}}, nil},
		{AddBundle{Header: l.header(), Bundle: bundleOf("app", "2", "13.1", "two")}, twoKinds[:1]},
		{AddBundle{Header: l.header(), Bundle: bundleOf("app", "3", "13.1", "three")}, twoKinds[:1]},
		{RemoveBundle{Header: l.header(), Ref: refOf("app@3")}, only(eboot.EventBundleRemoved)},
		{ProtectBundle{Header: l.header(), Ref: refOf("app@2"), Protected: true}, only(eboot.EventBundleProtected)},
		{ProtectBundle{Header: l.header(), Ref: refOf("app@2"), Protected: true}, nil},
		{ProtectBundle{Header: l.header(), Ref: refOf("app@2")}, only(eboot.EventBundleUnprotected)},
		{ConfigureChannel{Header: l.header(), Channel: "stable", Options: eboot.ChannelOptions{Live: "on"}, Ref: refOf("app@2")}, []eboot.EventKind{eboot.EventChannelMoved, eboot.EventChannelConfigured}},
		{UndoChannel{Header: l.header(), Channel: "stable"}, only(eboot.EventChannelMoved)},
		{SetDrained{Header: l.header(), Server: "b", Drained: true}, only(eboot.EventServerDrained)},
		{SetDrained{Header: l.header(), Server: "b"}, only(eboot.EventServerUndrained)},
		{RemoveServer{Header: l.header(), Server: "b"}, only(eboot.EventServerRemoved)},
		{start("1", "app@2", func(s *eboot.RolloutSpec) { s.Approve = true }), only(eboot.EventRolloutStarted)},
		{observe("1", eboot.StageTotals{Booted: 1, Pending: 1}), nil},
		{observe("1", healthy), only(eboot.EventRolloutPassed)},
		{steer(eboot.RolloutPromote), only(eboot.EventRolloutAdvanced)},
		{steer(eboot.RolloutPause), only(eboot.EventRolloutPaused)},
		{steer(eboot.RolloutResume), only(eboot.EventRolloutResumed)},
		{observe("1", healthy, healthy), []eboot.EventKind{eboot.EventRolloutSucceeded, eboot.EventChannelMoved}},
		{steer(eboot.RolloutUndo), []eboot.EventKind{eboot.EventRolloutUndone, eboot.EventChannelMoved}},
		{start("2", "app@2", nil), only(eboot.EventRolloutStarted)},
		{observe("2", ill), only(eboot.EventRolloutRolledBack)},
		{start("3", "app@2", func(s *eboot.RolloutSpec) { s.KeepOnFailure = true }), only(eboot.EventRolloutStarted)},
		{observe("3", ill), only(eboot.EventRolloutStopped)},
		{steer(eboot.RolloutAbort), only(eboot.EventRolloutAborted)},
	} {
		got := l.newEvents(step.command)
		if !slices.Equal(kindsOf(got), step.want) {
			t.Fatalf("step %d, %T: %v, want %v", i, step.command, kindsOf(got), step.want)
		}
		for n, e := range got {
			id := fmt.Sprintf("r%d", l.index)
			if n > 0 {
				id = fmt.Sprintf("r%d.%d", l.index, n+1)
			}
			if e.ID != id || e.Index != l.index || !e.At.Equal(step.command.header().time()) || !e.By.IsZero() || e.Request != step.command.header().RequestID || e.Generation != l.machine.State().Generation() || e.Text == "" {
				t.Errorf("step %d: %+v", i, e)
			}
			seen[e.Kind] = true
		}
	}
	if len(seen) != 22 {
		t.Errorf("%d kinds were seen", len(seen))
	}
	events := l.machine.State().Events()
	if again := reread(t, l.machine.State()).Events(); !slices.Equal(again, events) {
		t.Errorf("read again: %+v", again)
	}
	find := func(k eboot.EventKind) eboot.Event {
		return events[slices.Index(kindsOf(events), k)]
	}
	generation := uint64(1)
	for _, want := range []eboot.Event{
		{Kind: eboot.EventSlavesAllowed, Text: "10.0.0.0/8 is allowed, on channel stable", Prefix: entry.Prefix, Channel: "stable"},
		{Kind: eboot.EventSlavesDenied, Text: "11.0.0.0/8 is allowed no more", Prefix: other.Prefix},
		{Kind: eboot.EventChannelMoved, Text: "channel stable points to app@1 for ERTS 13.1, before to nothing", Channel: "stable", Bundle: refOf("app@1"), ERTS: "13.1"},
		{Kind: eboot.EventChannelConfigured, Text: "channel stable has loader eboot, control off, live on", Channel: "stable"},
		{Kind: eboot.EventServerDrained, Text: "slaves are to go to other servers than b", Server: "b"},
		{Kind: eboot.EventRolloutStarted, Text: "rollout of channel stable to app@2: stage 10% begins", Channel: "stable", Bundle: refOf("app@2"), Rollout: "1"},
	} {
		got := find(want.Kind)
		if got.Generation < generation {
			t.Errorf("%s: generation %d after %d", want.Kind, got.Generation, generation)
		}
		generation = got.Generation
		got.ID, got.Index, got.At, got.Generation, got.Request = "", 0, time.Time{}, 0, ""
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

func TestNoEventsBeforeTheirVersion(t *testing.T) {
	l := newLog(t)
	for version := range rolloutVersion {
		l.must(RaiseVersion{Header: l.header(), Version: max(version, 1)})
		l.must(AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entryOf("10.0.0.0/8", fmt.Sprint("c", version), nil)}})
	}
	if s := l.machine.State(); len(s.Events()) != 0 || s.MinimumVersion() != firstVersion || bytes.Contains(snapshotOf(t, s), []byte("events")) {
		t.Fatalf("%d events, needs version %d", len(s.Events()), s.MinimumVersion())
	}
	l.must(RaiseVersion{Header: l.header(), Version: rolloutVersion})
	if s := l.machine.State(); len(s.Events()) != 1 || s.MinimumVersion() != rolloutVersion {
		t.Fatalf("%+v, needs version %d", s.Events(), s.MinimumVersion())
	}
}

// A state of a cluster whose servers do not all know who asked says nothing of it, and
// remembers as many events as they do.
func TestEventsBeforeActors(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: securityVersion})
	for i := range earlierMaxEvents + 10 {
		l.must(SetDrained{Header: l.by(), Server: "b", Drained: i%2 == 0})
	}
	s := l.machine.State()
	if events := s.Events(); len(events) != earlierMaxEvents || events[len(events)-1].Index != l.index || s.MinimumVersion() != rolloutVersion {
		t.Fatalf("%d events, needs version %d", len(events), s.MinimumVersion())
	}
	if text := snapshotOf(t, s); bytes.Contains(text, []byte("alice")) || bytes.Contains(text, []byte("certificate")) || bytes.Contains(text, []byte("tokens")) {
		t.Fatal("the snapshot has what older programs cannot read")
	}
	raise := RaiseVersion{Header: l.header(), Version: operatorsVersion}
	l.must(raise)
	for range 10 {
		l.must(SetDrained{Header: l.by(), Server: "b", Drained: true})
		l.must(SetDrained{Header: l.by(), Server: "b"})
	}
	s = l.machine.State()
	events := s.Events()
	if len(events) != earlierMaxEvents+21 || s.MinimumVersion() != operatorsVersion {
		t.Fatalf("%d events, needs version %d", len(events), s.MinimumVersion())
	}
	if e := events[earlierMaxEvents]; e.Kind != eboot.EventVersionRaised || e.Request != raise.RequestID || !e.By.IsZero() {
		t.Fatalf("event of raising: %+v", e)
	}
	for i, e := range events {
		if later := i > earlierMaxEvents; i != earlierMaxEvents && ((e.By == operator) != later || (e.Request != "") != later) {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
}

func TestEventsAreBounded(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	var middle *State
	for i := range 2*MaxEvents + 10 {
		l.must(SetDrained{Header: l.header(), Server: "b", Drained: i%2 == 0})
		if i == MaxEvents {
			middle = l.machine.State()
		}
	}
	for s, last := range map[*State]uint64{l.machine.State(): l.index, middle: MaxEvents + 2} {
		events := s.Events()
		for index, want := range map[uint64]int{0: MaxEvents, last - 2: 2, last: 0, last + 1: 0, last - MaxEvents: MaxEvents} {
			if after := s.EventsAfter(index); len(after) != want || !slices.Equal(after, events[MaxEvents-want:]) {
				t.Errorf("%d events after %d, want the last %d", len(after), index, want)
			}
		}
		if len(events) != MaxEvents || events[MaxEvents-1].ID != fmt.Sprintf("r%d", last) || events[0].ID != fmt.Sprintf("r%d", last-MaxEvents+1) {
			t.Errorf("%d events, %s to %s, want up to %d", len(events), events[0].ID, events[MaxEvents-1].ID, last)
		}
	}
	if n := cap(l.machine.State().events); n > 4*MaxEvents {
		t.Errorf("room for %d", n)
	}
}

// More in one command than are remembered.
func TestManyEventsAtOnce(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	for i := range MaxEvents + 5 {
		l.must(AddBundle{Header: l.header(), Bundle: bundleOf("app", "1", fmt.Sprintf("1.%04d", i), "x")})
	}
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("app@1")})
	events := l.machine.State().Events()
	if len(events) != MaxEvents || events[0].ERTS != "1.0005" || events[MaxEvents-1].ERTS != fmt.Sprintf("1.%04d", MaxEvents+4) {
		t.Fatalf("%d events, %+v to %+v", len(events), events[0], events[len(events)-1])
	}
	reread(t, l.machine.State())
}

// Machines that begin with the same state append to the same array.
func TestEventsOfMachinesOfOneStateAreApart(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	for i := range 4 {
		l.must(SetDrained{Header: l.header(), Server: "b", Drained: i%2 == 0})
	}
	a, b := New(l.machine.State()), New(l.machine.State())
	for i, m := range []*Machine{a, b, l.machine} {
		m.Apply(l.index+1, mustEncode(t, SetDrained{Header: Header{RequestID: fmt.Sprint("x", i)}, Server: fmt.Sprint("x", i), Drained: true}))
	}
	for i, m := range []*Machine{a, b, l.machine} {
		events := m.State().Events()
		if got := events[len(events)-1].Server; got != fmt.Sprint("x", i) {
			t.Errorf("machine %d tells of %s", i, got)
		}
	}
}

// Wording may change with the version of eboot; what servers compare must not.
func TestDigestLeavesOutTextsOfEvents(t *testing.T) {
	l := rolledOut(t)
	l.start("app@2", "one", "100%")
	s := l.machine.State()
	change := func(f func(e *eboot.Event, r *eboot.Rollout)) eboot.Digest {
		next := *s
		r := *s.rollouts[0]
		next.events, next.rollouts = slices.Clone(s.events), []*eboot.Rollout{&r}
		f(&next.events[3], &r)
		return newState(next).Digest()
	}
	if change(func(e *eboot.Event, r *eboot.Rollout) { e.Text, r.Reason = "other", "words" }) != s.Digest() {
		t.Error("rewording changed the digest")
	}
	if change(func(e *eboot.Event, r *eboot.Rollout) { e.Kind = "other" }) == s.Digest() || change(func(e *eboot.Event, r *eboot.Rollout) { r.Stage++ }) == s.Digest() {
		t.Error("another event or rollout left the digest as it was")
	}
	if s.events[3].Text == "" || s.rollouts[0].ID == "" {
		t.Error("the digest changed the state")
	}
}

// States from before rollouts are read, are written as they were, and need no newer version.
func TestOlderSnapshotsHaveNoRollouts(t *testing.T) {
	for name, version := range map[string]int{"state.snapshot": firstVersion, "servers.snapshot": firstVersion, "options.snapshot": optionsVersion, "rollouts.snapshot": rolloutVersion, "signatures.snapshot": securityVersion, "operators.snapshot": operatorsVersion} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		s, err := ReadState(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.MinimumVersion() != version || (len(s.Events()) > 0) != (version >= rolloutVersion) || (len(s.Rollouts()) > 0) != (version >= rolloutVersion) {
			t.Errorf("%s needs version %d and has %d events, %d rollouts", name, s.MinimumVersion(), len(s.Events()), len(s.Rollouts()))
		}
		if !bytes.Equal(snapshotOf(t, s), text) {
			t.Errorf("%s is written otherwise", name)
		}
	}
}

func TestReadStateRefusesBadRollouts(t *testing.T) {
	l := rolledOut(t)
	l.start("app@2", "one", "100%")
	l.must(StartRollout{Header: l.header(), ID: "two", Channel: "canary", Ref: refOf("app@2"), Spec: specOf("100%")})
	for name, spoil := range map[string]func(s *State){
		"order":      func(s *State) { slices.Reverse(s.rollouts) },
		"nothing":    func(s *State) { s.rollouts[0] = nil },
		"twice":      func(s *State) { s.rollouts[1] = s.rollouts[0] },
		"no totals":  func(s *State) { r := *s.rollouts[0]; r.Totals = nil; s.rollouts[0] = &r },
		"events":     func(s *State) { s.events = make([]eboot.Event, MaxEvents+1) },
		"left as is": func(*State) {},
		"stage too far": func(s *State) {
			r := *s.rollouts[0]
			r.Stage, r.Totals = 1, make([]eboot.StageTotals, 2)
			s.rollouts[0] = &r
		},
	} {
		s := *l.machine.State()
		s.rollouts = slices.Clone(s.rollouts)
		spoil(&s)
		if _, err := ReadState(bytes.NewReader(snapshotOf(t, newState(s)))); errors.Is(err, eboot.ErrInvalid) != (name != "left as is") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForRestoreOfRollouts(t *testing.T) {
	old := rolledOut(t)
	old.start("app@2", "one", "canary:rack=r1", "100%")
	old.must(StartRollout{Header: old.header(), ID: "two", Channel: "done", Ref: refOf("app@2"), Spec: specOf("100%")})
	old.must(SteerRollout{Header: old.header(), Channel: "done", Action: eboot.RolloutPromote})
	backup := old.machine.State()

	now := newLog(t)
	now.must(RaiseVersion{Header: now.header(), Version: Version})
	now.must(Init{Header: now.header(), ClusterID: "new"})
	current := now.machine.State()
	h := now.by()
	s := reread(t, backup.ForRestore(current, 0, h))
	told := eboot.Event{
		ID: fmt.Sprintf("r%d", s.Index()), Index: s.Index(), At: h.time(), Kind: eboot.EventSnapshotRestored, Generation: s.Generation(), By: operator, Request: h.RequestID,
		Text: fmt.Sprintf("the state is that of a snapshot of generation %d: 0 whitelist entries, 4 bundles, 2 channels", backup.Generation()),
	}
	if !slices.Equal(s.Events(), append(current.Events(), told)) {
		t.Errorf("events %+v, want those of the cluster and %+v", s.Events(), told)
	}
	paused, _ := s.Rollout("stable")
	done, _ := s.Rollout("done")
	if paused.Phase != eboot.RolloutPaused || paused.Reason == "" || done.Phase != eboot.RolloutSucceeded {
		t.Errorf("%+v, %+v", paused, done)
	}
	canary := &eboot.WhitelistEntry{Channel: "stable", Labels: map[string]string{"rack": "r1"}}
	if b, ok := s.Target(canary, netip.MustParseAddr("10.1.2.3"), "13.1"); !ok || b.Ref() != refOf("app@2") {
		t.Errorf("the canary boots %v %v", b.Ref(), ok)
	}
	if r, _ := backup.Rollout("stable"); r.Phase != eboot.RolloutRunning {
		t.Error("the backup changed")
	}
}
