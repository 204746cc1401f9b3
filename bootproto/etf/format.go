package etf

import (
	"strconv"
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
	out, err := d.format(nil, 0)
	if err != nil {
		return "", err
	}
	return string(out), nil
}

// format prints one value. It recurses at most MaxDepth deep.
func (d *Decoder) format(dst []byte, depth int) ([]byte, error) {
	t, err := d.Next()
	if err != nil {
		return dst, err
	}
	if t.children() > 0 && depth == MaxDepth {
		return dst, ErrMalformed
	}
	switch t.Kind {
	case Tuple:
		dst = append(dst, '{')
		for i := range t.Len {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = d.format(dst, depth+1); err != nil {
				return dst, err
			}
		}
		return append(dst, '}'), nil
	case List:
		dst = append(dst, '[')
		for i := range t.Len {
			if i > 0 {
				dst = append(dst, ',')
			}
			if dst, err = d.format(dst, depth+1); err != nil {
				return dst, err
			}
		}
		if len(d.rest) > 0 && d.rest[0] == tagNil {
			d.rest = d.rest[1:]
			return append(dst, ']'), nil
		}
		if dst, err = d.format(append(dst, '|'), depth+1); err != nil {
			return dst, err
		}
		return append(dst, ']'), nil
	case Nil:
		return append(dst, "[]"...), nil
	case String:
		return appendQuoted(dst, t.Bytes, '"', true), nil
	case Atom:
		return appendAtomText(dst, t.Bytes, false), nil
	case LatinAtom:
		return appendAtomText(dst, t.Bytes, true), nil
	case Integer:
		return strconv.AppendInt(dst, t.Int, 10), nil
	case BigInteger:
		if t.Int < 0 {
			dst = append(dst, '-')
		}
		dst = append(dst, "16#"...)
		for i := len(t.Bytes) - 1; i >= 0; i-- {
			dst = append(dst, hexDigits[t.Bytes[i]>>4], hexDigits[t.Bytes[i]&15])
		}
		return dst, nil
	default:
		dst = append(dst, "<<"...)
		dst = appendQuoted(dst, t.Bytes, '"', true)
		return append(dst, ">>"...), nil
	}
}

const hexDigits = "0123456789abcdef"

// appendAtomText prints an atom, quoted unless it needs no quotes.
func appendAtomText(dst, text []byte, latin bool) []byte {
	plain := len(text) > 0 && 'a' <= text[0] && text[0] <= 'z'
	for _, c := range text {
		plain = plain && (c == '_' || c == '@' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if plain {
		return append(dst, text...)
	}
	return appendQuoted(dst, text, '\'', latin)
}

// appendQuoted prints at most 200 bytes of text between quotes, everything that
// is not printable ASCII as an escape.
func appendQuoted(dst, text []byte, quote byte, latin bool) []byte {
	const most = 200
	shown := text[:min(len(text), most)]
	dst = append(dst, quote)
	for len(shown) > 0 {
		r, size := rune(shown[0]), 1
		if !latin {
			r, size = utf8.DecodeRune(shown)
		}
		shown = shown[size:]
		switch {
		case r == rune(quote) || r == '\\':
			dst = append(dst, '\\', byte(r))
		case ' ' <= r && r <= '~':
			dst = append(dst, byte(r))
		default:
			dst = append(dst, `\x{`...)
			dst = strconv.AppendUint(dst, uint64(r), 16)
			dst = append(dst, '}')
		}
	}
	dst = append(dst, quote)
	if len(text) > most {
		dst = append(dst, "..."...)
	}
	return dst
}
