package fsm

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"eboot"
	"eboot/rollout"
)

const (
	maxReason = 256     // bytes of SteerRollout.Reason
	maxTotal  = 1 << 25 // each number of ObserveRollout.Totals: sums stay small
)

// StartRollout begins to move a channel to a bundle, stage by stage. The channel is made when it
// does not exist. ErrNotFound: there is no such bundle; ErrConflict: a rollout of the channel is
// under way, the channel points to the bundle already, or ID was used for another rollout.
type StartRollout struct {
	Header  `json:"-"`
	ID      string            `json:"id"`
	Channel string            `json:"channel"`
	Ref     eboot.Ref         `json:"bundle"`
	Spec    eboot.RolloutSpec `json:"spec"`
}

func (StartRollout) kind() kind { return kindStartRollout }

func (c StartRollout) check() error {
	if err := checkRollout(c.Channel, c.ID); err != nil {
		return err
	}
	if err := c.Ref.Check(); err != nil {
		return err
	}
	return c.Spec.Check()
}

// ObserveRollout tells a rollout what became of the boots of its target: one element of
// Totals for each stage that was begun, Stage being the index of the last. Totals of a stage
// that is not the latest any more change nothing. ErrNotFound: the channel has
// had no rollout; ErrConflict: ID is not that of its latest one.
type ObserveRollout struct {
	Header  `json:"-"`
	Channel string              `json:"channel"`
	ID      string              `json:"id"`
	Stage   int                 `json:"stage"`
	Totals  []eboot.StageTotals `json:"totals"`
}

func (ObserveRollout) kind() kind { return kindObserveRollout }

func (c ObserveRollout) check() error {
	if err := checkRollout(c.Channel, c.ID); err != nil {
		return err
	}
	if c.Stage < 0 || c.Stage >= eboot.MaxStages || len(c.Totals) != c.Stage+1 {
		return fmt.Errorf("rollout of channel %s: stage %d with totals of %d stages: %w", c.Channel, c.Stage, len(c.Totals), eboot.ErrInvalid)
	}
	for _, t := range c.Totals {
		for _, n := range [...]int{t.Booted, t.Pending, t.Healthy, t.Failed, t.Failures, t.Looping} {
			if n < 0 || n > maxTotal {
				return fmt.Errorf("rollout of channel %s: a total of %d, want 0 to %d: %w", c.Channel, n, maxTotal, eboot.ErrInvalid)
			}
		}
	}
	return nil
}

// SteerRollout tells the latest rollout of a channel what an operator wants; with an ID, only
// if it is that one. Reason is one line of at most 256 bytes. ErrNotFound: the channel has had no
// rollout; ErrConflict: it is another one, the action makes no sense in its phase, or what the
// channel would be moved back to is gone.
type SteerRollout struct {
	Header  `json:"-"`
	Channel string              `json:"channel"`
	ID      string              `json:"id,omitempty"`
	Action  eboot.RolloutAction `json:"action"`
	Reason  string              `json:"reason,omitempty"`
}

func (SteerRollout) kind() kind { return kindSteerRollout }

func (c SteerRollout) check() error {
	if err := eboot.CheckName("channel", c.Channel); err != nil {
		return err
	}
	if c.ID != "" {
		if err := eboot.CheckName("rollout id", c.ID); err != nil {
			return err
		}
	}
	if len(c.Reason) > maxReason || strings.ToValidUTF8(c.Reason, "") != c.Reason || strings.ContainsFunc(c.Reason, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("rollout of channel %s: reason: want one line of at most %d bytes: %w", c.Channel, maxReason, eboot.ErrInvalid)
	}
	return c.Action.Check()
}

func checkRollout(channel, id string) error {
	if err := eboot.CheckName("channel", channel); err != nil {
		return err
	}
	return eboot.CheckName("rollout id", id)
}

func (c StartRollout) apply(t *transition) error {
	if _, err := t.target(c.Ref, ""); err != nil {
		return err
	}
	if err := t.checkFree(c.Channel); err != nil {
		return err
	}
	if slices.ContainsFunc(t.next.rollouts, func(r *eboot.Rollout) bool { return r.ID == c.ID }) {
		return fmt.Errorf("rollout %s: the id was used before: %w", c.ID, eboot.ErrConflict)
	}
	channel, known, err := t.channel(c.Channel)
	if err != nil {
		return err
	}
	r, err := rollout.New(c.ID, c.Channel, c.Ref, t.base(channel, c.Ref), c.Spec, t.at)
	if err != nil {
		return err
	}
	if !known {
		t.replace(channel)
	}
	return t.step(eboot.Rollout{}, r)
}

func (c ObserveRollout) apply(t *transition) error {
	old, err := t.rollout(c.Channel, c.ID)
	if err != nil {
		return err
	}
	return t.step(old, rollout.Observe(old, c.Stage, c.Totals, t.at))
}

func (c SteerRollout) apply(t *transition) error {
	old, err := t.rollout(c.Channel, c.ID)
	if err != nil {
		return err
	}
	next, err := rollout.Steer(old, c.Action, c.Reason, t.at)
	if err != nil {
		return err
	}
	return t.step(old, next)
}

// rollout returns the latest rollout of a channel, if it is the one with the id, or any
// for the empty id.
func (t *transition) rollout(channel, id string) (eboot.Rollout, error) {
	r, ok := t.next.Rollout(channel)
	switch {
	case !ok:
		return r, fmt.Errorf("channel %s: has had no rollout; `eboot rollout start %s NAME@VERSION` begins one: %w", channel, channel, eboot.ErrNotFound)
	case id != "" && id != r.ID:
		return r, fmt.Errorf("channel %s: its latest rollout is %s, not %s; see `eboot rollout status %s`: %w", channel, r.ID, id, channel, eboot.ErrConflict)
	}
	return r, nil
}

