package fleet

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// A pin file holds one eboot.Pin a line, the longest unused first.
const (
	pinFormat  = "eboot pins 1"
	maxPinFile = 64 << 20
)

func encodePins(w io.Writer, pins []eboot.Pin) error {
	return encodeLines(w, lineHeader{Format: pinFormat, Pins: len(pins)}, pins)
}

// decodePins reads what encodePins writes; anything else is eboot.ErrDamaged.
func decodePins(content []byte) ([]eboot.Pin, error) {
	return decodeLines(content, pinFormat, checkPin)
}

func checkPin(p eboot.Pin) error {
	if !p.Slave.Is4() {
		return fmt.Errorf("%q is not an IPv4 address", p.Slave)
	}
	if p.Manifest.IsZero() {
		return errors.New("names no manifest")
	}
	if year := p.At.UTC().Year(); year < 1 || year > 9998 { // JSON has 0 to 9999, in the pin's own time zone
		return fmt.Errorf("is of the year %d", year)
	}
	return eboot.CheckERTS(p.ERTS)
}

// load reads the file at path into t, which must be empty, as readLines does.
func (t *pinTable) load(path string, logger hclog.Logger) error {
	pins, err := readLines(path, maxPinFile, decodePins, func(aside string, damage error) {
		logger.Warn("pins are damaged and forgotten: slaves that run go on with what their channel points to",
			"file", path, "kept", aside, "error", damage)
	})
	if err != nil {
		return err
	}
	for _, p := range pins {
		t.put(p)
	}
	return nil
}

// encode writes all pins and returns the version they are of.
func (t *pinTable) encode(w io.Writer) (version uint64, err error) {
	pins, version := t.all()
	return version, encodePins(w, pins)
}

func pinWriter(t *pinTable, path string, logger hclog.Logger) *tableWriter {
	return &tableWriter{table: t, path: path, logger: logger, noun: "pins",
		loss: "slaves that boot now may get another bundle in mid-boot when this server restarts"}
}
