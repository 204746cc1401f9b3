package fleet

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// text is a remote text of at most maxText bytes, kept without allocation.
type text struct {
	length int
	bytes  [maxText]byte
}

// set keeps operation, a space and name, as much as there is room for.
func (t *text) set(operation string, name []byte) {
	n := copy(t.bytes[:], operation)
	if len(name) > 0 && n < maxText {
		if n > 0 {
			t.bytes[n] = ' '
			n++
		}
		n += copy(t.bytes[n:], name)
	}
	t.length = n
}

func (t *text) String() string { return printable(string(t.bytes[:t.length]), maxText) }

// printable returns s as valid UTF-8 of at most limit bytes that cannot move an operator's
// cursor: each rune that is not valid or not printable becomes U+FFFD. The
// result shares no memory with s.
func printable(s string, limit int) string {
	s = s[:min(len(s), limit+utf8.UTFMax)] // a longer one is cut below in any case
	var b strings.Builder
	for _, r := range s {
		if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// word returns s with at most limit bytes, each that is no letter, digit or "_" of ASCII
// replaced by "_": JSON writes it as it is. The result shares no memory with s.
func word(s string, limit int) string {
	w := []byte(s[:min(len(s), limit)])
	for i, c := range w {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			w[i] = '_'
		}
	}
	return string(w)
}
