package gossip

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/hashicorp/memberlist"

	"eboot"
)

// Meta is what a server says about itself to all others.
type Meta struct {
	// ID of the server: a UUID, or another name of at most 64 bytes. It never changes.
	ID string
	// Peer is HOST:PORT of its peer port, as others reach it; at most 255 bytes.
	Peer string
	// Version of its program, for people: at most 64 bytes are told.
	Version string
	// Wire is the version of what servers say to each other. Servers with different
	// ones do not see each other.
	Wire int
	// Expect is its cluster.expect: with how many servers it would found a cluster.
	Expect int
	// StateVersion is the highest version of replicated commands that it can read.
	StateVersion int
	// Draining: it takes no new boots.
	Draining bool
	// Boot is where it answers slaves, in IPv4; at most 16 addresses are told.
	Boot []netip.Addr
}

// Limits that keep the longest Meta below memberlist's 512 bytes, above which it
// panics.
const (
	maxID      = 64
	maxPeer    = 255
	maxVersion = 64
	maxBoot    = 16
)

// metaFormat is the first byte. What follows are fields: tag, length, value, a byte
// each but for the value. Tags that are not known are passed over.
const metaFormat = 1

const (
	tagUUID byte = iota + 1 // 16 bytes
	tagID                   // text, when the id is no UUID
	tagPeer
	tagVersion
	tagWire // unsigned varint, as the other numbers
	tagExpect
	tagStateVersion
	tagFlags // a byte
	tagBoot  // 4 bytes for each address
)

const (
	flagDraining = 1 << iota
	flagLeaving  // about to leave on purpose
)

// encodeMeta returns at most 500 bytes. Errors wrap eboot.ErrInvalid or
// eboot.ErrTooLarge.
func encodeMeta(m Meta, leaving bool) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b := []byte{metaFormat}
	field := func(tag byte, value []byte) {
		b = append(b, tag, byte(len(value)))
		b = append(b, value...)
	}
	if id, ok := canonicalUUID(m.ID); ok {
		field(tagUUID, id[:])
	} else {
		field(tagID, []byte(m.ID))
	}
	field(tagPeer, []byte(m.Peer))
	field(tagVersion, []byte(m.Version[:min(len(m.Version), maxVersion)]))
	field(tagWire, binary.AppendUvarint(nil, uint64(m.Wire)))
	field(tagExpect, binary.AppendUvarint(nil, uint64(m.Expect)))
	field(tagStateVersion, binary.AppendUvarint(nil, uint64(m.StateVersion)))
	var flags byte
	if m.Draining {
		flags |= flagDraining
	}
	if leaving {
		flags |= flagLeaving
	}
	field(tagFlags, []byte{flags})
	var boot []byte
	for _, a := range m.Boot {
		if a = a.Unmap(); a.Is4() && len(boot) < 4*maxBoot {
			boot = append(boot, a.AsSlice()...)
		}
	}
	field(tagBoot, boot)
	if len(b) > memberlist.MetaMaxSize { // the limits above forbid it
		return nil, fmt.Errorf("encode meta: %d bytes: %w", len(b), eboot.ErrTooLarge)
	}
	return b, nil
}

// check says what cannot be told.
func (m Meta) check() error {
	switch {
	case m.ID == "" || !plain(m.ID):
		return fmt.Errorf("meta: id %q: %w", m.ID, eboot.ErrInvalid)
	case len(m.ID) > maxID:
		return fmt.Errorf("meta: id of %d bytes, at most %d: %w", len(m.ID), maxID, eboot.ErrTooLarge)
	case len(m.Peer) > maxPeer:
		return fmt.Errorf("meta: peer address of %d bytes, at most %d: %w", len(m.Peer), maxPeer, eboot.ErrTooLarge)
	case !isHostPort(m.Peer):
		return fmt.Errorf("meta: peer address %q is not HOST:PORT: %w", m.Peer, eboot.ErrInvalid)
	case !plain(m.Version):
		return fmt.Errorf("meta: version %q: %w", m.Version, eboot.ErrInvalid)
	}
	for _, n := range []int{m.Wire, m.Expect, m.StateVersion} {
		if n < 0 || n > math.MaxInt32 {
			return fmt.Errorf("meta: %d is out of range: %w", n, eboot.ErrInvalid)
		}
	}
	return nil
}

// decodeMeta reads what encodeMeta wrote, here or in another version of this program.
// Errors wrap eboot.ErrInvalid.
func decodeMeta(b []byte) (m Meta, leaving bool, err error) {
	if len(b) == 0 || b[0] != metaFormat {
		return Meta{}, false, fmt.Errorf("meta is not of a format that this version reads: %w", eboot.ErrInvalid)
	}
	for rest := b[1:]; len(rest) > 0; {
		if len(rest) < 2 || len(rest)-2 < int(rest[1]) {
			return Meta{}, false, fmt.Errorf("meta ends early: %w", eboot.ErrInvalid)
		}
		tag, value := rest[0], rest[2:2+int(rest[1])]
		rest = rest[2+len(value):]
		if tag == tagFlags && len(value) > 0 {
			m.Draining, leaving = value[0]&flagDraining != 0, value[0]&flagLeaving != 0
			continue
		}
		if err := m.set(tag, value); err != nil {
			return Meta{}, false, err
		}
	}
	if err := m.check(); err != nil {
		return Meta{}, false, err
	}
	return m, leaving, nil
}

func (m *Meta) set(tag byte, value []byte) error {
	number := func(to *int) error {
		n, size := binary.Uvarint(value)
		if size != len(value) || size <= 0 || n > math.MaxInt32 {
			return fmt.Errorf("meta: field %d is not a number: %w", tag, eboot.ErrInvalid)
		}
		*to = int(n)
		return nil
	}
	switch tag {
	case tagUUID:
		id, err := uuid.FromBytes(value)
		if err != nil {
			return fmt.Errorf("meta: id of %d bytes: %w", len(value), eboot.ErrInvalid)
		}
		m.ID = id.String()
	case tagID:
		m.ID = string(value)
	case tagPeer:
		m.Peer = string(value)
	case tagVersion:
		m.Version = string(value)
	case tagWire:
		return number(&m.Wire)
	case tagExpect:
		return number(&m.Expect)
	case tagStateVersion:
		return number(&m.StateVersion)
	case tagBoot:
		if len(value)%4 != 0 {
			return fmt.Errorf("meta: boot addresses of %d bytes: %w", len(value), eboot.ErrInvalid)
		}
		m.Boot = nil
		for ; len(value) > 0; value = value[4:] {
			m.Boot = append(m.Boot, netip.AddrFrom4([4]byte(value)))
		}
	}
	return nil
}

// canonicalUUID reports whether s is a UUID in the form that it is printed in.
func canonicalUUID(s string) (uuid.UUID, bool) {
	id, err := uuid.Parse(s)
	return id, err == nil && id.String() == s
}

// plain reports whether s can be shown as it is.
func plain(s string) bool {
	for _, c := range s {
		if c <= ' ' || c == 0x7f || c == utf8.RuneError {
			return false
		}
	}
	return true
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || !plain(host) {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
