package api

import (
	"fmt"
	"io"

	"eboot"
)

// LimitValues returns a reader of the JSON text in r that fails with eboot.ErrTooLarge behind the
// nth value. It counts the items of lists and the members of objects, and each list and object once more.
// An empty value takes three bytes as text and a hundred and more in memory, so a bound for bytes
// alone bounds little.
func LimitValues(r io.Reader, n int) io.Reader { return &valueLimit{from: r, left: n, limit: n} }

type valueLimit struct {
	from              io.Reader
	left, limit       int
	inString, escaped bool
}

func (v *valueLimit) Read(b []byte) (int, error) {
	n, err := v.from.Read(b)
	for i, c := range b[:n] {
		switch {
		case v.escaped:
			v.escaped = false
		case v.inString && c == '\\':
			v.escaped = true
		case c == '"':
			v.inString = !v.inString
		case !v.inString && (c == ',' || c == '[' || c == '{'):
			if v.left--; v.left < 0 {
				return i, fmt.Errorf("more than %d values: %w", v.limit, eboot.ErrTooLarge)
			}
		}
	}
	return n, err
}
