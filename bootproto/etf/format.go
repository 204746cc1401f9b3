package etf

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Format writes the term of a frame as Erlang would: {get,"/bin/start.boot"}. It
// is for logs and test failures. Strings and atoms are quoted, so the result is
// printable whatever a stranger sent. At most 200 bytes of a binary or a string
// are shown. The error is ErrMalformed.
func Format(frame []byte) (string, error) {
	d, err := NewDecoder(frame)
	if err != nil {
		return "", err
	}
	p := printer{d: &d, next: d.Next}
	if err := p.value(0); err != nil {
		return "", err
	}
	return string(p.out), nil
}

// textDepth is how deep AppendText shows what is nested.
const textDepth = 128

// AppendText moves past one whole value of any kind and appends it as Erlang
// would write it, on one line, in ASCII: what is a term in a source file can be read
// back from there. Pids and funs are shown as #Pid<…> and so on. Binaries of more
// than 200 bytes are shown as <<70,79,82,...>>: cut has their sizes, in order. What
// is nested more than 128 deep is shown as "...". The error is ErrMalformed.
func (d *Decoder) AppendText(dst []byte) (text []byte, cut []int, err error) {
	p := printer{d: d, next: d.NextAny, any: true, out: dst}
	err = p.value(0)
	return p.out, p.cut, err
}

// printer writes values as text.
type printer struct {
	d    *Decoder
	next func() (Token, error)
	any  bool // values of an operator: all kinds, and nothing is cut but binaries
	out  []byte
	cut  []int
}

func (p *printer) text(s string)  { p.out = append(p.out, s...) }
func (p *printer) number(n int64) { p.out = strconv.AppendInt(p.out, n, 10) }

func (p *printer) atom(t Token) {
	latin := t.Kind == LatinAtom
	if isPlainAtom(t.Bytes) {
		p.out = append(p.out, t.Bytes...)
		return
	}
	p.quoted(t.Bytes, '\'', latin)
}

// quoted prints text between quotes, everything that is not printable ASCII as an
// escape; of a stranger's text the first 200 bytes.
func (p *printer) quoted(text []byte, quote byte, latin bool) {
	shown := text
	if !p.any {
		shown = text[:min(len(text), shownBytes)]
	}
	cut := len(shown) < len(text)
	p.out = append(p.out, quote)
	for len(shown) > 0 {
		r, size := rune(shown[0]), 1
		if !latin {
			r, size = utf8.DecodeRune(shown)
		}
		shown = shown[size:]
		switch {
		case r == rune(quote) || r == '\\':
			p.out = append(p.out, '\\', byte(r))
		case ' ' <= r && r <= '~':
			p.out = append(p.out, byte(r))
		default:
			p.out = strconv.AppendUint(append(p.out, `\x{`...), uint64(r), 16)
			p.out = append(p.out, '}')
		}
	}
	p.out = append(p.out, quote)
	if cut {
		p.text("...")
	}
}

// value prints one value. It recurses textDepth deep at most.
func (p *printer) value(depth int) error {
	before := *p.d
	t, err := p.next()
	if err != nil {
		return err
	}
	if t.children() > 0 {
		if !p.any && depth == MaxDepth {
			return ErrMalformed
		}
		if depth >= textDepth {
			p.text("...")
			*p.d = before
			_, err := p.d.Raw()
			return err
		}
	}
	switch t.Kind {
	case Tuple:
		return p.tuple(t, depth)
	case List:
		return p.list(t, depth)
	case Map:
		return p.pairs(t, depth)
	case Export:
		return p.export()
	case Fun:
		return p.fun(t)
	case Nil:
		p.text("[]")
	case String:
		if p.any && !printable(t.Bytes) {
			p.out = append(appendNumbers(append(p.out, '['), t.Bytes), ']')
			break
		}
		p.quoted(t.Bytes, '"', true)
	case Atom, LatinAtom:
		p.atom(t)
	case Integer:
		p.number(t.Int)
	case BigInteger:
		if t.Int < 0 {
			p.text("-")
		}
		p.text("16#")
		for _, c := range slices.Backward(t.Bytes) {
			p.out = append(p.out, hexDigits[c>>4], hexDigits[c&15])
		}
	case Float:
		p.float(t.Float())
	case Identifier:
		p.identifier(t)
	default:
		p.binary(t)
	}
	return nil
}

func (p *printer) tuple(t Token, depth int) error {
	p.text("{")
	for i := range t.Len {
		if i > 0 {
			p.text(",")
		}
		if err := p.value(depth + 1); err != nil {
			return err
		}
	}
	p.text("}")
	return nil
}

func (p *printer) list(t Token, depth int) error {
	if p.any && p.wideString(t) {
		return nil
	}
	p.text("[")
	for i := range t.Len {
		if i > 0 {
			p.text(",")
		}
		if err := p.value(depth + 1); err != nil {
			return err
		}
	}
	if len(p.d.rest) > 0 && p.d.rest[0] == tagNil {
		p.d.rest = p.d.rest[1:]
		p.text("]")
		return nil
	}
	p.text("|")
	if err := p.value(depth + 1); err != nil {
		return err
	}
	p.text("]")
	return nil
}

// wideString prints the elements of a list, and its tail, as a string, when they
// are one. Else it does nothing.
func (p *printer) wideString(t Token) bool {
	d := *p.d
	var points []byte
	for range t.Len {
		c, err := d.Next()
		if err != nil || c.Kind != Integer || c.Int < 0 || c.Int > utf8.MaxRune || !utf8.ValidRune(rune(c.Int)) ||
			c.Int < utf8.RuneSelf && !printable([]byte{byte(c.Int)}) || 0x80 <= c.Int && c.Int < 0xa0 {
			return false
		}
		points = utf8.AppendRune(points, rune(c.Int))
	}
	if end, err := d.Next(); err != nil || end.Kind != Nil {
		return false
	}
	*p.d = d
	p.quoted(points, '"', false)
	return true
}