// checkFree refuses to move a channel behind the back of a rollout.
func (t *transition) checkFree(channel string) error {
	if r, ok := t.next.Rollout(channel); ok && !r.Phase.Over() {
		return fmt.Errorf("channel %s: its rollout to %s is %s; see `eboot rollout status %s`, or abort it first (`eboot rollout abort %s`): %w",
			channel, r.Target, r.Phase, channel, channel, eboot.ErrConflict)
	}
	return nil
}

// base is what a channel points to for each ERTS version of a bundle.
func (t *transition) base(channel eboot.Channel, target eboot.Ref) map[string]eboot.Ref {
	base := map[string]eboot.Ref{}
	for _, b := range t.next.bundlesOf(target) {
		base[b.ERTS] = channel.Bundles[b.ERTS]
	}
	return base
}

// step enters what a rollout has become, and moves its channel when it has succeeded or
// is undone.
func (t *transition) step(old, r eboot.Rollout) error {
	kind, text := rollout.Step(old, r)
	if kind == "" && slices.Equal(old.Totals, r.Totals) {
		return nil
	}
	t.changed = true
	if kind != "" {
		t.tell(eboot.Event{Kind: kind, Text: text, Channel: r.Channel, Bundle: r.Target, Rollout: r.ID})
	}
	if rollout.Moves(kind) {
		t.boots = true
		r.Generation = t.next.generation + 1
	}
	var err error
	switch kind {
	case eboot.EventRolloutSucceeded:
		err = t.succeed(&r)
	case eboot.EventRolloutUndone:
		err = t.takeBack(r)
	}
	if err != nil {
		return err
	}
	i, known := t.next.findRollout(r.Channel)
	t.next.rollouts = slices.Clone(t.next.rollouts)
	if known {
		t.next.rollouts[i] = &r
	} else {
		t.next.rollouts = slices.Insert(t.next.rollouts, i, &r)
	}
	return nil
}

// succeed points the channel to the target, for the ERTS versions of the rollout. Before
// coverageVersion those were all that the target had been published for meanwhile: the base
// is then what the channel points to now, as nothing else could move it.
func (t *transition) succeed(r *eboot.Rollout) error {
	if t.next.Version() < coverageVersion {
		channel, _ := t.next.Channel(r.Channel)
		r.Base = t.base(channel, r.Target)
	}
	for _, erts := range slices.Sorted(maps.Keys(r.Base)) {
		if err := t.point(r.Channel, erts, r.Target); err != nil {
			return err
		}
	}
	return nil
}

// coverRollouts has rollouts that are under way move the ERTS versions that they move at this
// moment, and no others from now on: no slave boots anything else because of a new version.
func (t *transition) coverRollouts() {
	t.next.rollouts = slices.Clone(t.next.rollouts)
	for i, r := range t.next.rollouts {
		if r.Phase.Over() {
			continue
		}
		covering := *r
		channel, _ := t.next.Channel(r.Channel)
		covering.Base = t.base(channel, r.Target)
		t.next.rollouts[i] = &covering
	}
}

// takeBack points the channel to what it pointed to before a rollout that has succeeded.
func (t *transition) takeBack(r eboot.Rollout) error {
	channel, _ := t.next.Channel(r.Channel)
	for _, erts := range slices.Sorted(maps.Keys(r.Base)) {
		if channel.Bundles[erts] != r.Target {
			return fmt.Errorf("channel %s: was moved since its rollout to %s; `eboot channel set %s NAME@VERSION` points it where it should: %w",
				r.Channel, r.Target, r.Channel, eboot.ErrConflict)
		}
		if err := t.moveBack(r.Channel, erts, r.Base[erts]); err != nil {
			return err
		}
	}
	return nil
}

// Rollouts returns the latest rollout of each channel that had one, by channel.
func (s *State) Rollouts() []eboot.Rollout {
	rollouts := make([]eboot.Rollout, len(s.rollouts))
	for i, r := range s.rollouts {
		rollouts[i] = *r
	}
	return rollouts
}

// Rollout returns the latest rollout of a channel.
func (s *State) Rollout(channel string) (eboot.Rollout, bool) {
	i, ok := s.findRollout(channel)
	if !ok {
		return eboot.Rollout{}, false
	}
	return *s.rollouts[i], true
}

func (s *State) findRollout(channel string) (int, bool) {
	return slices.BinarySearchFunc(s.rollouts, channel, func(r *eboot.Rollout, channel string) int { return strings.Compare(r.Channel, channel) })
}

// RolloutBundle returns what a rollout of this state has slaves with an ERTS version boot;
// false: it does not move them. They are the versions that its target was published for when
// it began: who may publish does not decide what slaves run, as who may start a rollout does,
// so a publish for a further version waits for the next rollout.
func (s *State) RolloutBundle(r *eboot.Rollout, erts string) (eboot.Bundle, bool) {
	if _, ok := r.Base[erts]; !ok && s.version >= coverageVersion {
		return eboot.Bundle{}, false
	}
	return s.Bundle(r.Target, erts)
}

// Target returns what a slave with this ERTS version boots now: the target of its channel's
// rollout when that moves the slave (RolloutBundle), else what the channel points to. entry
// is the slave's (Lookup). It allocates nothing.
func (s *State) Target(entry *eboot.WhitelistEntry, slave netip.Addr, erts string) (eboot.Bundle, bool) {
	if i, ok := s.findRollout(entry.Channel); ok && s.rollouts[i].Moves(slave, entry.Labels) {
		if b, ok := s.RolloutBundle(s.rollouts[i], erts); ok {
			return b, true
		}
	}
	return s.ChannelBundle(entry.Channel, erts)
}
