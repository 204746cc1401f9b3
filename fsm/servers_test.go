package fsm

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"eboot"
)

func holdersOf(t *testing.T, s *State, ref string) []string {
	t.Helper()
	b, ok := s.Bundle(refOf(ref), "13.1")
	if !ok {
		t.Fatalf("%s is gone", ref)
	}
	return b.Holders
}

func TestHoldBundle(t *testing.T) {
	l := newLog(t)
	one, two := bundleOf("otp", "1", "13.1", "one"), bundleOf("otp", "2", "13.1", "two")
	twin := bundleOf("twin", "1", "13.1", "one") // the same tree under another name
	for _, b := range []eboot.Bundle{one, two, twin} {
		l.must(AddBundle{Header: l.header(), Bundle: b, Channel: "stable"})
	}
	before := l.machine.State()
	hold := HoldBundle{Server: "other", Manifests: []eboot.Digest{one.Manifest, eboot.DigestOf([]byte("gone")), one.Manifest}}
	for _, want := range []bool{true, false} {
		hold.Header = l.header()
		if r := l.must(hold); r.Changed != want || r.Generation != before.Generation() {
			t.Fatalf("%+v, want changed %v", r, want)
		}
	}
	for ref, want := range map[string][]string{"otp@1": {"other", "server-a"}, "twin@1": {"other", "server-a"}, "otp@2": {"server-a"}} {
		if got := holdersOf(t, l.machine.State(), ref); !slices.Equal(got, want) {
			t.Errorf("%s is held by %v, want %v", ref, got, want)
		}
		if got := holdersOf(t, before, ref); len(got) != 1 {
			t.Errorf("the older state changed: %s is held by %v", ref, got)
		}
	}
	if r := l.must(HoldBundle{Header: l.header(), Server: "other", Manifests: hold.Manifests[1:2]}); r.Changed {
		t.Errorf("of a bundle that is not there: %+v", r)
	}
}

func TestHoldersAreBounded(t *testing.T) {
	l := newLog(t)
	full, free := bundleOf("full", "1", "13.1", "one"), bundleOf("otp", "1", "13.1", "two")
	l.must(AddBundle{Header: l.header(), Bundle: full})
	l.must(AddBundle{Header: l.header(), Bundle: free})
	for i := range maxHolders - 1 {
		l.must(HoldBundle{Header: l.header(), Server: fmt.Sprint("s", i), Manifests: []eboot.Digest{full.Manifest}})
	}
	both := []eboot.Digest{free.Manifest, full.Manifest}
	if r := l.apply(HoldBundle{Header: l.header(), Server: "late", Manifests: both}); !errors.Is(r.Err, eboot.ErrTooLarge) || r.Changed {
		t.Fatalf("%+v", r)
	}
	if got := holdersOf(t, l.machine.State(), "otp@1"); len(got) != 1 {
		t.Fatalf("a refused change entered %v", got)
	}
	l.must(HoldBundle{Header: l.header(), Server: "s0", Manifests: both}) // holds the full one already
	l.must(RemoveServer{Header: l.header(), Server: "s0"})
	l.must(HoldBundle{Header: l.header(), Server: "late", Manifests: both})
}

