package fsm

import (
	"fmt"

	"eboot"
)

// UndoChannel takes back what the latest change of a channel moved: for each ERTS version
// of it, the channel points again to what it pointed to before. That is a move too, so
// the next undo takes it back. ErrNotFound: the channel was never moved; ErrConflict: a
// rollout of it is under way, or a bundle that it pointed to was removed.
type UndoChannel struct {
	Header  `json:"-"`
	Channel string `json:"channel"`
}

func (UndoChannel) kind() kind { return kindUndoChannel }

func (c UndoChannel) check() error { return eboot.CheckName("channel", c.Channel) }

func (c UndoChannel) apply(t *transition) error {
	if err := t.checkFree(c.Channel); err != nil {
		return err
	}
	channel, ok := t.next.Channel(c.Channel)
	if !ok {
		return fmt.Errorf("channel %s: does not exist: %w", c.Channel, eboot.ErrNotFound)
	}
	moves := channel.History
	if len(moves) == 0 {
		return fmt.Errorf("channel %s: was never moved, there is nothing to undo: %w", c.Channel, eboot.ErrNotFound)
	}
	latest := moves[len(moves)-1].Generation
	for _, m := range moves {
		if m.Generation == latest {
			if err := t.moveBack(c.Channel, m.ERTS, m.From); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveBack points a channel to what it once pointed to for one ERTS version; the zero
// Ref: to nothing. ErrConflict: it was removed.
func (t *transition) moveBack(channel, erts string, to eboot.Ref) error {
	if _, ok := t.next.Bundle(to, erts); !ok && !to.IsZero() {
		return fmt.Errorf("channel %s: it pointed to %s for ERTS %s, which was removed; `eboot channel set %s NAME@VERSION` points it to another: %w",
			channel, to, erts, channel, eboot.ErrConflict)
	}
	return t.point(channel, erts, to)
}
