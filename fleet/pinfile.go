package fleet

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/fsutil"
)

// A pin file is JSON lines: a header, and one eboot.Pin a line, the longest
// unused first.
const (
	pinFormat     = "eboot pins 1"
	maxPinFile    = 64 << 20
	writeAfter    = time.Second      // from the first change to the write
	retryAfter    = 10 * time.Second // after a write that failed
	writeBusyness = 20               // writing may take one such part of the time
)

type pinHeader struct {
	Format string       `json:"format"`
	Pins   int          `json:"pins"`
	SHA256 eboot.Digest `json:"sha256"` // of everything after the header's newline
}

func encodePins(w io.Writer, pins []eboot.Pin) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	for i := range pins {
		if err := encoder.Encode(&pins[i]); err != nil {
			return err
		}
	}
	header, err := json.Marshal(pinHeader{Format: pinFormat, Pins: len(pins), SHA256: eboot.DigestOf(body.Bytes())})
	if err != nil {
		return err
	}
	_, err = w.Write(append(header, '\n'))
	if err == nil {
		_, err = body.WriteTo(w)
	}
	return err
}

// decodePins reads what encodePins writes; anything else is eboot.ErrDamaged.
func decodePins(content []byte) ([]eboot.Pin, error) {
	damaged := func(why string, args ...any) ([]eboot.Pin, error) {
		return nil, fmt.Errorf("%s: %w", fmt.Sprintf(why, args...), eboot.ErrDamaged)
	}
	first, body, ok := bytes.Cut(content, []byte{'\n'})
	var header pinHeader
	if err := json.Unmarshal(first, &header); !ok || err != nil || header.Format != pinFormat {
		return damaged("line 1: is not a header of %q", pinFormat)
	}
	if eboot.DigestOf(body) != header.SHA256 {
		return damaged("the digest does not match")
	}
	if n := bytes.Count(body, []byte{'\n'}); n != header.Pins {
		return damaged("%d lines for %d pins", n, header.Pins)
	}
	pins := make([]eboot.Pin, 0, header.Pins)
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		var p eboot.Pin
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return damaged("line %d: %v", len(pins)+2, err)
		}
		if err := checkPin(p); err != nil {
			return damaged("line %d: %v", len(pins)+2, err)
		}
		pins = append(pins, p)
	}
	if err := lines.Err(); err != nil {
		return damaged("line %d: %v", len(pins)+2, err)
	}
	return pins, nil
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

// load reads the file at path into t, which must be empty. A file that is not
// there is no pins; one that is damaged is renamed to path.damaged.
func (t *pinTable) load(path string, logger hclog.Logger) error {
	content, err := readBounded(path, maxPinFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var pins []eboot.Pin
	if err == nil {
		pins, err = decodePins(content)
	}
	if errors.Is(err, eboot.ErrDamaged) {
		aside := path + ".damaged"
		logger.Warn("pins are damaged and forgotten: slaves that run go on with what their channel points to",
			"file", path, "kept", aside, "error", err)
		if err := os.Rename(path, aside); err != nil {
			return err
		}
		return fsutil.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	for _, p := range pins {
		t.put(p)
	}
	return nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("longer than %d bytes: %w", limit, eboot.ErrDamaged)
	}
	return content, nil
}

// pinWriter brings the changes of a pinTable to its file. Used by Run alone.
type pinWriter struct {
	table  *pinTable
	path   string // empty: there is no file
	logger hclog.Logger

	written uint64 // version of the table that the file has
	timer   <-chan time.Time
	pause   time.Duration // between the writes, when longer than writeAfter
	failing bool
}

// due returns a channel that fires when a write is due: nil, which never does, when
// nothing changed. A table that takes long to write is written less often.
func (w *pinWriter) due() <-chan time.Time {
	if w.timer == nil && w.path != "" && w.table.changedSince(w.written) {
		w.timer = time.After(max(writeAfter, w.pause))
	}
	return w.timer
}

func (w *pinWriter) write() {
	w.timer = nil
	start := time.Now()
	err := w.save()
	if w.pause = writeBusyness * time.Since(start); err != nil {
		w.pause = max(w.pause, retryAfter)
	}
	if err != nil && !w.failing {
		w.logger.Error("pins are not on disk: slaves that boot now may get another bundle in mid-boot when this server restarts",
			"file", w.path, "error", err)
	}
	if err == nil && w.failing {
		w.logger.Info("pins are on disk again", "file", w.path)
	}
	w.failing = err != nil
}

func (w *pinWriter) save() error {
	pins, version := w.table.all()
	if err := fsutil.WriteAtomic(w.path, 0o600, func(out io.Writer) error { return encodePins(out, pins) }); err != nil {
		return err
	}
	w.written = version
	return nil
}

// finish writes what is not in the file yet.
func (w *pinWriter) finish() error {
	if w.path == "" || !w.table.changedSince(w.written) {
		return nil
	}
	if err := w.save(); err != nil {
		return fmt.Errorf("write pins: %w", err)
	}
	return nil
}
