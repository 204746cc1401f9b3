package fsm

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"eboot"
	"eboot/rollout"
)

// The part of the model that is about rollouts. How one goes on is package rollout's,
// which has tests of its own; what it does to everything else is written here again.

func (m *model) underWay(channel string) bool {
	r, ok := m.rollouts[channel]
	return ok && !r.Phase.Over()
}

// needed reports whether a bundle is protected or part of a rollout.
func (m *model) needed(ref eboot.Ref, versions []string) bool {
	for _, erts := range versions {
		if m.protected[[3]string{ref.Name, ref.Version, erts}] {
			return true
		}
		for channel, r := range m.rollouts {
			if m.underWay(channel) && (r.Target == ref || r.Base[erts] == ref) {
				return true
			}
		}
	}
	return false
}

func (m *model) changeRollouts(c Command) (changed, boots bool, err error) {
	at := c.header().time()
	switch c := c.(type) {
	case ProtectBundle:
		found := m.versions(c.Ref, "")
		if len(found) == 0 {
			return false, false, eboot.ErrNotFound
		}
		for _, erts := range found {
			key := [3]string{c.Ref.Name, c.Ref.Version, erts}
			changed = changed || m.protected[key] != c.Protected
			if m.protected[key] = c.Protected; !c.Protected {
				delete(m.protected, key)
			}
		}
		return changed, false, nil
	case UndoChannel:
		if m.underWay(c.Channel) {
			return false, false, eboot.ErrConflict
		}
		var back []eboot.ChannelMove
		for _, move := range m.history[c.Channel] {
			if move.Generation == m.history[c.Channel][len(m.history[c.Channel])-1].Generation {
				back = append(back, move)
			}
		}
		if len(back) == 0 {
			return false, false, eboot.ErrNotFound
		}
		return m.back(c.Channel, back)
	case StartRollout:
		found := m.versions(c.Ref, "")
		if len(found) == 0 {
			return false, false, eboot.ErrNotFound
		}
		for _, r := range m.rollouts {
			if r.ID == c.ID {
				return false, false, eboot.ErrConflict
			}
		}
		r, err := rollout.New(c.ID, c.Channel, c.Ref, m.base(c.Channel, c.Ref), c.Spec, at)
		if err != nil || m.underWay(c.Channel) {
			return false, false, eboot.ErrConflict
		}
		if _, known := m.options[c.Channel]; !known {
			m.options[c.Channel] = eboot.ChannelOptions{}
		}
		r.Generation = m.generation + 1
		m.rollouts[c.Channel] = r
		return true, true, nil
	case ObserveRollout:
		return m.step(c.Channel, c.ID, func(r eboot.Rollout) (eboot.Rollout, error) { return rollout.Observe(r, c.Stage, c.Totals, at), nil })
	case SteerRollout:
		return m.step(c.Channel, c.ID, func(r eboot.Rollout) (eboot.Rollout, error) { return rollout.Steer(r, c.Action, c.Reason, at) })
	}
	panic(fmt.Sprintf("%T", c))
}

func (m *model) base(channel string, ref eboot.Ref) map[string]eboot.Ref {
	base := map[string]eboot.Ref{}
	for _, erts := range m.versions(ref, "") {
		base[erts] = m.channels[[2]string{channel, erts}]
	}
	return base
}

// back undoes moves: all of them or none.
func (m *model) back(channel string, moves []eboot.ChannelMove) (changed, boots bool, err error) {
	for _, move := range moves {
		if _, ok := m.bundles[[3]string{move.From.Name, move.From.Version, move.ERTS}]; !ok && !move.From.IsZero() {
			return false, false, eboot.ErrConflict
		}
	}
	for _, move := range moves {
		boots = m.move(channel, move.ERTS, move.From) || boots
	}
	return false, boots, nil
}

func (m *model) step(channel, id string, next func(eboot.Rollout) (eboot.Rollout, error)) (changed, boots bool, err error) {
	old, ok := m.rollouts[channel]
	if !ok {
		return false, false, eboot.ErrNotFound
	}
	if id != "" && id != old.ID {
		return false, false, eboot.ErrConflict
	}
	r, err := next(old)
	if err != nil {
		return false, false, eboot.ErrConflict
	}
	m.quiet = r.Phase == old.Phase && r.Stage == old.Stage
	switch {
	case m.quiet && slices.Equal(r.Totals, old.Totals):
		return false, false, nil
	case m.quiet:
		m.rollouts[channel] = r
		return true, false, nil
	case r.Phase == eboot.RolloutSucceeded:
		if m.version < coverageVersion {
			r.Base = m.base(channel, r.Target)
		}
		for _, erts := range slices.Sorted(maps.Keys(r.Base)) {
			m.move(channel, erts, r.Target)
		}
	case r.Phase == eboot.RolloutUndone:
		var back []eboot.ChannelMove
		for _, erts := range slices.Sorted(maps.Keys(r.Base)) {
			if m.channels[[2]string{channel, erts}] != r.Target {
				return false, false, eboot.ErrConflict
			}
			back = append(back, eboot.ChannelMove{ERTS: erts, From: r.Base[erts]})
		}
		if _, _, err := m.back(channel, back); err != nil {
			return false, false, err
		}
	}
	if boots = r.Phase.Over() || r.Stage != old.Stage; boots {
		r.Generation = m.generation + 1
	}
	m.rollouts[channel] = r
	return true, boots, nil
}

