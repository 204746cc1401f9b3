package ingest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"eboot"
)

// maxWindow bounds the memory of a zstd stream: what `zstd --ultra -22` and
// `--long=27` need.
const maxWindow = 128 << 20

// unpacker yields the tar bytes of a possibly compressed archive. It fails
// with eboot.ErrTooLarge when they are out of proportion to what was read.
type unpacker struct {
	ctx     context.Context
	source  *countingReader
	decoded io.Reader
	close   func()
	limits  Limits
	out     int64 // bytes yielded
}

// newUnpacker recognises the compression of r by its first bytes.
func newUnpacker(ctx context.Context, r io.Reader, limits Limits, bytesRead *progress) (*unpacker, error) {
	u := &unpacker{ctx: ctx, source: &countingReader{reader: r, progress: bytesRead}, limits: limits, close: func() {}}
	buffered := bufio.NewReaderSize(u.source, 64<<10)
	head, err := buffered.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) == 0:
		return nil, fmt.Errorf("is empty: %w", eboot.ErrInvalid)
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, u.explain("", err)
		}
		u.decoded = z
	case isZstd(head):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, u.explain("", err)
		}
		u.decoded, u.close = z, z.Close
	default:
		for _, f := range foreignFormats {
			if bytes.HasPrefix(head, []byte(f.magic)) {
				return nil, fmt.Errorf("is %s: want a directory, a .tar, a .tar.gz or a .tar.zst: %w", f.name, eboot.ErrInvalid)
			}
		}
		u.decoded = buffered
	}
	return u, nil
}

var foreignFormats = []struct{ magic, name string }{
	{"\xfd7zXZ\x00", "xz"},
	{"BZh", "bzip2"},
	{"PK\x03\x04", "a zip file"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"!<arch>\n", "an ar archive"},
}

// isZstd knows both frames of RFC 8878: data, and skippable ones before it.
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(head)
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

func (u *unpacker) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	n, err := u.decoded.Read(p)
	u.out += int64(n)
	switch {
	case u.out > u.limits.RatioAfter && u.out/u.limits.Ratio > u.source.bytes:
		return n, fmt.Errorf("unpacks to more than %d times its size: %w", u.limits.Ratio, eboot.ErrTooLarge)
	case u.out > u.limits.streamBytes():
		return n, fmt.Errorf("unpacks to more than %d bytes: %w", u.limits.streamBytes(), eboot.ErrTooLarge)
	}
	return n, err
}

// Close releases the decoder; the source stays open.
func (u *unpacker) Close() { u.close() }

// explain turns an error of the decoders or of the tar reader into what is
// wrong with the archive. latest is the last entry that could be read.
func (u *unpacker) explain(latest string, err error) error {
	switch {
	case u.source.err != nil: // the disk, not the archive
		return u.source.err
	case u.ctx.Err() != nil:
		return context.Cause(u.ctx)
	case errors.Is(err, eboot.ErrInvalid), errors.Is(err, eboot.ErrTooLarge), errors.Is(err, eboot.ErrConflict):
		return err
	case latest == "" && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
		err = errors.New("is not a tar, or is cut off")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		err = errors.New("is cut off")
	}
	if latest == "" {
		return fmt.Errorf("archive: %v: %w", err, eboot.ErrInvalid)
	}
	return fmt.Errorf("archive: after %q: %v: %w", shorten(latest), err, eboot.ErrInvalid)
}

// countingReader counts what is read, and remembers why reading failed.
type countingReader struct {
	reader   io.Reader
	progress *progress
	bytes    int64
	err      error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	c.bytes += int64(n)
	c.progress.add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
