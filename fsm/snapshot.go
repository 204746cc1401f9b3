package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"eboot"
)

// A snapshot is a header and a body:
//
//	magic       8 bytes  "EBOOTFSM"
//	format      uint16   1
//	cluster id  uint8    length, and that many bytes
//	index       uint64
//	length      uint64   of the body
//	digest      32 bytes SHA-256 of all the above and the body
//
//	body: uvarint length of a JSON document (type document), the document,
//	      uvarint number of whitelist entries, and for each, by address and then
//	      prefix length: 4 bytes of address, 1 byte of prefix length, channel,
//	      number of labels, and key and value of each by key. A text is its length
//	      as a uvarint and its bytes.
//
// Numbers are big-endian. The whitelist is not JSON because it may have a million
// entries, which a server must read before it can serve.
const (
	snapshotMagic  = "EBOOTFSM"
	snapshotFormat = 1
	// MaxSnapshotSize bounds the body of a snapshot in bytes, written or read.
	MaxSnapshotSize = 4 << 30
)

// document is the JSON part of the body.
type document struct {
	Generation uint64          `json:"generation"`
	Name       string          `json:"name,omitempty"`
	Bundles    []eboot.Bundle  `json:"bundles,omitempty"`
	Channels   []eboot.Channel `json:"channels,omitempty"`
	Answers    []*answer       `json:"answers,omitempty"`
	Version    int             `json:"version,omitempty"` // absent: never raised
	Drained    []string        `json:"drained,omitempty"`
	Removed    []string        `json:"removed,omitempty"`

	Rollouts []*eboot.Rollout `json:"rollouts,omitempty"`
	Events   []eboot.Event    `json:"events,omitempty"`
	Tokens   []eboot.Token    `json:"tokens,omitempty"`
}

// Digest identifies the content of the state: equal on all servers that have
// applied the same log. It covers everything but wording, which may be another one in another
// version of eboot: of remembered errors, of events and of the reasons of rollouts.
// It takes time in proportion to the state, when asked for the first time.
func (s *State) Digest() eboot.Digest { return s.digest() }

func (s *State) computeDigest() eboot.Digest {
	body, err := s.withoutTexts().encodeBody()
	if err != nil {
		return eboot.Digest{} // Apply lets nothing in that cannot be encoded
	}
	return seal(s.header(len(body)), body)
}

// WriteTo writes the state as a snapshot, which ReadState reads.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	body, err := s.encodeBody()
	if err != nil {
		return 0, fmt.Errorf("write state: %w", err)
	}
	header := s.header(len(body))
	digest := seal(header, body)
	var written int64
	for _, part := range [][]byte{header, digest[:], body} {
		n, err := w.Write(part)
		written += int64(n)
		if err != nil {
			return written, fmt.Errorf("write state: %w", err)
		}
	}
	return written, nil
}

func seal(header, body []byte) eboot.Digest {
	h := sha256.New()
	h.Write(header)
	h.Write(body)
	return eboot.Digest(h.Sum(nil))
}

// header is all of the header but the digest.
func (s *State) header(length int) []byte {
	out := append(make([]byte, 0, 128), snapshotMagic...)
	out = binary.BigEndian.AppendUint16(out, snapshotFormat)
	out = append(append(out, byte(len(s.cluster))), s.cluster...)
	out = binary.BigEndian.AppendUint64(out, s.index)
	return binary.BigEndian.AppendUint64(out, uint64(length))
}

func (s *State) encodeBody() ([]byte, error) {
	text, err := json.Marshal(document{
		Generation: s.generation, Name: s.name, Bundles: s.bundles, Channels: s.channels, Answers: s.answers,
		Version: s.version, Drained: s.drained, Removed: s.removed, Rollouts: s.rollouts, Events: s.events, Tokens: s.tokens,
	})
	if err != nil {
		return nil, err
	}
	out := appendText(make([]byte, 0, len(text)+64+16*s.whitelist.Size()), text)
	out = binary.AppendUvarint(out, uint64(s.whitelist.Size()))
	for e := range s.Whitelist() {
		address := e.Prefix.Addr().As4()
		out = append(out, address[:]...)
		out = append(out, byte(e.Prefix.Bits()))
		out = appendText(out, e.Channel)
		out = appendLabels(out, e.Labels)
		if len(out) > MaxSnapshotSize {
			return nil, fmt.Errorf("state: more than %d bytes: %w", int64(MaxSnapshotSize), eboot.ErrTooLarge)
		}
	}
	return out, nil
}

