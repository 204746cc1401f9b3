package fsm

import (
	"encoding/binary"
	"maps"
	"slices"

	"eboot"
)

// interner lets the entries of one batch share equal channel names and equal
// labels: of a million entries few have a name or labels of their own.
type interner struct {
	channels map[string]string
	labels   map[string]map[string]string // by their encoding
	buffer   []byte
}

func (n *interner) entry(e eboot.WhitelistEntry) *eboot.WhitelistEntry {
	n.buffer = appendLabels(n.buffer[:0], e.Labels)
	return &eboot.WhitelistEntry{Prefix: e.Prefix, Channel: n.channel([]byte(e.Channel)), Labels: n.shared(n.buffer, e.Labels)}
}

func (n *interner) channel(name []byte) string {
	if known, ok := n.channels[string(name)]; ok {
		return known
	}
	if n.channels == nil {
		n.channels = map[string]string{}
	}
	n.channels[string(name)] = string(name)
	return n.channels[string(name)]
}

// shared returns labels, or an equal map that was seen before; nil when there are none.
func (n *interner) shared(encoded []byte, labels map[string]string) map[string]string {
	if len(labels) == 0 {
		return nil
	}
	if known, ok := n.labels[string(encoded)]; ok {
		return known
	}
	if n.labels == nil {
		n.labels = map[string]map[string]string{}
	}
	n.labels[string(encoded)] = labels
	return labels
}

// appendLabels writes a count and then key and value of each label, by key.
func appendLabels(out []byte, labels map[string]string) []byte {
	out = binary.AppendUvarint(out, uint64(len(labels)))
	if len(labels) == 0 {
		return out
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		out = appendText(out, key)
		out = appendText(out, labels[key])
	}
	return out
}

func appendText[T string | []byte](out []byte, s T) []byte {
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}
