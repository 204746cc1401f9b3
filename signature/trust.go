package signature

import (
	"fmt"
	"slices"
	"strings"

	"eboot"
)

// Trust says whose signatures a bundle must have. The zero value demands none.
type Trust struct {
	keys      []PublicKey
	threshold int
}

// NewTrust demands signatures of threshold of the keys; no keys: it demands none.
// eboot.ErrInvalid: a key is given twice, which would count twice, or threshold is out of range.
func NewTrust(keys []PublicKey, threshold int) (Trust, error) {
	for i, k := range keys {
		if slices.ContainsFunc(keys[:i], func(o PublicKey) bool { return o.ID == k.ID || o.Key.Equal(k.Key) }) {
			return Trust{}, fmt.Errorf("trust: key %s is given twice: %w", k.ID, eboot.ErrInvalid)
		}
	}
	if len(keys) > 0 && (threshold < 1 || threshold > len(keys)) {
		return Trust{}, fmt.Errorf("trust: threshold %d, want 1 to the %d keys that there are: %w", threshold, len(keys), eboot.ErrInvalid)
	}
	return Trust{keys: slices.Clone(keys), threshold: threshold}, nil
}

// Demands reports whether unsigned bundles are refused.
func (t Trust) Demands() bool { return len(t.keys) > 0 }

// Check returns the keys that are trusted and have signed b. eboot.ErrDenied: they are too
// few; the text says what is missing and how to add it. eboot.ErrInvalid: b cannot be signed at all.
func (t Trust) Check(b eboot.Bundle) (signers []eboot.KeyID, err error) {
	if !t.Demands() {
		return nil, nil
	}
	statement, err := Statement(b)
	if err != nil {
		return nil, err
	}
	var wrong []string
	for _, s := range b.Signatures {
		i := slices.IndexFunc(t.keys, func(k PublicKey) bool { return k.ID == s.KeyID })
		if i < 0 {
			wrong = append(wrong, fmt.Sprintf("key %s is not trusted", s.KeyID))
		} else if err := t.keys[i].Verify(statement, s); err != nil {
			wrong = append(wrong, strings.TrimSuffix(err.Error(), ": "+eboot.ErrDenied.Error()))
		} else if !slices.Contains(signers, s.KeyID) {
			signers = append(signers, s.KeyID)
		}
	}
	if len(signers) >= t.threshold {
		return signers, nil
	}
	had := "is not signed"
	if len(b.Signatures) > 0 {
		had = fmt.Sprintf("has valid signatures of %d trusted keys", len(signers))
	}
	if len(wrong) > 0 {
		had += " (" + strings.Join(wrong, "; ") + ")"
	}
	return signers, fmt.Errorf("bundle %s for ERTS %s: %s, want %d of %s; `eboot bundle sign %s --key FILE` adds one: %w",
		b.Ref(), b.ERTS, had, t.threshold, t.names(), b.Ref(), eboot.ErrDenied)
}

// CheckSignature returns nil when s is what a trusted key signs b with, or nothing is
// demanded. eboot.ErrDenied: it would not count.
func (t Trust) CheckSignature(b eboot.Bundle, s eboot.Signature) error {
	if !t.Demands() {
		return nil
	}
	one := Trust{keys: t.keys, threshold: 1}
	b.Signatures = []eboot.Signature{s}
	if _, err := one.Check(b); err != nil {
		return fmt.Errorf("signature of key %s would not count: %w", s.KeyID, err)
	}
	return nil
}

func (t Trust) names() string {
	var names []string
	for _, k := range t.keys {
		names = append(names, k.ID.String())
	}
	return "key " + strings.Join(names, ", ")
}
