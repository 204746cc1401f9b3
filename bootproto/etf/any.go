package etf

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
)

// Tags that only NextAny reads. FUN_EXT (117) is not among them: no emulator since
// OTP 23 reads it. Nor is LOCAL_EXT (121): what follows it is protected by a
// checksum and means something to the emulator that wrote it alone.
const (
	tagNewFloat       = 70
	tagBitBinary      = 77
	tagNewPid         = 88
	tagNewPort        = 89
	tagNewerReference = 90
	tagFloat          = 99
	tagReference      = 101
	tagPort           = 102
	tagPid            = 103
	tagLargeBig       = 111
	tagNewFun         = 112
	tagExport         = 113
	tagNewReference   = 114
	tagMap            = 116
	tagV4Port         = 120
)

// The kinds of token that only NextAny returns.
const (
	Map        Kind = iota + Binary + 1 // Len pairs follow: a key, its value, the next key
	Float                               // Float returns the value
	Bits                                // Bytes is a bit string, Int the number of bits of its last byte that belong to it
	Identifier                          // a pid, a port or a reference: Bytes is all of it, its tag included
	Export                              // fun M:F/A: the module, the function and the arity follow
	Fun                                 // Bytes is its header; module, index, uniq, pid and Len free variables follow
)

// NewValue returns a cursor at a value without a version byte before it, such as
// Raw returns.
func NewValue(value []byte) Decoder { return Decoder{value} }

// Left returns the bytes from the cursor to the end of the frame.
func (d *Decoder) Left() []byte { return d.rest }

// NextAny is Next for every tag that term_to_binary writes in OTP 23 to 29, but
// for the compressed form, which Inflate reads, and the local one. It is for terms
// of an operator, such as boot scripts; a stranger's are read with Next, or passed over with Raw.
func (d *Decoder) NextAny() (Token, error) {
	if t, err := d.Next(); err == nil {
		return t, nil
	}
	if len(d.rest) == 0 {
		return Token{}, ErrMalformed
	}
	b := d.rest[1:]
	switch tag := d.rest[0]; tag {
	case tagNewFloat:
		return d.fixed(Float, 0, 8)
	case tagFloat:
		return d.fixed(Float, 0, 31)
	case tagNewPid:
		return d.identifier(1, 12)
	case tagPid:
		return d.identifier(1, 9)
	case tagNewPort:
		return d.identifier(1, 8)
	case tagV4Port:
		return d.identifier(1, 12)
	case tagPort, tagReference:
		return d.identifier(1, 5)
	case tagNewReference, tagNewerReference:
		if len(b) < 2 {
			return Token{}, ErrMalformed
		}
		creation := 1
		if tag == tagNewerReference {
			creation = 4
		}
		return d.identifier(3, creation+4*int(binary.BigEndian.Uint16(b)))
	case tagExport:
		d.rest = b
		return Token{Kind: Export}, nil
	}
	if len(b) < 4 {
		return Token{}, ErrMalformed
	}
	n := binary.BigEndian.Uint32(b)
	switch tag := d.rest[0]; tag {
	case tagMap:
		if 2*uint64(n) > uint64(len(b)-4) {
			return Token{}, ErrMalformed
		}
		d.rest = b[4:]
		return Token{Kind: Map, Len: int(n)}, nil
	case tagBitBinary:
		if len(b) < 5 || b[4] > 8 || b[4] == 0 != (n == 0) || uint64(n) > uint64(len(b)-5) {
			return Token{}, ErrMalformed
		}
		t, err := d.text(Bits, b[5:], int(n))
		t.Int = int64(b[4])
		return t, err
	case tagLargeBig:
		if len(b) < 5 || uint64(n) > uint64(len(b)-5) {
			return Token{}, ErrMalformed
		}
		d.rest = b[5+int(n):]
		return bignum(b[5:5+int(n):5+int(n)], b[4] != 0), nil
	case tagNewFun:
		// The size at its beginning is skipped, as erts does (dec_term). Free variables
		// are counted by the last four of these bytes.
		const header = 4 + 1 + 16 + 4 + 4
		if len(b) < header {
			return Token{}, ErrMalformed
		}
		free := binary.BigEndian.Uint32(b[header-4:])
		if uint64(free)+4 > uint64(len(b)-header) {
			return Token{}, ErrMalformed
		}
		d.rest = b[header:]
		return Token{Kind: Fun, Len: int(free), Int: int64(b[4]), Bytes: b[:header:header]}, nil
	}
	return Token{}, ErrMalformed
}

// fixed is a token of n bytes after the tag, all of which, with the tag, are its
// Bytes.
func (d *Decoder) fixed(kind Kind, head, n int) (Token, error) {
	if len(d.rest) < 1+head+n {
		return Token{}, ErrMalformed
	}
	end := 1 + head + n
	t := Token{Kind: kind, Len: end, Bytes: d.rest[:end:end]}
	if kind == Float {
		if v, ok := t.parseFloat(); !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			return Token{}, ErrMalformed
		}
	}
	d.rest = d.rest[end:]
	return t, nil
}

// identifier is a pid, a port or a reference: head bytes that begin with the tag,
// the node, an atom, and n bytes.
func (d *Decoder) identifier(head, n int) (Token, error) {
	if len(d.rest) < head {
		return Token{}, ErrMalformed
	}
	node := Decoder{d.rest[head:]}
	if t, err := node.Next(); err != nil || t.Kind != Atom && t.Kind != LatinAtom {
		return Token{}, ErrMalformed
	}
	return d.fixed(Identifier, len(d.rest)-1-len(node.rest), n)
}

// Float returns the value of a Float token.
func (t Token) Float() float64 {
	v, _ := t.parseFloat()
	return v
}

func (t Token) parseFloat() (v float64, ok bool) {
	if t.Bytes[0] == tagNewFloat {
		return math.Float64frombits(binary.BigEndian.Uint64(t.Bytes[1:])), true
	}
	text, _, _ := strings.Cut(string(t.Bytes[1:]), "\x00") // "%.20e", filled with zeros
	v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	return v, err == nil
}

// Raw moves past one whole value of any kind and returns its bytes, which point
// into the frame. It needs no memory, however deep the value is.
func (d *Decoder) Raw() ([]byte, error) {
	start := *d
	for pending := 1; pending > 0; pending-- {
		t, err := d.NextAny()
		if err != nil {
			*d = start
			return nil, err
		}
		// Each value that is still to come takes at least one byte.
		if pending += t.children(); pending-1 > len(d.rest) {
			*d = start
			return nil, ErrMalformed
		}
	}
	n := len(start.rest) - len(d.rest)
	return start.rest[:n:n], nil
}
