package signature_test

import (
	"bytes"
	"errors"
	"testing"

	"eboot"
	"eboot/signature"
)

// A file of any content is read or refused, and what was read is written as it was.
func FuzzSignatureFiles(f *testing.F) {
	for _, name := range []string{"app.minisig", "app.legacy.minisig", "signer.pub", "signer.key", "app.statement"} {
		f.Add(read(f, name))
	}
	key := generate(f).Public()
	silent := errors.New("no passphrase")
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := signature.Parse(text); err == nil {
			if back, err := signature.Parse(signature.Encode(s)); err != nil || !back.Equal(s) {
				t.Fatalf("signature came back as %+v, %v", back, err)
			}
			if key.Verify(text, s) == nil {
				t.Fatal("a signature of nobody")
			}
		} else {
			known(t, err)
		}
		if k, err := signature.ParsePublicKey(text); err == nil {
			if back, err := signature.ParsePublicKey(k.Encode("x")); err != nil || back.ID != k.ID || !back.Key.Equal(k.Key) {
				t.Fatalf("public key came back as %+v, %v", back, err)
			}
		} else {
			known(t, err)
		}
		if k, err := signature.ParseSecretKey(text, func() ([]byte, error) { return nil, silent }); err == nil {
			s, err := k.Sign(text, "x")
			if err != nil || k.Public().Verify(text, s) != nil {
				t.Fatalf("a key that was read does not sign: %v", err)
			}
		} else if !errors.Is(err, silent) {
			known(t, err)
		}
		if b, err := signature.ParseStatement(text); err == nil {
			if back, err := signature.Statement(b); err != nil || !bytes.Equal(back, text) {
				t.Fatalf("statement came back as %q, %v", back, err)
			}
		} else {
			known(t, err)
		}
	})
}

func known(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
		t.Fatalf("unexpected error: %v", err)
	}
}
