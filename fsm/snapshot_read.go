package fsm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"eboot"
	"eboot/rollout"
)

// readHeader reads everything before the digest.
func readHeader(r io.Reader) (*State, int64, error) {
	var fixed [len(snapshotMagic) + 3]byte
	if n, err := io.ReadFull(r, fixed[:]); err != nil {
		if n < len(snapshotMagic) || string(fixed[:len(snapshotMagic)]) == snapshotMagic {
			return nil, 0, err
		}
	}
	if string(fixed[:len(snapshotMagic)]) != snapshotMagic {
		return nil, 0, fmt.Errorf("is no snapshot of eboot: %w", eboot.ErrInvalid)
	}
	if format := binary.BigEndian.Uint16(fixed[len(snapshotMagic):]); format != snapshotFormat {
		return nil, 0, fmt.Errorf("has format %d, this version of eboot reads %d: %w", format, snapshotFormat, eboot.ErrInvalid)
	}
	rest := make([]byte, int(fixed[len(fixed)-1])+16)
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, 0, err
	}
	name := len(rest) - 16
	length := binary.BigEndian.Uint64(rest[name+8:])
	if length > MaxSnapshotSize {
		return nil, 0, fmt.Errorf("says it has %d bytes, at most %d: %w", length, int64(MaxSnapshotSize), eboot.ErrDamaged)
	}
	return &State{cluster: string(rest[:name]), index: binary.BigEndian.Uint64(rest[name:])}, int64(length), nil
}

// readBody fills s. The digest was right, so what is wrong here is ErrInvalid.
// It asks only for what reads rely on, not for the rules of commands: what Apply once
// accepted can always be read again.
func readBody(s *State, text []byte) error {
	b := &bodyReader{rest: text}
	var d document
	if err := unmarshal(b.text(), &d); err != nil {
		return fmt.Errorf("document: %w: %w", err, eboot.ErrInvalid)
	}
	s.generation, s.name, s.bundles, s.channels, s.answers = d.Generation, d.Name, d.Bundles, d.Channels, d.Answers
	s.version, s.drained, s.removed = d.Version, d.Drained, d.Removed
	s.rollouts, s.events, s.tokens = d.Rollouts, d.Events, d.Tokens
	for i := 1; i < len(s.bundles); i++ {
		if compareBundles(s.bundles[i-1], s.bundles[i]) >= 0 {
			return fmt.Errorf("bundles are not in order: %w", eboot.ErrInvalid)
		}
	}
	for i := 1; i < len(s.channels); i++ {
		if s.channels[i-1].Name >= s.channels[i].Name {
			return fmt.Errorf("channels are not in order: %w", eboot.ErrInvalid)
		}
	}
	if len(s.answers) > rememberedRequests || slices.Contains(s.answers, nil) {
		return fmt.Errorf("bad answers to requests: %w", eboot.ErrInvalid)
	}
	for i := 1; i < len(s.drained); i++ {
		if s.drained[i-1] >= s.drained[i] {
			return fmt.Errorf("drained servers are not in order: %w", eboot.ErrInvalid)
		}
	}
	for i, r := range s.rollouts {
		if r == nil || i > 0 && s.rollouts[i-1].Channel >= r.Channel {
			return fmt.Errorf("rollouts are not in order: %w", eboot.ErrInvalid)
		}
		if err := rollout.Check(*r); err != nil {
			return err
		}
	}
	if len(s.events) > MaxEvents {
		return fmt.Errorf("%d events, at most %d: %w", len(s.events), MaxEvents, eboot.ErrInvalid)
	}
	if len(s.tokens) > eboot.MaxTokens {
		return fmt.Errorf("%d tokens, at most %d: %w", len(s.tokens), eboot.MaxTokens, eboot.ErrInvalid)
	}
	for i := 1; i < len(s.tokens); i++ {
		if s.tokens[i-1].ID >= s.tokens[i].ID {
			return fmt.Errorf("tokens are not in order: %w", eboot.ErrInvalid)
		}
	}
	s.whitelist = b.whitelist()
	if b.bad || len(b.rest) > 0 {
		return fmt.Errorf("whitelist cannot be read: %w", eboot.ErrInvalid)
	}
	return nil
}

// bodyReader reads the binary parts; after the first mistake bad is set and
// everything is empty.
type bodyReader struct {
	rest []byte
	bad  bool
}

func (b *bodyReader) fail() { b.bad, b.rest = true, nil }

func (b *bodyReader) number() uint64 {
	n, size := binary.Uvarint(b.rest)
	if size <= 0 {
		b.fail()
		return 0
	}
	b.rest = b.rest[size:]
	return n
}

func (b *bodyReader) text() []byte {
	n := b.number()
	if n > uint64(len(b.rest)) {
		b.fail()
		return nil
	}
	text := b.rest[:n]
	b.rest = b.rest[n:]
	return text
}

func (b *bodyReader) whitelist() *bart.Table[*eboot.WhitelistEntry] {
	table := new(bart.Table[*eboot.WhitelistEntry])
	shared := &interner{}
	var previous netip.Prefix
	for n := b.number(); n > 0 && !b.bad; n-- {
		e := b.entry(shared)
		if e == nil || previous.IsValid() && comparePrefixes(previous, e.Prefix) >= 0 {
			b.fail()
			break
		}
		previous = e.Prefix
		table.Insert(e.Prefix, e)
	}
	return table
}

func (b *bodyReader) entry(shared *interner) *eboot.WhitelistEntry {
	if len(b.rest) < 5 {
		return nil
	}
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte(b.rest[:4])), int(b.rest[4]))
	b.rest = b.rest[5:]
	if eboot.CheckPrefix(p) != nil {
		return nil
	}
	return &eboot.WhitelistEntry{Prefix: p, Channel: shared.channel(b.text()), Labels: b.labels(shared)}
}

func (b *bodyReader) labels(shared *interner) map[string]string {
	begin := b.rest
	n := b.number()
	if n == 0 {
		return nil
	}
	if n > uint64(len(b.rest)) {
		b.fail()
		return nil
	}
	labels := map[string]string{}
	previous := ""
	for i := range n {
		key, value := string(b.text()), string(b.text())
		if b.bad || i > 0 && key <= previous {
			b.fail()
			return nil
		}
		labels[key], previous = value, key
	}
	return shared.shared(begin[:len(begin)-len(b.rest)], labels)
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
