package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"

	"eboot"
	"eboot/internal/fsutil"
)

const (
	gossipKeySize = 32 // of AES-256, which gossip is encrypted with
	// maxGossipKeys are more than a change of keys needs: the old one and the new one.
	maxGossipKeys = 8
	maxKeyFile    = 4 << 10
)

// Keys reads KeyFile: the first key is used to send, all of them to receive. It returns
// nil when KeyFile is empty. A file that cannot be read is the error of package os, one that is
// too long eboot.ErrTooLarge; other content is eboot.ErrInvalid, in words that do not show it.
func (g Gossip) Keys() ([][]byte, error) {
	if g.KeyFile == "" {
		return nil, nil
	}
	content, err := fsutil.ReadSmall(g.KeyFile, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read gossip.key_file: %w", err)
	}
	keys, err := ParseGossipKeys(content)
	if err != nil {
		return nil, fmt.Errorf("gossip.key_file: %s: %w", g.KeyFile, err)
	}
	return keys, nil
}

// ParseGossipKeys reads keys, one in a line: 32 bytes in base64 (either alphabet, padded
// or not) or in hexadecimal. White space around a key, empty lines and those that begin
// with # are passed over. A file of nothing but 32 bytes is one key as it is. Errors wrap
// eboot.ErrInvalid and do not show the content.
func ParseGossipKeys(content []byte) ([][]byte, error) {
	// 32 letters, a line's end among them, are half of a key in hexadecimal, or a pass phrase,
	// and not random bytes.
	if len(content) == gossipKeySize && bytes.ContainsFunc(bytes.TrimRight(content, "\r\n"), func(r rune) bool { return r < ' ' || r > '~' }) {
		return [][]byte{content}, nil
	}
	if len(content) > maxKeyFile {
		return nil, fmt.Errorf("longer than %d bytes: %w", maxKeyFile, eboot.ErrInvalid)
	}
	var keys [][]byte
	n := 0
	for line := range bytes.Lines(content) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, ok := decodeGossipKey(string(line))
		switch {
		case !ok:
			return nil, fmt.Errorf("line %d: want %d random bytes in base64 or in hexadecimal (`eboot keygen gossip FILE` makes such a file): %w", n, gossipKeySize, eboot.ErrInvalid)
		case slices.ContainsFunc(keys, func(other []byte) bool { return bytes.Equal(other, key) }):
			return nil, fmt.Errorf("line %d: this key stands twice: %w", n, eboot.ErrInvalid)
		case len(keys) == maxGossipKeys:
			return nil, fmt.Errorf("more than %d keys: %w", maxGossipKeys, eboot.ErrInvalid)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("holds no key; `eboot keygen gossip FILE` makes a file with one: %w", eboot.ErrInvalid)
	}
	return keys, nil
}

func decodeGossipKey(text string) (key []byte, ok bool) {
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
