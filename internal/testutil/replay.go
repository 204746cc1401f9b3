package testutil

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// Recording is the requests of one boot, ready to be sent again: the load of a
// slave without the slave.
type Recording struct {
	frames  [][]byte // header included
	replies int64    // bytes of the recorded replies, headers included
}

// NewRecording takes the exchanges of one slave. Requests that got no reply are left out.
func NewRecording(exchanges []Exchanged) Recording {
	var r Recording
	for _, e := range exchanges {
		if e.Reply < 0 {
			continue
		}
		r.frames = append(r.frames, Frame(e.Request))
		r.replies += int64(4 + e.Reply)
	}
	return r
}

// Requests is the number of requests of the boot.
func (r Recording) Requests() int { return len(r.frames) }

// ReplyBytes is what the recorded boot received, frame headers included.
func (r Recording) ReplyBytes() int64 { return r.replies }

// Replay sends the recorded requests over conn, each as soon as the reply to the one
// before has been read to its end, and returns the bytes received. Replies are counted and thrown
// away: the cost measured is the server's, not that of a decoder.
func (r Recording) Replay(conn net.Conn) (int64, error) {
	var received int64
	in := bufio.NewReaderSize(conn, 64<<10)
	for i, frame := range r.frames {
		if _, err := conn.Write(frame); err != nil {
			return received, fmt.Errorf("replay request %d: %w", i, err)
		}
		var header [4]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return received, fmt.Errorf("replay reply %d: %w", i, err)
		}
		size := int64(binary.BigEndian.Uint32(header[:]))
		if _, err := io.CopyN(io.Discard, in, size); err != nil {
			return received, fmt.Errorf("replay reply %d of %d bytes: %w", i, size, err)
		}
		received += 4 + size
	}
	return received, nil
}
