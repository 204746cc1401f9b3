package signature

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/blake2b"

	"eboot"
)

// PublicKey checks what one signer signs.
type PublicKey struct {
	ID  eboot.KeyID
	Key ed25519.PublicKey
}

const publicKeySize = 2 + 8 + ed25519.PublicKeySize

// ParsePublicKey reads a public key file of minisign, or its second line alone.
// eboot.ErrInvalid: it is none.
func ParsePublicKey(text []byte) (PublicKey, error) {
	const what = "public key"
	line := strings.TrimSpace(string(text))
	if strings.HasPrefix(line, untrustedPrefix) {
		lines, err := textLines(what, text, 2)
		if err != nil {
			return PublicKey{}, err
		}
		line = lines[1]
	}
	data, err := decodeLine(what, line, publicKeySize)
	if err != nil {
		return PublicKey{}, err
	}
	if string(data[:2]) != algorithmEd25519 {
		return PublicKey{}, fmt.Errorf("%s: is of algorithm %q, want %s: %w", what, data[:2], algorithmEd25519, eboot.ErrInvalid)
	}
	return PublicKey{ID: eboot.KeyID(data[2:10]), Key: ed25519.PublicKey(data[10:])}, nil
}

// Encode returns the file that ParsePublicKey reads, one line of comment above the key.
func (k PublicKey) Encode(comment string) []byte {
	data := append([]byte(algorithmEd25519), k.ID[:]...)
	return textOf(comment, append(data, k.Key...))
}

// Verify returns nil when s is a signature of message by this key. eboot.ErrDenied: it is
// not, or another was signed.
func (k PublicKey) Verify(message []byte, s eboot.Signature) error {
	if err := s.Check(); err != nil {
		return err
	}
	signed := message
	if !s.Legacy {
		sum := blake2b.Sum512(message)
		signed = sum[:]
	}
	switch {
	case k.ID != s.KeyID:
		return fmt.Errorf("signature is of key %s, not of %s: %w", s.KeyID, k.ID, eboot.ErrDenied)
	case len(k.Key) != ed25519.PublicKeySize || !ed25519.Verify(k.Key, signed, s.Signature):
		return fmt.Errorf("signature of key %s does not match: %w", k.ID, eboot.ErrDenied)
	case !ed25519.Verify(k.Key, sealed(s), s.Sealed):
		return fmt.Errorf("signature of key %s: its comment was changed: %w", k.ID, eboot.ErrDenied)
	}
	return nil
}

// sealed is what the second part of a signature is of.
func sealed(s eboot.Signature) []byte {
	return append(append(make([]byte, 0, len(s.Signature)+len(s.Comment)), s.Signature...), s.Comment...)
}

// SecretKey signs. It never shows itself: not when it is printed, not in an error.
type SecretKey struct {
	id  eboot.KeyID
	key ed25519.PrivateKey
}

// Generate makes a key out of randomness, which is crypto/rand.Reader outside of tests.
func Generate(random io.Reader) (SecretKey, error) {
	var k SecretKey
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, k.id[:]); err != nil {
		return k, fmt.Errorf("make a key: %w", err)
	}
	if _, err := io.ReadFull(random, seed); err != nil {
		return k, fmt.Errorf("make a key: %w", err)
	}
	k.key = ed25519.NewKeyFromSeed(seed)
	return k, nil
}

// Public returns the key that checks what k signs.
func (k SecretKey) Public() PublicKey {
	public, _ := k.key.Public().(ed25519.PublicKey) // it is no other type
	return PublicKey{ID: k.id, Key: public}
}

// Sign signs message, with comment as the trusted comment. eboot.ErrInvalid: comment is not
// one line; eboot.ErrTooLarge: it is too long.
func (k SecretKey) Sign(message []byte, comment string) (eboot.Signature, error) {
	sum := blake2b.Sum512(message)
	s := eboot.Signature{KeyID: k.id, Signature: ed25519.Sign(k.key, sum[:]), Comment: comment}
	s.Sealed = ed25519.Sign(k.key, sealed(s))
	return s, s.Check()
}

// SignBundle signs the statement of b.
func (k SecretKey) SignBundle(b eboot.Bundle) (eboot.Signature, error) {
	statement, err := Statement(b)
	if err != nil {
		return eboot.Signature{}, err
	}
	return k.Sign(statement, Comment(b))
}

// Format names the key and shows nothing of it, whatever the verb.
func (k SecretKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "secret key "+k.id.String()) }
