package fsm

import (
	"fmt"
	"slices"

	"eboot"
)

// ProtectBundle keeps a bundle from being removed, for each ERTS version that it was
// published for until now, or lets it be removed again. ErrNotFound: there is no such bundle.
type ProtectBundle struct {
	Header    `json:"-"`
	Ref       eboot.Ref `json:"bundle"`
	Protected bool      `json:"protected"`
}

func (ProtectBundle) kind() kind { return kindProtectBundle }

func (c ProtectBundle) check() error { return c.Ref.Check() }

func (c ProtectBundle) apply(t *transition) error {
	if _, err := t.target(c.Ref, ""); err != nil {
		return err
	}
	bundles := slices.Clone(t.next.bundles)
	for i := range bundles {
		if bundles[i].Ref() == c.Ref && bundles[i].Protected != c.Protected {
			bundles[i].Protected, t.changed = c.Protected, true
		}
	}
	if !t.changed {
		return nil
	}
	t.next.bundles = bundles
	e := eboot.Event{Kind: eboot.EventBundleProtected, Bundle: c.Ref, Text: fmt.Sprintf("bundle %s is protected", c.Ref)}
	if !c.Protected {
		e.Kind, e.Text = eboot.EventBundleUnprotected, fmt.Sprintf("bundle %s is not protected any more", c.Ref)
	}
	t.tell(e)
	return nil
}

// removable refuses the removal of bundles that somebody still needs.
func (t *transition) removable(b eboot.Bundle) error {
	ref := b.Ref()
	if b.Protected {
		return fmt.Errorf("bundle %s for ERTS %s: is protected; `eboot bundle protect %s --off` lets it go: %w", ref, b.ERTS, ref, eboot.ErrConflict)
	}
	for _, r := range t.next.rollouts {
		if !r.Phase.Over() && (r.Target == ref || r.Base[b.ERTS] == ref) {
			return fmt.Errorf("bundle %s for ERTS %s: the rollout of channel %s needs it and is %s; abort it first (`eboot rollout abort %s`): %w",
				ref, b.ERTS, r.Channel, r.Phase, r.Channel, eboot.ErrConflict)
		}
	}
	return nil
}
