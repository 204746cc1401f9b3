package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"eboot"
)

// gossipKeySize is that of AES-256, which gossip is encrypted with.
const gossipKeySize = 32

// Key reads KeyFile: 32 bytes, as they are, in hexadecimal or in base64 (either
// alphabet, padded or not; white space around the text is ignored). It returns
// nil when KeyFile is empty. A file that cannot be read is the error of package
// os; other content is eboot.ErrInvalid, in words that do not show it.
func (g Gossip) Key() ([]byte, error) {
	if g.KeyFile == "" {
		return nil, nil
	}
	f, err := os.Open(g.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read gossip.key_file: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read gossip.key_file: %w", err)
	}
	key, ok := decodeGossipKey(content)
	if !ok {
		return nil, fmt.Errorf("gossip.key_file: %s: want %d random bytes, as they are, in hexadecimal or in base64 (head -c %d /dev/urandom | base64): %w",
			g.KeyFile, gossipKeySize, gossipKeySize, eboot.ErrInvalid)
	}
	return key, nil
}

func decodeGossipKey(content []byte) (key []byte, ok bool) {
	// 32 letters are half of a key in hexadecimal, or a pass phrase, and not random bytes.
	if len(content) == gossipKeySize && bytes.ContainsFunc(content, func(r rune) bool { return r < ' ' || r > '~' }) {
		return content, true
	}
	text := string(bytes.TrimSpace(content))
	decoders := []func(string) ([]byte, error){
		hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
		base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	}
	for _, decode := range decoders {
		if key, err := decode(text); err == nil && len(key) == gossipKeySize {
			return key, true
		}
	}
	return nil, false
}
