package gossip

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"

	"eboot"
)

// newRing returns nil without keys.
func newRing(keys [][]byte) (*memberlist.Keyring, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	for _, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return nil, fmt.Errorf("key of %d bytes, want 32: %w", len(k), eboot.ErrInvalid)
		}
	}
	return memberlist.NewKeyring(keys, keys[0])
}

// SetKeys changes Options.Keys. Whether there is any encryption was decided by Open: to
// begin or end it needs a restart. Errors wrap eboot.ErrInvalid, and then nothing has
// changed.
func (g *Gossip) SetKeys(keys [][]byte) error {
	next, err := newRing(keys)
	if err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	if (next == nil) != (g.transport.ring == nil) {
		return fmt.Errorf("set gossip keys: whether gossip is encrypted changes with a restart only: %w", eboot.ErrInvalid)
	}
	if next == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	ring := g.transport.ring
	wanted := next.GetKeys() // without repetitions
	for _, k := range wanted {
		if err := ring.AddKey(k); err != nil {
			return fmt.Errorf("set gossip keys: %w", err)
		}
	}
	if len(ring.GetKeys()) > len(wanted) {
		// memberlist v0.7 takes a key out of a list that others read at that moment, unless
		// it is the last: so those that stay are brought to the front, the first at the end.
		for _, k := range slices.Backward(wanted) {
			if err := ring.UseKey(k); err != nil {
				return fmt.Errorf("set gossip keys: %w", err)
			}
		}
	}
	if err := ring.UseKey(wanted[0]); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	for _, k := range slices.Backward(ring.GetKeys()) {
		if slices.ContainsFunc(wanted, func(w []byte) bool { return bytes.Equal(w, k) }) {
			break
		}
		if err := ring.RemoveKey(k); err != nil {
			return fmt.Errorf("set gossip keys: %w", err)
		}
	}
	return nil
}