func TestDrain(t *testing.T) {
	l := newLog(t)
	drain := func(server string, drained bool) *Result {
		return l.apply(SetDrained{Header: l.header(), Server: server, Drained: drained})
	}
	empty := l.machine.State()
	for _, step := range []struct {
		server  string
		drained bool
		changed bool
	}{{"b", false, false}, {"b", true, true}, {"b", true, false}, {"a", true, true}, {"c", false, false}, {"b", false, true}} {
		if r := drain(step.server, step.drained); r.Err != nil || r.Changed != step.changed || r.Generation != 0 {
			t.Fatalf("%+v: %+v", step, r)
		}
	}
	s := l.machine.State()
	if !slices.Equal(s.DrainedServers(), []string{"a"}) || !s.Drained("a") || s.Drained("b") || empty.Drained("a") {
		t.Fatalf("drained: %v", s.DrainedServers())
	}
	for i := range maxDrained - 1 {
		if r := drain(fmt.Sprint("s", i), true); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if r := drain("late", true); !errors.Is(r.Err, eboot.ErrTooLarge) {
		t.Fatalf("one too many: %+v", r)
	}
	if r := drain("a", false); r.Err != nil || l.machine.State().Drained("a") {
		t.Fatalf("%+v", r)
	}
}

// Equal states have equal digests, whatever the way to them.
func TestDigestOfServers(t *testing.T) {
	a, b := newLog(t), newLog(t)
	for _, server := range []string{"x", "y"} {
		a.must(SetDrained{Header: a.header(), Server: server, Drained: true})
	}
	a.must(SetDrained{Header: a.header(), Server: "y"})
	a.must(SetDrained{Header: a.header(), Server: "x"})
	for range 4 {
		b.must(SetDrained{Header: b.header(), Server: "x"})
	}
	x, y := *a.machine.State(), *b.machine.State()
	x.answers, y.answers = nil, nil
	if newState(x).Digest() != newState(y).Digest() {
		t.Error("nobody drained any more is not as nobody drained")
	}
}

func TestRemoveServer(t *testing.T) {
	l := newLog(t)
	one := bundleOf("otp", "1", "13.1", "one") // held by server-a
	l.must(AddBundle{Header: l.header(), Bundle: one, Channel: "stable"})
	l.must(SetDrained{Header: l.header(), Server: "server-a", Drained: true})
	before := l.machine.State()
	for _, want := range []bool{true, false} {
		if r := l.must(RemoveServer{Header: l.header(), Server: "server-a"}); r.Changed != want || r.Generation != 1 {
			t.Fatalf("%+v, want changed %v", r, want)
		}
	}
	s := l.machine.State()
	if got := holdersOf(t, s, "otp@1"); len(got) != 0 || s.Drained("server-a") || !s.Removed("server-a") || s.Removed("server-b") {
		t.Fatalf("held by %v, drained %v, removed %v", got, s.drained, s.removed)
	}
	if !before.Drained("server-a") || before.Removed("server-a") || len(holdersOf(t, before, "otp@1")) != 1 {
		t.Fatal("the older state changed")
	}

	// What was under way when it was removed does not bring it back.
	for _, c := range []Command{
		HoldBundle{Header: l.header(), Server: "server-a", Manifests: []eboot.Digest{one.Manifest}},
		SetDrained{Header: l.header(), Server: "server-a", Drained: true},
	} {
		if r := l.apply(c); !errors.Is(r.Err, eboot.ErrConflict) {
			t.Errorf("%T: %+v", c, r)
		}
	}
	one.Holders = []string{"server-b", "server-a"}
	l.must(AddBundle{Header: l.header(), Bundle: one})
	next := bundleOf("otp", "2", "13.1", "two")
	l.must(AddBundle{Header: l.header(), Bundle: next})
	for ref, want := range map[string][]string{"otp@1": {"server-b"}, "otp@2": {}} {
		if got := holdersOf(t, l.machine.State(), ref); !slices.Equal(got, want) {
			t.Errorf("%s is held by %v, want %v", ref, got, want)
		}
	}
	if again := reread(t, l.machine.State()); again.Digest() != l.machine.State().Digest() {
		t.Error("a bundle that nobody holds has another digest when it was read")
	}
}

func TestRemovedServersAreBounded(t *testing.T) {
	l := newLog(t)
	for i := range maxRemoved + 2 {
		l.must(RemoveServer{Header: l.header(), Server: fmt.Sprint("s", i)})
	}
	s := reread(t, l.machine.State())
	if len(s.removed) != maxRemoved || s.Removed("s1") || !s.Removed("s2") || !s.Removed(fmt.Sprint("s", maxRemoved+1)) {
		t.Fatalf("%d removed, the oldest %s", len(s.removed), s.removed[0])
	}
}

func TestRaiseVersion(t *testing.T) {
	l := newLog(t)
	if v := l.machine.State().Version(); v != 1 {
		t.Fatalf("version %d before it was raised", v)
	}
	empty := l.machine.State().Digest()
	for _, step := range []struct {
		version, want int
		changed       bool
	}{{1, 1, false}, {3, 3, true}, {2, 3, false}, {3, 3, false}} {
		r := l.must(RaiseVersion{Header: l.header(), Version: step.version})
		if r.Changed != step.changed || r.Generation != 0 || l.machine.State().Version() != step.want {
			t.Fatalf("raise to %d: %+v, version %d", step.version, r, l.machine.State().Version())
		}
	}
	if s := reread(t, l.machine.State()); s.Version() != 3 || s.Digest() == empty {
		t.Fatalf("version %d when it was read", s.Version())
	}
	if r := l.applyEntry([]byte("\x0a\x01" + `{"request_id":"a","at_ms":1,"change":{"version":0}}`)); !errors.Is(r.Err, eboot.ErrInvalid) {
		t.Fatalf("version 0: %+v", r)
	}
}
