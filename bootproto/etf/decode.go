package etf

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// Version is the first byte of every term (erts, external.h: VERSION_MAGIC).
const Version = 131

// MaxDepth is how many tuples and lists may enclose a value. The tail of a list
// is enclosed by it.
const MaxDepth = 8

// Tags of the format (ERTS User's Guide, "External Term Format").
const (
	tagSmallInteger  = 97
	tagInteger       = 98
	tagAtom          = 100
	tagSmallTuple    = 104
	tagLargeTuple    = 105
	tagNil           = 106
	tagString        = 107
	tagList          = 108
	tagBinary        = 109
	tagSmallBig      = 110
	tagSmallAtom     = 115
	tagAtomUTF8      = 118
	tagSmallAtomUTF8 = 119
)

// An atom has at most this many characters (erts, atom.h: MAX_ATOM_CHARACTERS).
const maxAtomCharacters = 255

var (
	// ErrMalformed: the bytes are no term, or a term this package does not read.
	ErrMalformed = errors.New("malformed term")
	// ErrName: the term is well-formed, but no file name.
	ErrName = errors.New("not a file name")
)

// Kind says what a Token is.
type Kind byte

// The kinds of token.
const (
	Tuple      Kind = iota + 1 // Len elements follow
	List                       // Len elements follow, then the tail, which is [] in a proper list
	Nil                        // the empty list
	String                     // a list of the integers in Bytes
	Atom                       // Bytes is its text in UTF-8
	LatinAtom                  // Bytes is its text in Latin-1
	Integer                    // Int
	BigInteger                 // of more than 56 bits: Bytes is its magnitude, little endian; Int is -1 or 1
	Binary                     // Bytes
)

// Token is one tag of a term and what belongs to it.
type Token struct {
	Kind  Kind
	Len   int    // elements of a Tuple or List, bytes of the others
	Int   int64  // value of an Integer, sign of a BigInteger
	Bytes []byte // points into the frame
}

// children is how many values follow the token as parts of it.
func (t Token) children() int {
	switch t.Kind {
	case Tuple:
		return t.Len
	case List:
		return t.Len + 1
	case Map:
		return 2 * t.Len
	case Export:
		return 3
	case Fun:
		return 4 + t.Len
	default:
		return 0
	}
}

// Decoder is a cursor over one frame. The zero value is at the end of an empty
// frame. It is a value: a copy is a second cursor at the same place.
type Decoder struct {
	rest []byte
}

// NewDecoder returns a cursor at the first tag of a frame. A frame that does
// not begin with the version byte is ErrMalformed.
func NewDecoder(frame []byte) (Decoder, error) {
	if len(frame) == 0 || frame[0] != Version {
		return Decoder{}, ErrMalformed
	}
	return Decoder{frame[1:]}, nil
}

// Next reads one token and moves past it. After ErrMalformed the cursor stays
// where it was.
func (d *Decoder) Next() (Token, error) {
	if len(d.rest) == 0 {
		return Token{}, ErrMalformed
	}
	b := d.rest[1:]
	switch tag := d.rest[0]; tag {
	case tagSmallTuple:
		if len(b) < 1 {
			return Token{}, ErrMalformed
		}
		return d.compound(Tuple, uint32(b[0]), 0, b[1:])
	case tagLargeTuple:
		if len(b) < 4 {
			return Token{}, ErrMalformed
		}
		return d.compound(Tuple, binary.BigEndian.Uint32(b), 0, b[4:])
	case tagList:
		if len(b) < 4 {
			return Token{}, ErrMalformed
		}
		return d.compound(List, binary.BigEndian.Uint32(b), 1, b[4:])
	case tagNil:
		d.rest = b
		return Token{Kind: Nil}, nil
	case tagString:
		return d.text16(String, b)
	case tagAtom:
		return d.text16(LatinAtom, b)
	case tagAtomUTF8:
		return d.text16(Atom, b)
	case tagSmallAtom:
		return d.text8(LatinAtom, b)
	case tagSmallAtomUTF8:
		return d.text8(Atom, b)
	case tagBinary:
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			return Token{}, ErrMalformed
		}
		return d.text(Binary, b[4:], int(binary.BigEndian.Uint32(b)))
	case tagSmallInteger:
		if len(b) < 1 {
			return Token{}, ErrMalformed
		}
		d.rest = b[1:]
		return Token{Kind: Integer, Int: int64(b[0])}, nil
	case tagInteger:
		if len(b) < 4 {
			return Token{}, ErrMalformed
		}
		d.rest = b[4:]
		return Token{Kind: Integer, Int: int64(int32(binary.BigEndian.Uint32(b)))}, nil
	case tagSmallBig:
		if len(b) < 2 || len(b)-2 < int(b[0]) {
			return Token{}, ErrMalformed
		}
		d.rest = b[2+int(b[0]):]
		return bignum(b[2:2+int(b[0])], b[1] != 0), nil
	default:
		return Token{}, ErrMalformed
	}
}

