package testutil

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
)

// A term is one of: Atom, Tuple, List, Map, *big.Int or int (integers), float64,
// []byte (binary), Raw (encoding only) and string (encoding only: the list of its
// characters). Decode yields int for whatever fits into 64 bits, and List for
// every proper list, strings included, so that equal terms are deeply equal
// whatever tag they came with.
type (
	// Atom is an Erlang atom.
	Atom string
	// Tuple is an Erlang tuple.
	Tuple []any
	// List is a proper Erlang list.
	List []any
	// Map is an Erlang map (decoding only): keys and values in turn.
	Map []any
	// Raw is one term already encoded, without the version byte.
	Raw []byte
)

// Tags of the external term format (erts/emulator/beam/external.h).
const (
	termVersion       = 131
	tagNewFloat       = 70
	tagCompressed     = 80
	tagSmallInteger   = 97
	tagInteger        = 98
	tagAtom           = 100
	tagSmallTuple     = 104
	tagLargeTuple     = 105
	tagNil            = 106
	tagString         = 107
	tagList           = 108
	tagBinary         = 109
	tagSmallBig       = 110
	tagSmallAtom      = 115
	tagMap            = 116
	tagAtomUTF8       = 118
	tagSmallAtomUTF8  = 119
	maxStringElements = 0xffff
)

// Encode writes term as term_to_binary/1 does: the version byte, ATOM_EXT for
// atoms (as OTP 25 and older do), STRING_EXT for strings of bytes, LIST_EXT for the rest.
// It panics on a type that is no term.
func Encode(term any) []byte { return appendTerm([]byte{termVersion}, term) }

// Text is the list of the characters of s, to be changed or nested.
func Text(s string) List {
	var l List
	for _, r := range s {
		l = append(l, int(r))
	}
	return l
}

func appendTerm(b []byte, term any) []byte {
	switch v := term.(type) {
	case Raw:
		return append(b, v...)
	case Atom:
		b = append(b, tagAtom)
		b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
		return append(b, v...)
	case Tuple:
		if len(v) < 256 {
			b = append(b, tagSmallTuple, byte(len(v)))
		} else {
			b = binary.BigEndian.AppendUint32(append(b, tagLargeTuple), uint32(len(v)))
		}
		for _, e := range v {
			b = appendTerm(b, e)
		}
		return b
	case string:
		return appendTerm(b, Text(v))
	case List:
		return appendList(b, v)
	case []byte:
		b = binary.BigEndian.AppendUint32(append(b, tagBinary), uint32(len(v)))
		return append(b, v...)
	case int:
		if v >= 0 && v < 256 {
			return append(b, tagSmallInteger, byte(v))
		}
		if v == int(int32(v)) {
			return binary.BigEndian.AppendUint32(append(b, tagInteger), uint32(int32(v)))
		}
		return appendBig(b, v)
	case float64:
		return binary.BigEndian.AppendUint64(append(b, tagNewFloat), math.Float64bits(v))
	}
	panic(fmt.Sprintf("no Erlang term: %T", term))
}

// appendBig writes SMALL_BIG_EXT: the sign, and the bytes of the absolute value, least
// significant first.
func appendBig(b []byte, v int) []byte {
	sign, magnitude := byte(0), uint64(v)
	if v < 0 {
		sign, magnitude = 1, -uint64(v)
	}
	digits := bytes.TrimRight(binary.LittleEndian.AppendUint64(nil, magnitude), "\x00")
	return append(append(b, tagSmallBig, byte(len(digits)), sign), digits...)
}

func appendList(b []byte, l List) []byte {
	if len(l) == 0 {
		return append(b, tagNil)
	}
	isString := len(l) <= maxStringElements
	for _, e := range l {
		if n, ok := e.(int); !ok || n < 0 || n > 255 {
			isString = false
			break
		}
	}
	if isString {
		b = binary.BigEndian.AppendUint16(append(b, tagString), uint16(len(l)))
		for _, e := range l {
			b = append(b, byte(e.(int)))
		}
		return b
	}
	b = binary.BigEndian.AppendUint32(append(b, tagList), uint32(len(l)))
	for _, e := range l {
		b = appendTerm(b, e)
	}
	return append(b, tagNil)
}

