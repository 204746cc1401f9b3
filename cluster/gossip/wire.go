package gossip

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/hashicorp/memberlist"

	"eboot"
)

// Bounds of what comes over one connection. Without a key strangers can send what they
// like, and memberlist v0.7 sets aside what a message announces before it has come:
// 40 MiB for a compressed one, 110 MB for a list of 2^20 servers, 20 MiB for a
// message of its user. The longest list of servers that members allows is below 128 KiB.
const (
	maxMessage = 256 << 10
	maxNodes   = 1024
)

// Types of messages, the first byte (memberlist, net.go). Those that are not here are
// compressed ones and its users' own, which no server of eboot sends.
const (
	pingMessage         = 0
	indirectPingMessage = 1
	ackMessage          = 2
	suspectMessage      = 3
	aliveMessage        = 4
	deadMessage         = 5
	pushPullMessage     = 6
	compoundMessage     = 7
	encryptedMessage    = 10
	nackMessage         = 11
	checksumMessage     = 12
	errorMessage        = 13
	labelMessage        = 244
)

// message is one being read from a connection, as it came.
type message struct {
	from io.Reader
	raw  []byte
}

// readMessage reads the one message that comes over a connection, the label before it
// included, and checks all of it that memberlist would set memory aside for. Of a
// message that is encrypted and should not be, or the other way round, it reads no
// more than the type: from that alone memberlist refuses it and tells the other side
// why. Errors are io.EOF when nothing came, those of the connection, or wrap
// eboot.ErrInvalid or eboot.ErrTooLarge.
func readMessage(from io.Reader, labelled, encrypted bool) ([]byte, error) {
	m := &message{from: bufio.NewReader(from)}
	kind, err := m.one()
	if err == nil && labelled && kind == labelMessage {
		kind, err = m.label()
	}
	switch {
	case err != nil:
	case encrypted && kind == encryptedMessage:
		var n uint64
		if n, err = m.number(4); err == nil {
			_, err = m.take(n)
		}
	case encrypted, kind == encryptedMessage:
	case kind == pushPullMessage:
		err = m.pushPull()
	case kind == pingMessage, kind == ackMessage, kind == errorMessage:
		err = m.object(func(string, uint64) error { return nil })
	default:
		err = fmt.Errorf("a message of type %d, which no server sends: %w", kind, eboot.ErrInvalid)
	}
	return m.raw, err
}

// label passes over the label and returns the type behind it.
func (m *message) label() (kind byte, err error) {
	n, err := m.one()
	if err != nil {
		return 0, err
	}
	if _, err := m.take(uint64(n)); err != nil {
		return 0, err
	}
	return m.one()
}

// pushPull reads a header and the servers that it announces.
func (m *message) pushPull() error {
	var nodes uint64
	err := m.object(func(name string, value uint64) error {
		switch {
		case name == "Nodes" && value <= maxNodes:
			nodes = value
		case name == "Nodes", name == "UserStateLen" && value > 0: // eboot sends no user state
			return fmt.Errorf("an exchange with %s %d: %w", name, value, eboot.ErrTooLarge)
		}
		return nil
	})
	for ; err == nil && nodes > 0; nodes-- {
		err = m.object(func(string, uint64) error { return nil })
	}
	return err
}

// object reads a MessagePack map of names and plain values, as memberlist encodes its
// structs, and calls field with each whole number, whose bits it takes as unsigned:
// memberlist itself refuses what is negative.
func (m *message) object(field func(name string, value uint64) error) error {
	b, err := m.one()
	var n uint64
	switch {
	case err != nil:
	case b&0xf0 == 0x80:
		n = uint64(b & 0x0f)
	case b == 0xde:
		n, err = m.number(2)
	case b == 0xdf:
		n, err = m.number(4)
	default:
		err = unexpected(b)
	}
	for ; err == nil && n > 0; n-- {
		err = m.field(field)
	}
	return err
}