// withoutTexts returns a copy of s to be encoded for the digest.
func (s *State) withoutTexts() *State {
	bare := *s
	bare.answers = make([]*answer, len(s.answers))
	for i, a := range s.answers {
		b := *a
		b.Text = ""
		bare.answers[i] = &b
	}
	bare.events = slices.Clone(s.events)
	for i := range bare.events {
		bare.events[i].Text = ""
	}
	bare.rollouts = make([]*eboot.Rollout, len(s.rollouts))
	for i, r := range s.rollouts {
		b := *r
		b.Reason = ""
		bare.rollouts[i] = &b
	}
	return &bare
}

// ReadState reads a snapshot to its end. ErrInvalid: it is none, or of another
// format; ErrDamaged: it is cut off, or does not match its digest. Errors of r itself
// are passed on.
func ReadState(r io.Reader) (*State, error) {
	h := sha256.New()
	s, length, err := readHeader(io.TeeReader(r, h))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", cutOff(err))
	}
	var digest eboot.Digest
	if _, err := io.ReadFull(r, digest[:]); err != nil {
		return nil, fmt.Errorf("read state: %w", cutOff(err))
	}
	// The buffer grows with what is really there, not with what the header says.
	var text bytes.Buffer
	switch n, err := io.Copy(&text, io.LimitReader(r, length+1)); {
	case err != nil:
		return nil, fmt.Errorf("read state: %w", err)
	case n < length:
		return nil, fmt.Errorf("read state: %w", cutOff(io.ErrUnexpectedEOF))
	case n > length:
		return nil, fmt.Errorf("read state: more follows its end: %w", eboot.ErrDamaged)
	}
	h.Write(text.Bytes())
	if eboot.Digest(h.Sum(nil)) != digest {
		return nil, fmt.Errorf("read state: does not match its digest: %w", eboot.ErrDamaged)
	}
	if err := readBody(s, text.Bytes()); err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return newState(*s), nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("is cut off: %w", eboot.ErrDamaged)
	}
	return err
}

// ForRestore returns s as it may replace the state of a cluster that is at
// current, through Raft's restore of a snapshot. Whitelist, bundles, channels and rollouts
// are those of s; a rollout that went on by itself is paused, as what it saw may be long ago.
// The cluster stays itself: its identity, its version, what is known of its servers,
// its events, its tokens, and the answers it has given: a backup from before a token was revoked
// does not bring it back. One that has no identity yet takes that
// of s, and with it the servers that were removed and the tokens. h says when it is restored, by
// whom and by which request, which an event tells as that of a command. The bundles have no holders: who
// holds what today s cannot know, and each server says it anew (HoldBundle).
// The index is greater than current's and than lastIndex, the last of Raft's log, so
// that every change that follows has a greater one and a server that waits for it does not
// take an entry of Raft's own for it; the generation is greater than both, so that no generation ever
// means two things. Nothing may be applied between reading current and the restore:
// cluster.Cluster.HoldWrites sees to it.
func (s *State) ForRestore(current *State, lastIndex uint64, h Header) *State {
	next := *s
	next.index = max(current.index, lastIndex) + 1
	next.generation = max(s.generation, current.generation) + 1
	next.answers, next.events = current.answers, slices.Clip(current.events)
	next.rollouts = slices.Clone(s.rollouts)
	for i, r := range next.rollouts {
		if r.Phase == eboot.RolloutRunning || r.Phase == eboot.RolloutWaiting {
			paused := *r
			paused.Phase, paused.Reason = eboot.RolloutPaused, "a snapshot was restored"
			next.rollouts[i] = &paused
		}
	}
	next.version, next.drained = current.version, current.drained
	next.bundles = slices.Clone(s.bundles)
	for i := range next.bundles {
		next.bundles[i].Holders = []string{}
	}
	if current.cluster != "" {
		next.cluster, next.name, next.removed, next.tokens = current.cluster, current.name, current.removed, current.tokens
	}
	next.record(h, []eboot.Event{{
		Kind: eboot.EventSnapshotRestored,
		Text: fmt.Sprintf("the state is that of a snapshot of generation %d: %d whitelist entries, %d bundles, %d channels", s.generation, s.whitelist.Size(), len(s.bundles), len(s.channels)),
	}})
	return newState(next)
}
