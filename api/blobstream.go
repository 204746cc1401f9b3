package api

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"eboot"
)

// A blob stream is the body of PUT /v1/publishes/{id}/blobs: any number of
// blobs, each as 32 bytes of digest, 8 bytes of length (big endian) and the content.
const blobHeaderSize = len(eboot.Digest{}) + 8

// readBlobs calls put for each blob of the stream; put need not read the content
// to its end.
func readBlobs(r io.Reader, put func(d eboot.Digest, size int64, content io.Reader) error) error {
	var header [blobHeaderSize]byte
	for {
		if _, err := io.ReadFull(r, header[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("blob stream: cut off in a header: %w", eboot.ErrInvalid)
		}
		d := eboot.Digest(header[:32])
		size := binary.BigEndian.Uint64(header[32:])
		if size > eboot.MaxFileSize {
			return fmt.Errorf("blob %s: %d bytes, at most %d: %w", d.Short(), size, int64(eboot.MaxFileSize), eboot.ErrTooLarge)
		}
		content := &io.LimitedReader{R: r, N: int64(size)}
		if err := put(d, int64(size), content); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil || content.N != 0 {
			return fmt.Errorf("blob %s: stream cut off %d bytes before its end: %w", d.Short(), content.N, eboot.ErrInvalid)
		}
	}
}
