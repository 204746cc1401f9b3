package eboot

import (
	"encoding/hex"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"
)

// KeyID tells the keys of signers apart, as minisign shows it. It proves nothing.
type KeyID [8]byte

// ParseKeyID reads 16 upper-case hexadecimal digits.
func ParseKeyID(s string) (KeyID, error) {
	var k KeyID
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(k) {
		return k, fmt.Errorf("key id %q: want %d hexadecimal digits: %w", abbreviate(s), 2*len(k), ErrInvalid)
	}
	slices.Reverse(raw)
	copy(k[:], raw)
	if k.String() != s {
		return KeyID{}, fmt.Errorf("key id %q: want upper-case digits: %w", s, ErrInvalid)
	}
	return k, nil
}

// String returns the digits that minisign shows: the bytes are a little-endian number.
func (k KeyID) String() string {
	slices.Reverse(k[:])
	return fmt.Sprintf("%X", k[:])
}

// MarshalText writes what String returns.
func (k KeyID) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *KeyID) UnmarshalText(text []byte) error {
	v, err := ParseKeyID(string(text))
	if err != nil {
		return err
	}
	*k = v
	return nil
}

// MaxSignatures bounds the signatures of one bundle.
const MaxSignatures = 16

const (
	signatureSize      = 64 // of Ed25519
	maxSignatureRemark = 512
)

// Signature is what stands in a signature file of minisign: one signer's word for one
// bundle. Package signature makes and checks them; whether one is right depends on the keys
// that are trusted where it is asked, so the replicated state only keeps them.
type Signature struct {
	KeyID     KeyID  `json:"key_id"`
	Legacy    bool   `json:"legacy,omitempty"` // of the statement itself, not of its BLAKE2b-512
	Signature []byte `json:"signature"`        // 64 bytes of Ed25519
	Comment   string `json:"comment"`          // the trusted comment
	Sealed    []byte `json:"sealed"`           // the signature of Signature and Comment, 64 bytes
}

// Check reports whether s has the shape of a signature.
func (s Signature) Check() error {
	var why string
	switch {
	case len(s.Signature) != signatureSize || len(s.Sealed) != signatureSize:
		why = fmt.Sprintf("want two times %d bytes", signatureSize)
	case len(s.Comment) > maxSignatureRemark:
		return fmt.Errorf("signature of key %s: comment longer than %d bytes: %w", s.KeyID, maxSignatureRemark, ErrTooLarge)
	case !IsOneLine(s.Comment):
		why = "the comment is not one line of text"
	default:
		return nil
	}
	return fmt.Errorf("signature of key %s: %s: %w", s.KeyID, why, ErrInvalid)
}

// Equal reports whether s and o are the same to the byte.
func (s Signature) Equal(o Signature) bool {
	return s.KeyID == o.KeyID && s.Legacy == o.Legacy && s.Comment == o.Comment &&
		slices.Equal(s.Signature, o.Signature) && slices.Equal(s.Sealed, o.Sealed)
}

// CheckSignatures reports whether signatures may be those of one bundle: at most
// MaxSignatures, of different keys.
func CheckSignatures(signatures []Signature) error {
	if len(signatures) > MaxSignatures {
		return fmt.Errorf("%d signatures, at most %d: %w", len(signatures), MaxSignatures, ErrTooLarge)
	}
	for i, s := range signatures {
		if err := s.Check(); err != nil {
			return err
		}
		if slices.ContainsFunc(signatures[:i], func(o Signature) bool { return o.KeyID == s.KeyID }) {
			return fmt.Errorf("signature of key %s: stands twice: %w", s.KeyID, ErrInvalid)
		}
	}
	return nil
}

// IsOneLine reports whether s is text without line ends and other control characters but the
// tab, which minisign writes into comments.
func IsOneLine(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029' {
			return false
		}
	}
	return true
}
