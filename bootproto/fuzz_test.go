package bootproto

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"eboot/bootproto/etf"
)

// chunked is a connection that delivers bytes in pieces of given sizes.
type chunked struct {
	net.Conn
	data  []byte
	sizes []byte
	reads int
}

func (c *chunked) Read(b []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	size := len(c.data)
	if len(c.sizes) > 0 {
		size = 1 + int(c.sizes[c.reads%len(c.sizes)])
		c.reads++
	}
	n := copy(b, c.data[:min(size, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}

func (c *chunked) SetReadDeadline(time.Time) error { return nil }

// recordings returns what real nodes of OTP 25 (*.wire, with the replies), OTP 23, 27 and 29 and our
// loader (*.sent) sent: the datagrams of their searches, and the contents of their frames by the file
// that has them.
func recordings(t testing.TB) (queries [][]byte, requests map[string][][]byte) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.[ws]*")
	if err != nil || len(files) < 7 {
		t.Fatalf("recordings: %q, %v", files, err)
	}
	requests = map[string][][]byte{}
	for _, file := range files {
		for _, m := range readWire(t, file) {
			switch m.what {
			case "query":
				queries = append(queries, m.bytes)
			case "request":
				requests[file] = append(requests[file], m.bytes)
			}
		}
	}
	return queries, requests
}

// sessions are parts of connections of real nodes, so many requests each, as bytes of the wire.
func sessions(t testing.TB, each int) (streams [][]byte) {
	_, requests := recordings(t)
	for _, file := range slices.Sorted(maps.Keys(requests)) {
		for part := range slices.Chunk(requests[file], each) {
			var stream []byte
			for _, frame := range part {
				stream = append(stream, packet(frame)...)
			}
			streams = append(streams, stream)
		}
	}
	return streams
}

// FuzzFrame reads frames out of bytes that arrive in pieces.
func FuzzFrame(f *testing.F) {
	for i, stream := range sessions(f, 40) {
		f.Add(stream, []byte{byte(i), 1, 200, 3})
	}
	f.Add(ask("get", "/bin/start.boot"), []byte{0})
	f.Add(append(ask("get", "/"), ask("list_dir", "/lib")...), []byte{3, 200, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1}, []byte{})
	f.Add([]byte{0, 1, 0, 1, 7}, []byte{1})
	f.Add([]byte{255, 255, 255, 255}, []byte{1})
	f.Add(packet(bytes.Repeat([]byte{7}, 5000)), []byte{255, 7})
	server := NewFileServer(FileServerOptions{})
	f.Fuzz(func(t *testing.T, data, sizes []byte) {
		var want [][]byte
		rest, last := data, errClosed
		for len(rest) > 0 {
			frame, err := readPacketLimited(rest)
			if err != nil {
				last = err
				break
			}
			want = append(want, frame)
			rest = rest[headerSize+len(frame):]
		}
		c := &connection{server: server, group: &group{}, conn: &chunked{data: data, sizes: sizes}}
		c.buffer = make([]byte, smallRead)
		c.waiting = errFirstByte
		for i := 0; ; i++ {
			frame, err := c.next()
			if err != nil {
				if i != len(want) || !errors.Is(err, last) {
					t.Fatalf("%v after %d frames, want %v after %d", err, i, last, len(want))
				}
				return
			}
			if i >= len(want) || !bytes.Equal(frame, want[i]) {
				t.Fatalf("frame %d is %x", i, frame)
			}
			if received := len(data); len(c.buffer) > max(smallRead, 2*received) {
				t.Fatalf("a buffer of %d bytes for %d", len(c.buffer), received)
			}
		}
	})
}

// readPacketLimited is how frames are cut, written in the simplest way.
func readPacketLimited(data []byte) ([]byte, error) {
	if len(data) < headerSize {
		return nil, errCutShort
	}
	n := int(data[0])<<24 | int(data[1])<<16 | int(data[2])<<8 | int(data[3])
	switch {
	case n > MaxFrame:
		return nil, errTooLong
	case len(data) < headerSize+n:
		return nil, errCutShort
	}
	return data[headerSize : headerSize+n], nil
}

// FuzzRequest sends bytes to a server and reads what comes back: whole frames
// with whole terms, one for each request, and then the end.
func FuzzRequest(f *testing.F) {
	for _, stream := range sessions(f, 8) {
		f.Add(stream)
	}
	for _, frame := range readWire(f, "testdata/loader.wire") {
		if frame.what == "request" {
			f.Add(packet(frame.bytes))
		}
	}
	f.Add(append(ask("get", "/lib/big"), ask("read_link_info", "/link")...))
	f.Add(append(ask("get", "/damaged"), ask("get", "/")...))
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 1})
	files := newTree()
	server := NewFileServer(FileServerOptions{Host: files})
	ln := newPipes()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, ln, "13.1.5") }()
	f.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		conn := ln.dial()
		requests := 0
		for rest := data; ; requests++ {
			frame, err := readPacketLimited(rest)
			if err != nil {
				break
			}
			rest = rest[headerSize+len(frame):]
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = conn.Write(data) // fails when the server has closed
		}()
		replies := 0
		for ; replies < requests; replies++ {
			reply, err := readPacket(conn)
			if err != nil {
				if !errors.Is(err, io.EOF) || !bytes.Contains(data, []byte("/damaged")) {
					t.Fatalf("%v after %d of %d replies", err, replies, requests)
				}
				break
			}
			if text, err := etf.Format(reply); err != nil {
				t.Fatalf("% x is no term: %s", reply, text)
			}
		}
		_ = conn.Close()
		<-sent
	})
}
