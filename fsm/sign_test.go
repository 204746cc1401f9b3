package fsm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"eboot"
)

func TestSignBundle(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: securityVersion})
	one := bundleOf("otp", "1", "13.1", "one")
	l.must(AddBundle{Header: l.header(), Bundle: one, Channel: "stable"})
	sign := func(keys ...byte) SignBundle {
		return SignBundle{Header: l.header(), Ref: one.Ref(), ERTS: "13.1", Manifest: one.Manifest, Signatures: signaturesOf(keys...)}
	}
	before, generation := l.machine.State(), l.machine.State().Generation()
	if before.MinimumVersion() != rolloutVersion {
		t.Fatalf("a state without signatures needs version %d", before.MinimumVersion())
	}
	if r := l.must(sign(3, 1)); !r.Changed || r.Generation != generation {
		t.Fatalf("sign: %+v", r)
	}
	if r := l.must(sign(1)); r.Changed {
		t.Fatalf("the same again: %+v", r)
	}
	s := l.machine.State()
	b, _ := s.Bundle(one.Ref(), "13.1")
	if len(b.Signatures) != 2 || b.Signatures[0].KeyID != (eboot.KeyID{7: 1}) || s.MinimumVersion() != securityVersion {
		t.Fatalf("%v, needs version %d", b.Signatures, s.MinimumVersion())
	}
	if old, _ := before.Bundle(one.Ref(), "13.1"); len(old.Signatures) != 0 {
		t.Error("an older state changed")
	}
	told := s.Events()[len(s.Events())-1]
	if told.Kind != eboot.EventBundleSigned || told.Bundle != one.Ref() || told.ERTS != "13.1" || !strings.Contains(told.Text, "0300000000000000, 0100000000000000") {
		t.Errorf("event %+v", told)
	}

	// A publish of the same adds its signatures, and takes none away.
	again := one
	again.Signatures = signaturesOf(2)
	if r := l.must(AddBundle{Header: l.header(), Bundle: again}); !r.Changed {
		t.Errorf("publish with a signature: %+v", r)
	}
	if r := l.must(AddBundle{Header: l.header(), Bundle: one}); r.Changed {
		t.Errorf("publish without: %+v", r)
	}
	replaced := sign(2)
	replaced.Signatures[0].Comment = "anew"
	l.must(replaced)
	if b, _ = l.machine.State().Bundle(one.Ref(), "13.1"); len(b.Signatures) != 3 || b.Signatures[1].Comment != "anew" {
		t.Errorf("%v", b.Signatures)
	}

	other := sign(5)
	other.Manifest = eboot.DigestOf([]byte("other"))
	gone := sign(5)
	gone.ERTS = "99"
	many := make([]byte, eboot.MaxSignatures)
	for i := range many {
		many[i] = byte(100 + i)
	}
	for name, c := range map[string]struct {
		command SignBundle
		err     error
	}{"another manifest": {other, eboot.ErrConflict}, "no such bundle": {gone, eboot.ErrNotFound}, "too many in all": {sign(many...), eboot.ErrTooLarge}} {
		if r := l.apply(c.command); !errors.Is(r.Err, c.err) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, spoil := range map[string]func(*SignBundle){
		"none":         func(c *SignBundle) { c.Signatures = nil },
		"no manifest":  func(c *SignBundle) { c.Manifest = eboot.Digest{} },
		"a key twice":  func(c *SignBundle) { c.Signatures = signaturesOf(1, 1) },
		"short":        func(c *SignBundle) { c.Signatures[0].Signature = c.Signatures[0].Signature[1:] },
		"two lines":    func(c *SignBundle) { c.Signatures[0].Comment = "a\nb" },
		"long comment": func(c *SignBundle) { c.Signatures[0].Comment = strings.Repeat("x", 600) },
		"no ERTS":      func(c *SignBundle) { c.ERTS = "" },
		"too many":     func(c *SignBundle) { c.Signatures = signaturesOf(append(many, 1)...) },
	} {
		c := sign(1)
		spoil(&c)
		if _, err := c.Encode(); !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Signatures are in the digest of the state, and a restored snapshot keeps them.
func TestSignaturesAreKept(t *testing.T) {
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	l.must(AddBundle{Header: l.header(), Bundle: signedBy(bundleOf("otp", "1", "13.1", "one"), 1)})
	s := l.machine.State()
	spoilt := *s
	spoilt.bundles = []eboot.Bundle{s.bundles[0]}
	spoilt.bundles[0].Signatures = signaturesOf(2)
	if newState(spoilt).Digest() == s.Digest() {
		t.Error("another signature, the same digest")
	}
	restored, err := ReadState(bytes.NewReader(snapshotOf(t, reread(t, s).ForRestore(emptyState(), 0, Header{}))))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := restored.Bundle(refOf("otp@1"), "13.1"); len(b.Signatures) != 1 || !b.Signatures[0].Equal(signaturesOf(1)[0]) {
		t.Errorf("restored with %v", b.Signatures)
	}
	for _, c := range []Command{AddBundle{Bundle: signedBy(bundleOf("otp", "1", "13.1", "one"), 1)}, SignBundle{}} {
		if v := MinimumVersion(c); v != securityVersion {
			t.Errorf("%T needs version %d", c, v)
		}
	}
}
