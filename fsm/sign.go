package fsm

import (
	"fmt"
	"slices"
	"strings"

	"eboot"
)

// SignBundle adds signatures to a bundle, each in the place of one by the same key. Whether
// they are right is not asked here: which keys are trusted is the configuration of each server,
// and the same log must give the same state on all of them. Who proposes it asks, and whoever
// serves asks again.
// ErrNotFound: there is no such bundle; ErrConflict: it has another manifest than the one
// that was signed; ErrTooLarge: it would have more than eboot.MaxSignatures.
type SignBundle struct {
	Header     `json:"-"`
	Ref        eboot.Ref         `json:"bundle"`
	ERTS       string            `json:"erts"`
	Manifest   eboot.Digest      `json:"manifest"`
	Signatures []eboot.Signature `json:"signatures"`
}

func (SignBundle) kind() kind { return kindSignBundle }

func (c SignBundle) check() error {
	if err := c.Ref.Check(); err != nil {
		return err
	}
	if err := eboot.CheckERTS(c.ERTS); err != nil {
		return err
	}
	if c.Manifest.IsZero() || len(c.Signatures) == 0 {
		return fmt.Errorf("sign %s: no manifest or no signatures given: %w", c.Ref, eboot.ErrInvalid)
	}
	if err := eboot.CheckSignatures(c.Signatures); err != nil {
		return fmt.Errorf("sign %s: %w", c.Ref, err)
	}
	return nil
}

func (c SignBundle) apply(t *transition) error {
	found, err := t.target(c.Ref, c.ERTS)
	if err != nil {
		return err
	}
	if b := found[0]; b.Manifest != c.Manifest {
		return fmt.Errorf("bundle %s for ERTS %s: has the manifest %s, and %s was signed: %w", c.Ref, c.ERTS, b.Manifest.Short(), c.Manifest.Short(), eboot.ErrConflict)
	}
	i, _ := t.next.findBundle(c.Ref, c.ERTS)
	return t.sign(i, c.Signatures)
}

// sign adds signatures to the bundle at i.
func (t *transition) sign(i int, added []eboot.Signature) error {
	b := t.next.bundles[i]
	signatures := slices.Clone(b.Signatures)
	var keys []string
	for _, s := range added {
		at, known := slices.BinarySearchFunc(signatures, s, compareSignatures)
		switch {
		case known && signatures[at].Equal(s):
			continue
		case known:
			signatures[at] = s
		case len(signatures) >= eboot.MaxSignatures:
			return fmt.Errorf("bundle %s for ERTS %s: has %d signatures, which is the limit: %w", b.Ref(), b.ERTS, len(signatures), eboot.ErrTooLarge)
		default:
			signatures = slices.Insert(signatures, at, s)
		}
		keys = append(keys, s.KeyID.String())
	}
	if len(keys) == 0 {
		return nil
	}
	b.Signatures = signatures
	t.next.bundles = slices.Clone(t.next.bundles)
	t.next.bundles[i] = b
	t.changed = true
	t.tell(eboot.Event{
		Kind: eboot.EventBundleSigned, Bundle: b.Ref(), ERTS: b.ERTS,
		Text: fmt.Sprintf("bundle %s for ERTS %s has a signature that names key %s", b.Ref(), b.ERTS, strings.Join(keys, ", ")),
	})
	return nil
}

func compareSignatures(a, b eboot.Signature) int {
	return strings.Compare(a.KeyID.String(), b.KeyID.String())
}

// sortedSignatures orders signatures as a bundle has them.
func sortedSignatures(signatures []eboot.Signature) []eboot.Signature {
	return slices.SortedFunc(slices.Values(signatures), compareSignatures)
}
