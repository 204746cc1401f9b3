package eboot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"eboot"
)

func TestKeyID(t *testing.T) {
	k := eboot.KeyID{0x1f, 0xe8, 0xb4, 0x42, 0x18, 0x0f, 0x62, 0xe7} // of minisign's manual
	if k.String() != "E7620F1842B4E81F" {
		t.Errorf("%s", k)
	}
	text, err := json.Marshal(k)
	var back eboot.KeyID
	if err != nil || json.Unmarshal(text, &back) != nil || back != k {
		t.Errorf("%s came back as %s, %v", text, back, err)
	}
	for _, bad := range []string{"", "E7620F1842B4E8", "e7620f1842b4e81f", "E7620F1842B4E81F00", "X7620F1842B4E81F"} {
		if _, err := eboot.ParseKeyID(bad); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCheckSignatures(t *testing.T) {
	good := eboot.Signature{Signature: bytes.Repeat([]byte{1}, 64), Comment: "a\tcomment", Sealed: bytes.Repeat([]byte{2}, 64)}
	with := func(change func(*eboot.Signature)) eboot.Signature {
		s := good
		change(&s)
		return s
	}
	many := make([]eboot.Signature, eboot.MaxSignatures+1)
	for i := range many {
		many[i] = with(func(s *eboot.Signature) { s.KeyID[0] = byte(i) })
	}
	if err := eboot.CheckSignatures(many[1:]); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		signatures []eboot.Signature
		err        error
	}{
		"too many":     {many, eboot.ErrTooLarge},
		"a key twice":  {[]eboot.Signature{good, good}, eboot.ErrInvalid},
		"short":        {[]eboot.Signature{with(func(s *eboot.Signature) { s.Signature = s.Signature[1:] })}, eboot.ErrInvalid},
		"no seal":      {[]eboot.Signature{with(func(s *eboot.Signature) { s.Sealed = nil })}, eboot.ErrInvalid},
		"two lines":    {[]eboot.Signature{with(func(s *eboot.Signature) { s.Comment = "a\nb" })}, eboot.ErrInvalid},
		"no text":      {[]eboot.Signature{with(func(s *eboot.Signature) { s.Comment = "\xff" })}, eboot.ErrInvalid},
		"long comment": {[]eboot.Signature{with(func(s *eboot.Signature) { s.Comment = strings.Repeat("x", 513) })}, eboot.ErrTooLarge},
	} {
		if err := eboot.CheckSignatures(tc.signatures); !errors.Is(err, tc.err) {
			t.Errorf("%s: %v", name, err)
		}
		b := eboot.Bundle{Name: "a", Version: "1", ERTS: "1", Manifest: eboot.Digest{1}, Times: eboot.Digest{1}, BootScript: "b"}
		if err := b.Check(); err != nil {
			t.Fatal(err)
		}
		if b.Signatures = tc.signatures; !errors.Is(b.Check(), tc.err) {
			t.Errorf("%s: a bundle may have them", name)
		}
	}
}
