package bundlefs

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"syscall"

	"eboot/filestore"
)

// errBadMember: what the archive holds is not what its directory promises. The
// blob is whole, so it was published like that.
var errBadMember = errors.New("damaged archive member")

// memberReader unpacks one member of an archive. It yields exactly the bytes that
// the directory promises: when they turn out to be others, the read that would have
// yielded the last of them yields nothing and fails.
type memberReader struct {
	archive  filestore.Content // to be closed
	unpacked io.Reader         // may be an io.Closer
	member   member
	left     int64
	sum      uint32
	err      error // the end, or why there is none
}

func (r *memberReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n := 0
	if r.left > 0 {
		var err error
		n, err = r.unpacked.Read(p[:min(int64(len(p)), r.left)])
		r.sum = crc32.Update(r.sum, crc32.IEEETable, p[:n])
		r.left -= int64(n)
		if err != nil && r.left > 0 {
			r.err = unpackError(err)
			return 0, r.err
		}
	}
	if r.left > 0 {
		return n, nil
	}
	if r.err = r.end(); r.err != io.EOF {
		return 0, r.err
	}
	return n, io.EOF
}

// end returns io.EOF when all was as promised.
func (r *memberReader) end() error {
	n, err := r.unpacked.Read(make([]byte, 1))
	switch {
	case n > 0:
		return fmt.Errorf("longer than promised: %w", errBadMember)
	case err != nil && err != io.EOF:
		return unpackError(err)
	case r.sum != r.member.crc:
		return fmt.Errorf("wrong checksum: %w", errBadMember)
	}
	return io.EOF
}

// Close closes the archive.
func (r *memberReader) Close() error {
	var err error
	if c, ok := r.unpacked.(io.Closer); ok {
		err = c.Close()
	}
	closeContent(r.archive)
	return err
}

// unpackError tells a bad archive from a disk that cannot be read now.
func unpackError(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	return fmt.Errorf("%v: %w", err, errBadMember)
}