var (
	drawID     = rapid.SampledFrom([]string{"first", "second", "third", "fourth"})
	drawTotals = rapid.SampledFrom([]eboot.StageTotals{
		{}, {Booted: 1, Healthy: 1}, {Booted: 1, Healthy: 1}, {Booted: 2, Healthy: 1, Pending: 1}, {Booted: 1, Failed: 1, Failures: 2}, {Booted: 1, Looping: 1},
	})
)

func drawRolloutCommand(t *rapid.T, h Header, k kind) Command {
	channel := drawChannel.Draw(t, "channel")
	switch k {
	case kindStartRollout:
		s := specOf([]string{"canary:rack=r1", "30%", "100%"}[:rapid.IntRange(1, 3).Draw(t, "stages")]...)
		s.Approve, s.KeepOnFailure = rapid.Bool().Draw(t, "approve"), rapid.Bool().Draw(t, "keep")
		return StartRollout{Header: h, ID: drawID.Draw(t, "id"), Channel: channel, Ref: drawRef.Draw(t, "ref"), Spec: s}
	case kindObserveRollout:
		stage := rapid.IntRange(0, 2).Draw(t, "stage")
		return ObserveRollout{Header: h, Channel: channel, ID: drawID.Draw(t, "id"), Stage: stage, Totals: rapid.SliceOfN(drawTotals, stage+1, stage+1).Draw(t, "totals")}
	case kindSteerRollout:
		action := rapid.SampledFrom([]eboot.RolloutAction{
			eboot.RolloutUndo, eboot.RolloutPromoteFull, eboot.RolloutPromote, eboot.RolloutAbort, eboot.RolloutPause, eboot.RolloutResume,
		}).Draw(t, "action")
		return SteerRollout{Header: h, Channel: channel, ID: rapid.SampledFrom([]string{"", "", "", "first"}).Draw(t, "id"), Action: action, Reason: rapid.SampledFrom([]string{"", "because"}).Draw(t, "reason")}
	case kindProtectBundle:
		return ProtectBundle{Header: h, Ref: drawRef.Draw(t, "ref"), Protected: rapid.Bool().Draw(t, "protected")}
	}
	return UndoChannel{Header: h, Channel: channel}
}

func compareRollouts(t *rapid.T, s *State, m *model) {
	rollouts := s.Rollouts()
	if len(rollouts) != len(m.rollouts) || !slices.IsSortedFunc(rollouts, func(a, b eboot.Rollout) int { return strings.Compare(a.Channel, b.Channel) }) {
		t.Fatalf("rollouts %+v, model %+v", rollouts, m.rollouts)
	}
	for channel, want := range m.rollouts {
		if got, ok := s.Rollout(channel); !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("rollout of %s: %+v, model %+v", channel, got, want)
		}
	}
	for _, b := range s.Bundles() {
		if b.Protected != m.protected[[3]string{b.Name, b.Version, b.ERTS}] {
			t.Fatalf("bundle %s for %s: protected %v", b.Ref(), b.ERTS, b.Protected)
		}
	}
	for _, c := range s.Channels() {
		moves := m.history[c.Name]
		if len(moves) > eboot.ChannelHistoryLength {
			moves = moves[len(moves)-eboot.ChannelHistoryLength:]
		}
		if len(c.History) != len(moves) {
			t.Fatalf("channel %s: moves %+v, model %+v", c.Name, c.History, moves)
		}
		// Moves of one generation have no order in the model.
		for _, move := range c.History {
			move.At = time.Time{}
			if !slices.Contains(moves, move) {
				t.Fatalf("channel %s: moved %+v, model %+v", c.Name, move, moves)
			}
		}
	}
	for _, channel := range []string{"stable", "canary"} {
		for i, labels := range []map[string]string{nil, {"rack": "r1"}, nil, {"rack": "r2"}} {
			slave := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			for _, erts := range []string{"13.1", "14.0"} {
				want := m.channels[[2]string{channel, erts}]
				r := m.rollouts[channel]
				_, covered := r.Base[erts]
				covered = covered || m.version < coverageVersion && len(m.versions(r.Target, erts)) > 0
				if m.underWay(channel) && r.Moves(slave, labels) && covered {
					want = r.Target
				}
				got, ok := s.Target(&eboot.WhitelistEntry{Channel: channel, Labels: labels}, slave, erts)
				if ok == want.IsZero() || got.Ref() != want || ok && got.ERTS != erts {
					t.Fatalf("%s with %v on %s boots %s %v, model %s", slave, labels, channel, got.Ref(), ok, want)
				}
			}
		}
	}
}

// checkEvents asks what must hold of events after one command; told: it has some.
func checkEvents(t *rapid.T, s *State, told bool) {
	events, seen := s.Events(), map[string]bool{}
	if len(events) > MaxEvents || s.Version() < rolloutVersion && len(events) > 0 {
		t.Fatalf("%d events at version %d", len(events), s.Version())
	}
	var latest uint64
	for _, e := range events {
		var index, n uint64
		if _, err := fmt.Sscanf(e.ID+".1", "r%d.%d", &index, &n); err != nil || index != e.Index || seen[e.ID] || index < latest || e.Kind == "" || e.Text == "" || e.Generation > s.Generation() {
			t.Fatalf("event %+v after that of %d: %v", e, latest, err)
		}
		seen[e.ID], latest = true, index
	}
	if told != (latest == s.Index()) {
		t.Fatalf("events to %d at %d, want one: %v", latest, s.Index(), told)
	}
}
