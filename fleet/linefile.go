package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"eboot"
	"eboot/internal/fsutil"
)

// lineHeader is the first line of a file of JSON lines.
type lineHeader struct {
	Format string       `json:"format"`
	Pins   int          `json:"pins,omitempty"` // lines of a pin file, which older servers compare
	SHA256 eboot.Digest `json:"sha256"`         // of everything after the header's newline
}

// encodeLines writes header with the digest put in, and values, one a line.
func encodeLines[T any](w io.Writer, header lineHeader, values []T) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	for i := range values {
		if err := encoder.Encode(&values[i]); err != nil {
			return err
		}
	}
	header.SHA256 = eboot.DigestOf(body.Bytes())
	first, err := json.Marshal(header)
	if err != nil {
		return err
	}
	_, err = w.Write(append(first, '\n'))
	if err == nil {
		_, err = body.WriteTo(w)
	}
	return err
}

// decodeLines reads what encodeLines writes of values that pass check; anything else is
// eboot.ErrDamaged.
func decodeLines[T any](content []byte, format string, check func(T) error) ([]T, error) {
	damaged := func(line int, why any) ([]T, error) {
		return nil, fmt.Errorf("line %d: %v: %w", line, why, eboot.ErrDamaged)
	}
	first, body, ok := bytes.Cut(content, []byte{'\n'})
	var header lineHeader
	if err := json.Unmarshal(first, &header); !ok || err != nil || header.Format != format {
		return damaged(1, fmt.Sprintf("is not a header of %q", format))
	}
	if eboot.DigestOf(body) != header.SHA256 {
		return damaged(1, "the digest is not that of the other lines")
	}
	var values []T
	for line := range bytes.Lines(body) {
		var v T
		err := json.Unmarshal(line, &v)
		if err == nil {
			err = check(v)
		}
		if err != nil {
			return damaged(len(values)+2, err)
		}
		values = append(values, v)
	}
	return values, nil
}

// readLines reads the file at path, of at most limit bytes. A file that is not there has
// no values; one that is longer, or that decode finds damaged, has none either: it is renamed to
// path.damaged, and damage told why.
func readLines[T any](path string, limit int, decode func([]byte) ([]T, error), damage func(aside string, err error)) ([]T, error) {
	content, err := fsutil.ReadSmall(path, limit)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var values []T
	if err == nil {
		values, err = decode(content)
	}
	if errors.Is(err, eboot.ErrDamaged) || errors.Is(err, eboot.ErrTooLarge) {
		aside := path + ".damaged"
		damage(aside, err)
		if err := os.Rename(path, aside); err != nil {
			return nil, err
		}
		return nil, fsutil.SyncDir(filepath.Dir(path))
	}
	return values, err
}
