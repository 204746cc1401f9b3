package signature

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"

	"eboot"
)

const (
	signatureLineSize = 2 + 8 + ed25519.SignatureSize
	untrustedRemark   = "signature of an eboot bundle; check it with minisign -V"
)

// Parse reads a signature file of minisign. eboot.ErrInvalid: it is none.
func Parse(text []byte) (eboot.Signature, error) {
	const what = "signature"
	var s eboot.Signature
	lines, err := textLines(what, text, 4)
	if err != nil {
		return s, err
	}
	data, err := decodeLine(what, lines[1], signatureLineSize)
	if err != nil {
		return s, err
	}
	switch string(data[:2]) {
	case algorithmPrehashed:
	case algorithmEd25519:
		s.Legacy = true
	default:
		return s, fmt.Errorf("%s: is of algorithm %q, want %s or %s: %w", what, data[:2], algorithmPrehashed, algorithmEd25519, eboot.ErrInvalid)
	}
	s.KeyID, s.Signature = eboot.KeyID(data[2:10]), data[10:]
	comment, ok := strings.CutPrefix(lines[2], trustedPrefix)
	if !ok {
		return s, fmt.Errorf("%s: its third line does not begin with %q: %w", what, trustedPrefix, eboot.ErrInvalid)
	}
	s.Comment = comment
	if s.Sealed, err = decodeLine(what, lines[3], ed25519.SignatureSize); err != nil {
		return s, err
	}
	return s, s.Check()
}

// Encode returns the file that Parse and minisign read.
func Encode(s eboot.Signature) []byte {
	algorithm := algorithmPrehashed
	if s.Legacy {
		algorithm = algorithmEd25519
	}
	data := append([]byte(algorithm), s.KeyID[:]...)
	text := textOf(untrustedRemark, append(data, s.Signature...))
	return append(text, trustedPrefix+s.Comment+"\n"+base64.StdEncoding.EncodeToString(s.Sealed)+"\n"...)
}