func (m *message) field(field func(name string, value uint64) error) error {
	b, err := m.one()
	if err != nil {
		return err
	}
	name, err := m.text(b)
	if err != nil {
		return err
	}
	if len(name) == 0 {
		return unexpected(b)
	}
	for _, c := range name {
		// memberlist's decoder looks a name up inside a text of all of them, and finds
		// a field behind other bytes.
		if (c|0x20) < 'a' || (c|0x20) > 'z' {
			return unexpected(c)
		}
	}
	if b, err = m.one(); err != nil {
		return err
	}
	var value uint64
	switch {
	case b <= 0x7f:
		value = uint64(b)
	case b >= 0xcc && b <= 0xcf, b >= 0xd0 && b <= 0xd3: // unsigned, signed; of 1, 2, 4, 8 bytes
		if value, err = m.number(1 << (b & 3)); err != nil {
			return err
		}
	case b >= 0xe0, b == 0xc0, b == 0xc2, b == 0xc3: // negative, nil, false, true
		return nil
	default:
		_, err = m.text(b)
		return err
	}
	return field(string(name), value)
}

// text reads a string or bytes that begin with b.
func (m *message) text(b byte) ([]byte, error) {
	var n uint64
	var err error
	switch {
	case b >= 0xa0 && b <= 0xbf:
		n = uint64(b & 0x1f)
	case b >= 0xc4 && b <= 0xc6: // bytes
		n, err = m.number(1 << (b - 0xc4))
	case b >= 0xd9 && b <= 0xdb:
		n, err = m.number(1 << (b - 0xd9))
	default:
		err = unexpected(b)
	}
	if err != nil {
		return nil, err
	}
	return m.take(n)
}

func unexpected(b byte) error {
	return fmt.Errorf("a message with byte %d where it cannot be: %w", b, eboot.ErrInvalid)
}

func (m *message) one() (byte, error) {
	b, err := m.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// number reads a big-endian number of so many bytes.
func (m *message) number(size uint64) (uint64, error) {
	b, err := m.take(size)
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, digit := range b {
		n = n<<8 | uint64(digit)
	}
	return n, nil
}

// take reads n bytes, which are valid until the next call.
func (m *message) take(n uint64) ([]byte, error) {
	at := len(m.raw)
	if n > uint64(maxMessage-at) {
		return nil, fmt.Errorf("a message of more than %d bytes: %w", maxMessage, eboot.ErrTooLarge)
	}
	m.raw = append(m.raw, make([]byte, n)...)
	_, err := io.ReadFull(m.from, m.raw[at:])
	if err == io.EOF && at > 0 {
		err = io.ErrUnexpectedEOF
	}
	return m.raw[at:], err
}

// checkPacket returns why a packet that is not encrypted is not for memberlist: it
// holds what no server sends. Errors wrap eboot.ErrInvalid.
func checkPacket(b []byte) error {
	b, _, err := memberlist.RemoveLabelHeaderFromPacket(b)
	if err != nil {
		return fmt.Errorf("a label: %w: %w", err, eboot.ErrInvalid)
	}
	if len(b) >= 5 && b[0] == checksumMessage {
		b = b[5:]
	}
	if len(b) == 0 || b[0] != compoundMessage {
		return checkPart(b)
	}
	if len(b) < 2 || len(b) < 2+2*int(b[1]) {
		return fmt.Errorf("several messages in one, cut off: %w", eboot.ErrInvalid)
	}
	lengths, parts := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(parts) {
			return nil // memberlist passes over what is cut off
		}
		if err := checkPart(parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

func checkPart(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("an empty message: %w", eboot.ErrInvalid)
	}
	switch b[0] {
	case pingMessage, indirectPingMessage, ackMessage, nackMessage, suspectMessage, aliveMessage, deadMessage:
		return nil
	}
	return fmt.Errorf("a message of type %d, which no server sends: %w", b[0], eboot.ErrInvalid)
}
