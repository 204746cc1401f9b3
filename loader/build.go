package loader

import (
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

//go:generate ../scripts/loader-beams

// The loader's code: the one that OTP 23 and 24 can load, and the one for all newer
// releases, which refuse the first.
var (
	//go:embed beams/eboot_loader.r23.beam
	beamR23 string
	//go:embed beams/eboot_loader.beam
	beam string
)

// ErrERTS: no build of the loader is for this ERTS version.
var ErrERTS = errors.New("no loader for this ERTS")

// The first ERTS versions, by their major number: of OTP 23 and of OTP 25.
const (
	firstERTS = 11
	newERTS   = 13
)

// Build returns the loader's code for an ERTS version such as 13.1.5, and what the
// build is called. The error is ErrERTS.
func Build(erts string) (name string, code []byte, err error) {
	text, _, _ := strings.Cut(erts, ".")
	major, err := strconv.Atoi(text)
	switch {
	case err != nil || major < firstERTS:
		return "", nil, fmt.Errorf("loader for ERTS %q: it is for %d.0 (OTP 23) and newer: %w", erts, firstERTS, ErrERTS)
	case major < newERTS:
		return "eboot_loader.r23.beam", []byte(beamR23), nil
	default:
		return "eboot_loader.beam", []byte(beam), nil
	}
}
