package signature

import (
	"encoding/base64"
	"fmt"
	"strings"

	"eboot"
)

const (
	untrustedPrefix = "untrusted comment: "
	trustedPrefix   = "trusted comment: "
	// maxTextSize bounds the files that are read, in bytes. Those of minisign are far smaller.
	maxTextSize = 16 << 10
)

// Algorithms of keys and signatures, as minisign writes them.
const (
	algorithmEd25519   = "Ed" // of keys, and of signatures of the message itself
	algorithmPrehashed = "ED" // of signatures of the BLAKE2b-512 of the message
)

// textLines splits a file of minisign into its lines, without the last line's end. what
// says in errors which file it is.
func textLines(what string, text []byte, want int) ([]string, error) {
	if len(text) > maxTextSize {
		return nil, fmt.Errorf("%s: more than %d bytes: %w", what, maxTextSize, eboot.ErrTooLarge)
	}
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n"), "\n")
	if len(lines) != want {
		return nil, fmt.Errorf("%s: has %d lines, want %d: %w", what, len(lines), want, eboot.ErrInvalid)
	}
	if !strings.HasPrefix(lines[0], untrustedPrefix) {
		return nil, fmt.Errorf("%s: does not begin with %q: %w", what, untrustedPrefix, eboot.ErrInvalid)
	}
	return lines, nil
}

// decodeLine reads a line of base64 that must hold size bytes. Its content is in no error: it
// may be a secret.
func decodeLine(what, line string, size int) ([]byte, error) {
	data, err := base64.StdEncoding.Strict().DecodeString(line)
	if err != nil {
		return nil, fmt.Errorf("%s: is not base64: %w", what, eboot.ErrInvalid)
	}
	if len(data) != size {
		return nil, fmt.Errorf("%s: holds %d bytes, want %d: %w", what, len(data), size, eboot.ErrInvalid)
	}
	return data, nil
}

func textOf(comment string, data []byte) []byte {
	return []byte(untrustedPrefix + comment + "\n" + base64.StdEncoding.EncodeToString(data) + "\n")
}
