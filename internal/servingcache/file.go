package servingcache

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"eboot"
	"eboot/internal/fsutil"
)

const (
	magic       = "EBOOTSC1"
	trailerSize = 8 + 8 + sha256.Size
	// maxFileSize bounds what Load takes into memory, in bytes.
	maxFileSize = 5 << 30
)

// Load returns the body of the cache file at path. eboot.ErrNotFound: there is no
// file; eboot.ErrDamaged: it is not what Run wrote. Other errors are of reading it.
func Load(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("serving cache %s: %w", path, eboot.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("serving cache: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("serving cache: %w", err)
	}
	body, _, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("serving cache %s: %w", path, err)
	}
	return body, nil
}

// decode returns the body, which is part of data, and the index.
func decode(data []byte) ([]byte, uint64, error) {
	if !bytes.HasPrefix(data, []byte(magic)) {
		return nil, 0, fmt.Errorf("does not begin as one: %w", eboot.ErrDamaged)
	}
	if len(data) < len(magic)+trailerSize || len(data) > maxFileSize {
		return nil, 0, fmt.Errorf("has %d bytes: %w", len(data), eboot.ErrDamaged)
	}
	body, trailer := data[len(magic):len(data)-trailerSize], data[len(data)-trailerSize:]
	if length := binary.BigEndian.Uint64(trailer[8:]); length != uint64(len(body)) {
		return nil, 0, fmt.Errorf("has a body of %d bytes, not %d: %w", len(body), length, eboot.ErrDamaged)
	}
	if sum := sha256.Sum256(data[:len(data)-sha256.Size]); !bytes.Equal(sum[:], trailer[16:]) {
		return nil, 0, fmt.Errorf("does not match its digest: %w", eboot.ErrDamaged)
	}
	return body, binary.BigEndian.Uint64(trailer), nil
}

// store replaces the file at path.
func store(path string, index uint64, state io.WriterTo) error {
	return fsutil.WriteAtomic(path, 0o600, func(w io.Writer) error {
		h := sha256.New()
		out := bufio.NewWriterSize(w, 64<<10)
		all := io.MultiWriter(out, h)
		if _, err := io.WriteString(all, magic); err != nil {
			return err
		}
		length, err := state.WriteTo(all)
		if err != nil {
			return err
		}
		trailer := binary.BigEndian.AppendUint64(nil, index)
		trailer = binary.BigEndian.AppendUint64(trailer, uint64(length))
		if _, err := all.Write(trailer); err != nil {
			return err
		}
		if _, err := out.Write(h.Sum(nil)); err != nil {
			return err
		}
		return out.Flush()
	})
}
