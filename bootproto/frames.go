package bootproto

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// framesName is seen in /proc and nowhere else.
const framesName = "eboot-frames"

// Frames is what answers a request for files, up to the frame that ends it: encoded once, for
// all slaves that are sent the same. It is a file without a name in the kernel's memory
// (memfd_create(2)), sealed, so that nothing changes it any more. sendfile(2) gives the pages
// of it to the sockets, while content that is written is copied for each slave.
//
// The memory is given back when the garbage collector finds that nobody has the Frames any
// more; connections have them while they send.
type Frames struct {
	file *os.File
	ends []int64 // where the frame of each file ends
}

// EncodeFrames asks for the content of each file, closes it, and returns an error of it as it is.
func EncodeFrames(paths []string, content func(path string) (Content, error)) (*Frames, error) {
	fd, err := unix.MemfdCreate(framesName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("encode frames: %w", err)
	}
	f := &Frames{file: os.NewFile(uintptr(fd), framesName), ends: make([]int64, 0, len(paths))}
	if err := f.encode(paths, content); err != nil {
		_ = f.file.Close()
		return nil, fmt.Errorf("encode frames: %w", err)
	}
	return f, nil
}

func (f *Frames) encode(paths []string, content func(path string) (Content, error)) error {
	w := bufio.NewWriterSize(f.file, batchSize)
	var header []byte
	for _, path := range paths {
		c, err := content(path)
		if err == nil {
			c, err = sized(c)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		header = appendFile(header[:0], []byte(path), c.Packed, c.Size)
		_, _ = w.Write(header) // an error of it comes again
		if err := c.copyTo(w); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		f.ends = append(f.ends, f.Size()+int64(len(header))+c.Size)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := unix.FcntlInt(f.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

// copyTo writes a content and closes it.
func (c Content) copyTo(w io.Writer) error {
	if c.Reader == nil {
		_, err := w.Write(c.Data)
		return err
	}
	defer c.Reader.Close() //nolint:errcheck // it was read only
	_, err := io.CopyN(w, c.Reader, c.Size)
	return err
}

// Size is how many bytes the frames have in all.
func (f *Frames) Size() int64 {
	if len(f.ends) == 0 {
		return 0
	}
	return f.ends[len(f.ends)-1]
}

// open returns the frames as a file with an offset of its own.
func (f *Frames) open() (*os.File, error) {
	defer runtime.KeepAlive(f)
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.file.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), framesName), nil
}

// sendFrames sends the frames of a plan as long as the link is fast, and returns how many
// files these were. None is as good: the files that are left are fetched.
func (c *connection) sendFrames(f *Frames, planned int) (sent int64, count int, err error) {
	if f == nil || c.slow || len(f.ends) > planned {
		return 0, 0, nil
	}
	file, err := f.open()
	if err != nil {
		return 0, 0, nil
	}
	defer runtime.KeepAlive(f) // as long as this holds its memory
	defer file.Close()         //nolint:errcheck // it was read only
	for count < len(f.ends) && !c.slow {
		next := count + 1
		for next < len(f.ends) && f.ends[next]-sent <= max(batchSize, sent) {
			next++
		}
		n, err := c.sendPiece(Content{Reader: file, Size: f.ends[next-1] - sent})
		if sent += n; err != nil {
			return sent, count, err
		}
		c.server.count.fetched.Add(uint64(next - count))
		count = next
	}
	return sent, count, nil
}

// sendPiece writes whole frames.
func (c *connection) sendPiece(frames Content) (int64, error) {
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.turn.Unlock()
	began := time.Now()
	if err := c.allowWrite(began); err != nil {
		return 0, err
	}
	sent, err := c.writeReader(frames)
	c.wrote(sent, began)
	return sent, err
}
