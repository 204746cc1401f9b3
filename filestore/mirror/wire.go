package mirror

import (
	"encoding/binary"
	"fmt"
	"io"

	"eboot"
)

const (
	blobsPath  = "/v1/blobs"
	maxAsked   = 4096                  // digests in one request
	digestSize = 32                    // bytes of an eboot.Digest
	headerSize = digestSize + 8        // bytes before each content in a reply
	maxRequest = maxAsked * digestSize // bytes
	absent     = -1                    // the size of a blob that is not here
)

// decodeRequest reads the digests of a request. Anything else is eboot.ErrInvalid.
func decodeRequest(body []byte) ([]eboot.Digest, error) {
	if len(body) == 0 || len(body)%digestSize != 0 || len(body) > maxRequest {
		return nil, fmt.Errorf("request of %d bytes: want 1 to %d digests of %d: %w", len(body), maxAsked, digestSize, eboot.ErrInvalid)
	}
	asked := make([]eboot.Digest, 0, len(body)/digestSize)
	for ; len(body) > 0; body = body[digestSize:] {
		asked = append(asked, eboot.Digest(body))
	}
	return asked, nil
}

func appendHeader(buf []byte, d eboot.Digest, size int64) []byte {
	return binary.BigEndian.AppendUint64(append(buf, d[:]...), uint64(size))
}

// decodeHeader reads what stands before the content of want in a reply. size is
// absent or 0 to eboot.MaxFileSize; anything else is eboot.ErrInvalid.
func decodeHeader(h [headerSize]byte, want eboot.Digest) (size int64, err error) {
	if got := eboot.Digest(h[:digestSize]); got != want {
		return 0, fmt.Errorf("reply: blob %s, asked for %s: %w", got.Short(), want.Short(), eboot.ErrInvalid)
	}
	size = int64(binary.BigEndian.Uint64(h[digestSize:]))
	if size < absent || size > eboot.MaxFileSize {
		return 0, fmt.Errorf("reply: blob %s has %d bytes: %w", want.Short(), size, eboot.ErrInvalid)
	}
	return size, nil
}

// readHeader reads the next header of a reply. A reply that ends here was cut
// off: io.ErrUnexpectedEOF.
func readHeader(r io.Reader, want eboot.Digest) (size int64, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, fmt.Errorf("reply: %w", err)
	}
	return decodeHeader(h, want)
}

// content yields the next left bytes of a stream and then io.EOF. It keeps the
// error of the stream, so that it can be told from an error of whoever reads. A
// stream that ends too early is io.ErrUnexpectedEOF.
type content struct {
	stream io.Reader
	left   int64
	err    error
}

func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.stream.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = nil
		if c.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	c.err = err
	return n, err
}
