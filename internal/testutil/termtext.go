package testutil

import (
	"crypto/sha256"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"unicode"
)

// Format prints a term as the Erlang shell would, but for long binaries, of which
// it gives size and digest.
func Format(term any) string {
	var b strings.Builder
	format(&b, term)
	return b.String()
}

func format(b *strings.Builder, term any) {
	switch v := term.(type) {
	case Atom:
		b.WriteString(formatAtom(string(v)))
	case Tuple:
		b.WriteByte('{')
		formatElements(b, v)
		b.WriteByte('}')
	case List:
		if s, ok := TextOf(v); ok && s != "" {
			b.WriteString(strconv.Quote(s))
			return
		}
		b.WriteByte('[')
		formatElements(b, v)
		b.WriteByte(']')
	case Map:
		b.WriteString("#{")
		formatElements(b, v)
		b.WriteByte('}')
	case string:
		b.WriteString(strconv.Quote(v))
	case []byte:
		if len(v) <= 64 {
			fmt.Fprintf(b, "<<%q>>", v)
			return
		}
		fmt.Fprintf(b, "<<%d bytes, sha256 %.6x…>>", len(v), sha256.Sum256(v))
	case Raw:
		fmt.Fprintf(b, "raw(%x)", []byte(v))
	case *big.Int:
		b.WriteString(v.String())
	default:
		fmt.Fprint(b, v)
	}
}

func formatElements(b *strings.Builder, elements []any) {
	for i, e := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		format(b, e)
	}
}

func formatAtom(s string) string {
	for i, r := range s {
		plain := r == '_' || r == '@' || r >= '0' && r <= '9' || unicode.IsLetter(r)
		if !plain || i == 0 && !unicode.IsLower(r) {
			return "'" + s + "'"
		}
	}
	return s
}

// TextOf returns the text of a list of printable characters; false: it is none.
// The empty list is the empty text.
func TextOf(term any) (string, bool) {
	l, ok := term.(List)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for _, e := range l {
		n, ok := e.(int)
		if !ok || n < 0 || n > unicode.MaxRune || !unicode.IsPrint(rune(n)) && !unicode.IsSpace(rune(n)) {
			return "", false
		}
		b.WriteRune(rune(n))
	}
	return b.String(), true
}