func (p *printer) pairs(t Token, depth int) error {
	p.text("#{")
	for i := range t.Len {
		if i > 0 {
			p.text(",")
		}
		if err := p.value(depth + 1); err != nil {
			return err
		}
		p.text(" => ")
		if err := p.value(depth + 1); err != nil {
			return err
		}
	}
	p.text("}")
	return nil
}

// export prints fun lists:map/2.
func (p *printer) export() error {
	var parts [3]Token
	for i := range parts {
		t, err := p.d.Next()
		if err != nil || t.Kind != Integer == (i == 2) || i < 2 && t.Kind != Atom && t.Kind != LatinAtom {
			return ErrMalformed
		}
		parts[i] = t
	}
	p.text("fun ")
	p.atom(parts[0])
	p.text(":")
	p.atom(parts[1])
	p.text("/")
	p.number(parts[2].Int)
	return nil
}

// fun prints #Fun<module.index.uniq>, as io:format does for a fun of a module.
func (p *printer) fun(t Token) error {
	var parts [3]Token
	for i := range parts {
		part, err := p.d.Next()
		if err != nil || part.Kind != Integer == (i > 0) || i == 0 && part.Kind != Atom && part.Kind != LatinAtom {
			return ErrMalformed
		}
		parts[i] = part
	}
	p.text("#Fun<")
	p.atom(parts[0])
	p.text(".")
	p.number(parts[1].Int)
	p.text(".")
	p.number(parts[2].Int)
	p.text(">")
	for range 1 + t.Len { // the process that made it, and the free variables
		if _, err := p.d.Raw(); err != nil {
			return err
		}
	}
	return nil
}

// float prints the shortest number that is the same float, with the point that
// Erlang wants.
func (p *printer) float(v float64) {
	s := strconv.FormatFloat(v, 'g', -1, 64)
	mantissa, exponent, scientific := strings.Cut(s, "e")
	p.text(mantissa)
	if !strings.Contains(mantissa, ".") {
		p.text(".0")
	}
	if scientific {
		p.text("e" + exponent)
	}
}

// identifier prints #Pid<node.id.serial> and the like.
func (p *printer) identifier(t Token) {
	name, head := "#Ref<", 1
	var numbers []byte
	switch t.Bytes[0] {
	case tagPid, tagNewPid:
		name = "#Pid<"
	case tagPort, tagNewPort, tagV4Port:
		name = "#Port<"
	case tagNewReference, tagNewerReference:
		head = 3
	}
	node := Decoder{t.Bytes[head:]}
	atom, _ := node.Next() // was read by NextAny
	p.text(name)
	p.atom(atom)
	switch t.Bytes[0] {
	case tagNewReference:
		numbers = node.rest[1:]
	case tagNewerReference:
		numbers = node.rest[4:]
	case tagV4Port:
		p.text(".")
		p.out = strconv.AppendUint(p.out, binary.BigEndian.Uint64(node.rest), 10)
	case tagPid, tagNewPid:
		numbers = node.rest[:8]
	default:
		numbers = node.rest[:4]
	}
	for ; len(numbers) >= 4; numbers = numbers[4:] {
		p.text(".")
		p.out = strconv.AppendUint(p.out, uint64(binary.BigEndian.Uint32(numbers)), 10)
	}
	p.text(">")
}

// shownBytes is how many bytes of a binary are shown, and of a stranger's string.
const shownBytes = 200

// binary prints a Binary or Bits token.
func (p *printer) binary(t Token) {
	p.text("<<")
	switch {
	case !p.any || t.Kind == Binary && t.Len <= shownBytes && printable(t.Bytes) && t.Len > 0:
		p.quoted(t.Bytes, '"', true)
	case t.Len > shownBytes:
		p.out = append(appendNumbers(p.out, t.Bytes[:3]), ",..."...)
		p.cut = append(p.cut, t.Len)
	case t.Kind == Bits:
		p.out = appendBits(p.out, t.Bytes, int(t.Int))
	default:
		p.out = appendNumbers(p.out, t.Bytes)
	}
	p.text(">>")
}

const hexDigits = "0123456789abcdef"

func appendNumbers(dst, b []byte) []byte {
	for i, c := range b {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendUint(dst, uint64(c), 10)
	}
	return dst
}

// appendBits prints a bit string of whose last byte n bits count.
func appendBits(dst, b []byte, n int) []byte {
	if len(b) == 0 {
		return dst
	}
	last := len(b) - 1
	dst = appendNumbers(dst, b[:last])
	if last > 0 {
		dst = append(dst, ',')
	}
	dst = strconv.AppendUint(dst, uint64(b[last]>>(8-n)), 10)
	return strconv.AppendInt(append(dst, ':'), int64(n), 10)
}

// printable reports whether ~p would print these bytes as text.
func printable(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool {
		return c < ' ' && (c < '\b' || c > '\r') && c != 27 || 0x7f <= c && c < 0xa0
	})
}

// reserved are the words that are no atoms unless they are quoted (Erlang Reference
// Manual, "Reserved Words").
const reserved = " after and andalso band begin bnot bor bsl bsr bxor case catch cond div else end fun if let maybe not of or orelse receive rem try when xor "

// isPlainAtom reports whether an atom needs no quotes.
func isPlainAtom(text []byte) bool {
	if len(text) == 0 || text[0] < 'a' || text[0] > 'z' || strings.Contains(reserved, " "+string(text)+" ") {
		return false
	}
	return !slices.ContainsFunc(text, func(c byte) bool {
		return c != '_' && c != '@' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
}