// bignum is the token of a number written as a magnitude and a sign. Erlang has
// one integer type: a small number that came this way is the small number.
func bignum(magnitude []byte, negative bool) Token {
	for len(magnitude) > 0 && magnitude[len(magnitude)-1] == 0 {
		magnitude = magnitude[:len(magnitude)-1]
	}
	sign := int64(1)
	if negative {
		sign = -1
	}
	if len(magnitude) > 7 {
		return Token{Kind: BigInteger, Int: sign, Len: len(magnitude), Bytes: magnitude}
	}
	value := int64(0)
	for i, digit := range magnitude {
		value |= int64(digit) << (8 * i)
	}
	return Token{Kind: Integer, Int: sign * value}
}

// compound is a tuple or list header. Each of its elements, and the tail of a
// list, takes at least one byte.
func (d *Decoder) compound(kind Kind, n, tails uint32, rest []byte) (Token, error) {
	if uint64(n)+uint64(tails) > uint64(len(rest)) {
		return Token{}, ErrMalformed
	}
	d.rest = rest
	return Token{Kind: kind, Len: int(n)}, nil
}

func (d *Decoder) text16(kind Kind, b []byte) (Token, error) {
	if len(b) < 2 {
		return Token{}, ErrMalformed
	}
	return d.text(kind, b[2:], int(binary.BigEndian.Uint16(b)))
}

func (d *Decoder) text8(kind Kind, b []byte) (Token, error) {
	if len(b) < 1 {
		return Token{}, ErrMalformed
	}
	return d.text(kind, b[1:], int(b[0]))
}

func (d *Decoder) text(kind Kind, b []byte, n int) (Token, error) {
	if len(b) < n {
		return Token{}, ErrMalformed
	}
	text := b[:n:n]
	switch kind {
	case Atom:
		if !utf8.Valid(text) || n > maxAtomCharacters && utf8.RuneCount(text) > maxAtomCharacters {
			return Token{}, ErrMalformed
		}
	case LatinAtom:
		if n > maxAtomCharacters {
			return Token{}, ErrMalformed
		}
	}
	d.rest = b[n:]
	return Token{Kind: kind, Len: n, Bytes: text}, nil
}

// nesting counts the values that are still to come in the tuples and lists
// around the cursor.
type nesting struct {
	left  [MaxDepth]int
	depth int
}

// tail reports whether the next value is the last of what encloses it: in a list
// that is its tail. A value that nothing encloses counts as one too.
func (n *nesting) tail() bool {
	return n.depth == 0 || n.left[n.depth-1] == 1
}

// step accounts for one token that was read. It reports whether the term that
// began at the first step is complete; ok is false when it is nested too deep.
func (n *nesting) step(t Token) (complete, ok bool) {
	if n.depth > 0 {
		n.left[n.depth-1]--
	}
	if children := t.children(); children > 0 {
		if n.depth == MaxDepth {
			return false, false
		}
		n.left[n.depth] = children
		n.depth++
	}
	for n.depth > 0 && n.left[n.depth-1] == 0 {
		n.depth--
	}
	return n.depth == 0, true
}

// Skip moves past one whole value.
func (d *Decoder) Skip() error {
	var around nesting
	for {
		t, err := d.Next()
		if err != nil {
			return err
		}
		complete, ok := around.step(t)
		if !ok {
			return ErrMalformed
		}
		if complete {
			return nil
		}
	}
}

// AppendName moves past one whole value, a file name, and appends it to dst in
// UTF-8. The error is ErrMalformed, or ErrName when the value is well-formed but
// no name; the returned slice is then dst with anything after it.
func (d *Decoder) AppendName(dst []byte) ([]byte, error) {
	var around nesting
	name := true
	for {
		tail := around.tail()
		t, err := d.Next()
		if err != nil {
			return dst, err
		}
		complete, ok := around.step(t)
		if !ok {
			return dst, ErrMalformed
		}
		switch t.Kind {
		case Nil, List:
		case String:
			if name {
				dst, name = appendLatin(dst, t.Bytes)
			}
		case Integer:
			// A code point is an element. As a tail it makes the list improper.
			if name = name && !tail && t.Int > 0 && t.Int <= utf8.MaxRune && utf8.ValidRune(rune(t.Int)); name {
				dst = utf8.AppendRune(dst, rune(t.Int))
			}
		default:
			name = false
		}
		if complete {
			if !name {
				return dst, ErrName
			}
			return dst, nil
		}
	}
}

// appendLatin appends bytes that are code points. It reports false when one of
// them is zero.
func appendLatin(dst, latin []byte) ([]byte, bool) {
	plain := plainPrefix(latin)
	dst = append(dst, latin[:plain]...)
	for _, c := range latin[plain:] {
		switch {
		case c == 0:
			return dst, false
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			dst = utf8.AppendRune(dst, rune(c))
		}
	}
	return dst, true
}

// plainPrefix returns the length of a prefix that is ASCII without a zero. Names
// are ASCII nearly always, so it looks at eight bytes at a time.
func plainPrefix(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	n := 0
	for len(b)-n >= 8 {
		// Taking one from each byte sets the high bit of a zero.
		if x := binary.LittleEndian.Uint64(b[n:]); (x|(x-ones))&highs != 0 {
			return n
		}
		n += 8
	}
	return n
}
