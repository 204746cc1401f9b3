package fsm

import (
	"fmt"
	"slices"

	"eboot"
)

// ConfigureChannel sets options of a channel, and points it to a bundle in the same
// step when Ref is not zero, as SetChannel does. Options that are empty stay as they
// are. The channel is made when it does not exist, without a bundle if need be.
// ErrNotFound: there is no such bundle.
//
// ErrConflict: it is to be pointed to a bundle while a rollout of it is under way.
//
// The generation rises when the loader changes or live does, which are part of what slaves
// boot, and not for the control, which is not.
type ConfigureChannel struct {
	Header  `json:"-"`
	Channel string               `json:"channel"`
	Options eboot.ChannelOptions `json:"options"`
	Ref     eboot.Ref            `json:"bundle,omitzero"`
	ERTS    string               `json:"erts,omitempty"`
}

func (ConfigureChannel) kind() kind { return kindConfigure }

func (c ConfigureChannel) check() error {
	if err := eboot.CheckName("channel", c.Channel); err != nil {
		return err
	}
	if c.Options == (eboot.ChannelOptions{}) {
		return fmt.Errorf("channel %s: no options given: %w", c.Channel, eboot.ErrInvalid)
	}
	if err := c.Options.Check(); err != nil {
		return fmt.Errorf("channel %s: %w", c.Channel, err)
	}
	if c.Ref.IsZero() && c.ERTS == "" {
		return nil
	}
	return checkTarget(c.Ref, c.ERTS)
}

func (c ConfigureChannel) apply(t *transition) error {
	if !c.Ref.IsZero() {
		if err := (SetChannel{Channel: c.Channel, Ref: c.Ref, ERTS: c.ERTS}).apply(t); err != nil {
			return err
		}
	}
	next, known, err := t.channel(c.Channel)
	if err != nil {
		return err
	}
	old := next.Options
	next.Options = old.With(c.Options)
	if known && next.Options == old {
		return nil
	}
	t.replace(next)
	t.changed = true
	t.boots = t.boots || next.Options.Loader != old.Loader || next.Options.Live != old.Live
	words := next.Options.Words()
	t.tell(eboot.Event{
		Kind: eboot.EventChannelConfigured, Channel: c.Channel,
		Text: fmt.Sprintf("channel %s has loader %s, control %s, live %s", c.Channel, words.Loader, words.Control, words.Live),
	})
	return nil
}

// ChannelOptions returns the options of a channel; those of one that nobody has set are
// the defaults.
func (s *State) ChannelOptions(name string) eboot.ChannelOptions {
	i, ok := s.findChannel(name)
	if !ok {
		return eboot.ChannelOptions{}
	}
	return s.channels[i].Options
}

// MinimumVersion is the cluster version that a program must know to read the state: a
// cluster that is at a lower one must not be given it. See MinimumVersion of commands.
func (s *State) MinimumVersion() int {
	if len(s.tokens) > 0 || len(s.events) > earlierMaxEvents ||
		slices.ContainsFunc(s.events, func(e eboot.Event) bool { return e.Request != "" || !e.By.IsZero() }) {
		return operatorsVersion
	}
	if slices.ContainsFunc(s.bundles, func(b eboot.Bundle) bool { return len(b.Signatures) > 0 }) {
		return securityVersion
	}
	if len(s.rollouts) > 0 || len(s.events) > 0 || slices.ContainsFunc(s.bundles, func(b eboot.Bundle) bool { return b.Protected }) ||
		slices.ContainsFunc(s.channels, func(c eboot.Channel) bool { return c.Options.Live != "" }) {
		return rolloutVersion
	}
	if slices.ContainsFunc(s.channels, func(c eboot.Channel) bool { return c.Options != eboot.ChannelOptions{} }) {
		return optionsVersion
	}
	return firstVersion
}
