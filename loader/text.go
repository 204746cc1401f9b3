package loader

import (
	"fmt"
	"strings"

	"eboot/bootproto/etf"
)

// maxTextSize is how long Text may become, in bytes; it is looked at after each
// instruction.
const maxTextSize = 64 << 20

// Text returns a script as Erlang terms, one instruction on a line. Long binaries
// are abbreviated, and their sizes are in a comment. The error is ErrScript.
func Text(script []byte) (string, error) {
	s, err := parse(script)
	if err != nil {
		return "", fmt.Errorf("print boot script: %w", err)
	}
	id := etf.NewValue(s.id)
	out, cut, err := id.AppendText([]byte("{script,"))
	if err != nil {
		return "", fmt.Errorf("print boot script: its name: %w: %w", err, ErrScript)
	}
	out = append(append(out, ','), sizes(cut)...)
	before := "\n ["
	for i, in := range s.instructions {
		d := etf.NewValue(in.raw)
		if out, cut, err = d.AppendText(append(out, before...)); err != nil {
			return "", fmt.Errorf("print boot script: instruction %d: %w: %w", i+1, err, ErrScript)
		}
		if len(out) > maxTextSize {
			return "", fmt.Errorf("print boot script: more than %d bytes of text: %w", maxTextSize, ErrScript)
		}
		if i+1 < len(s.instructions) {
			out = append(out, ',')
		}
		out = append(out, sizes(cut)...)
		before = "\n  "
	}
	if len(s.instructions) == 0 {
		out = append(out, before...)
	}
	return string(append(out, "\n ]}.\n"...)), nil
}

// sizes is a comment that tells the sizes of the binaries that were cut.
func sizes(cut []int) string {
	if len(cut) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(" %")
	for i, size := range cut {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %d bytes", size)
	}
	return b.String()
}
