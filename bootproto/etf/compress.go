package etf

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The compressed form: 131, 80, the size of the term in four bytes, and the term
// without its version byte as a zlib stream (ERTS User's Guide, "External Term
// Format"). Every release since R5 reads it.
const tagCompressed = 80

// ErrTooLarge: a compressed term is larger than the limit given.
var ErrTooLarge = errors.New("term too large")

// Inflate returns frame itself, or, when it is compressed, the frame that it
// stands for, of at most limit bytes. The error is ErrMalformed or ErrTooLarge.
func Inflate(frame []byte, limit int) ([]byte, error) {
	if len(frame) < 2 || frame[0] != Version || frame[1] != tagCompressed {
		return frame, nil
	}
	if len(frame) < 6 {
		return nil, ErrMalformed
	}
	size := int64(binary.BigEndian.Uint32(frame[2:]))
	if size >= int64(limit) {
		return nil, fmt.Errorf("inflate a term of %d bytes, at most %d: %w", size, limit-1, ErrTooLarge)
	}
	r, err := zlib.NewReader(bytes.NewReader(frame[6:]))
	if err != nil {
		return nil, fmt.Errorf("inflate a term: %w: %w", err, ErrMalformed)
	}
	// The size is a claim: memory follows what is really there.
	var out bytes.Buffer
	out.WriteByte(Version)
	n, err := io.Copy(&out, io.LimitReader(r, size+1))
	if err != nil {
		return nil, fmt.Errorf("inflate a term: %w: %w", err, ErrMalformed)
	}
	if n != size {
		return nil, fmt.Errorf("inflate a term: its size is not the %d bytes it claims: %w", size, ErrMalformed)
	}
	return out.Bytes(), nil
}

// Deflate returns the compressed form of a frame, or the frame itself when that
// is not longer or is no frame that can be compressed. It is as small as zlib makes
// it: the result is meant to be kept and sent often.
func Deflate(frame []byte) []byte {
	if len(frame) < 2 || frame[0] != Version || frame[1] == tagCompressed || int64(len(frame)) > 1<<32 {
		return frame
	}
	var out bytes.Buffer
	head := binary.BigEndian.AppendUint32([]byte{Version, tagCompressed}, uint32(len(frame)-1))
	out.Write(head)
	// Neither writing to a buffer nor the level can fail.
	w, err := zlib.NewWriterLevel(&out, zlib.BestCompression)
	if err != nil {
		return frame
	}
	if _, err := w.Write(frame[1:]); err != nil {
		return frame
	}
	if err := w.Close(); err != nil || out.Len() >= len(frame) {
		return frame
	}
	return out.Bytes()
}