// Decode reads one external term and nothing after it. Binaries share the memory
// of data. It trusts its peer no more than a test has to: it never reads past data.
func Decode(data []byte) (any, error) {
	if len(data) == 0 || data[0] != termVersion {
		return nil, errors.New("decode term: no version byte 131")
	}
	if len(data) > 5 && data[1] == tagCompressed {
		inflated, err := inflate(data[6:], binary.BigEndian.Uint32(data[2:]))
		if err != nil {
			return nil, fmt.Errorf("decode compressed term: %w", err)
		}
		data = inflated
	}
	d := decoder{rest: data[1:]}
	term, err := d.term()
	if err != nil {
		return nil, fmt.Errorf("decode term at byte %d: %w", len(data)-len(d.rest), err)
	}
	if len(d.rest) != 0 {
		return nil, fmt.Errorf("decode term: %d bytes after it", len(d.rest))
	}
	return term, nil
}

// maxInflated is more than any term of a test.
const maxInflated = 64 << 20

// inflate returns a compressed term as a plain one.
func inflate(data []byte, size uint32) ([]byte, error) {
	if size > maxInflated {
		return nil, fmt.Errorf("%d bytes of content", size)
	}
	r, err := zlib.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	plain := make([]byte, 1+size)
	plain[0] = termVersion
	_, err = io.ReadFull(r, plain[1:])
	return plain, err
}

var errTermShort = errors.New("term is cut off")

type decoder struct{ rest []byte }

func (d *decoder) take(n int) ([]byte, error) {
	if n < 0 || n > len(d.rest) {
		return nil, errTermShort
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b, nil
}

// number reads a big endian unsigned number of size bytes.
func (d *decoder) number(size int) (int, error) {
	b, err := d.take(size)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n, nil
}

func (d *decoder) sized(size int) ([]byte, error) {
	n, err := d.number(size)
	if err != nil {
		return nil, err
	}
	return d.take(n)
}

func (d *decoder) terms(n int) ([]any, error) {
	if n > len(d.rest) { // each takes a byte at least
		return nil, errTermShort
	}
	out := make([]any, n)
	for i := range out {
		var err error
		if out[i], err = d.term(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *decoder) term() (any, error) {
	tag, err := d.number(1)
	if err != nil {
		return nil, err
	}
	switch tag {
	case tagSmallInteger:
		return d.number(1)
	case tagInteger:
		n, err := d.number(4)
		return int(int32(n)), err
	case tagSmallBig:
		return d.big()
	case tagNewFloat:
		b, err := d.take(8)
		if err != nil {
			return nil, err
		}
		return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
	case tagAtom, tagAtomUTF8:
		return d.atom(2, tag == tagAtom)
	case tagSmallAtom, tagSmallAtomUTF8:
		return d.atom(1, tag == tagSmallAtom)
	case tagSmallTuple, tagLargeTuple:
		size := 1
		if tag == tagLargeTuple {
			size = 4
		}
		n, err := d.number(size)
		if err != nil {
			return nil, err
		}
		elements, err := d.terms(n)
		return Tuple(elements), err
	case tagMap:
		n, err := d.number(4)
		if err != nil {
			return nil, err
		}
		elements, err := d.terms(2 * n)
		return Map(elements), err
	case tagNil:
		return List{}, nil
	case tagString:
		b, err := d.sized(2)
		l := make(List, len(b))
		for i, c := range b {
			l[i] = int(c)
		}
		return l, err
	case tagList:
		return d.list()
	case tagBinary:
		return d.sized(4)
	}
	return nil, fmt.Errorf("tag %d is not read here", tag)
}

func (d *decoder) atom(size int, latin1 bool) (any, error) {
	b, err := d.sized(size)
	if err != nil || !latin1 {
		return Atom(b), err
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return Atom(runes), nil
}

func (d *decoder) list() (any, error) {
	n, err := d.number(4)
	if err != nil {
		return nil, err
	}
	elements, err := d.terms(n)
	if err != nil {
		return nil, err
	}
	tail, err := d.term()
	if err != nil {
		return nil, err
	}
	if t, ok := tail.(List); ok { // [a | [b]] is [a, b]
		return append(List(elements), t...), nil
	}
	return nil, errors.New("improper list")
}

func (d *decoder) big() (any, error) {
	n, err := d.number(1)
	if err != nil {
		return nil, err
	}
	b, err := d.take(n + 1)
	if err != nil {
		return nil, err
	}
	sign, digits := b[0], append([]byte(nil), b[1:]...)
	for i, j := 0, len(digits)-1; i < j; i, j = i+1, j-1 {
		digits[i], digits[j] = digits[j], digits[i]
	}
	v := new(big.Int).SetBytes(digits)
	if sign != 0 {
		v.Neg(v)
	}
	if v.IsInt64() {
		return int(v.Int64()), nil
	}
	return v, nil
}
