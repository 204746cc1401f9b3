package bootproto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// slowFetch makes the session take its time for the file "slow".
func slowFetch(files *extendedTree, takes time.Duration) {
	files.fetch = func(name string, _ bool) (Content, error) {
		if name == "slow" {
			<-time.After(takes)
		}
		return Content{Data: []byte(name)}, nil
	}
}

// TestKeepAlive: a slave that waits for a slow answer hears from its server. The machine may
// be busy, so only what comes too soon or far too late is wrong.
func TestKeepAlive(t *testing.T) {
	files := newExtendedTree()
	slowFetch(files, 4*keepAliveAfter)
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	opensOn(t, conn)
	for round := range 2 {
		if round == 1 {
			pass(keepAliveAfter + 2*keepAliveTick) // it sleeps deeper while nobody waits
		}
		began := time.Now()
		send(t, conn, askFetch("first", "slow", "last"))
		latest, empty := began, 0
		for {
			frame, err := readPacket(conn)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			quiet := now.Sub(latest)
			latest = now
			if len(frame) > 0 {
				break
			}
			empty++
			if waited := now.Sub(began); waited < time.Duration(empty)*keepAliveAfter || quiet > keepAliveAfter+time.Second {
				t.Errorf("keep-alive %d came after %v, %v after what was before it", empty, waited, quiet)
			}
		}
		if empty == 0 || empty > 4 {
			t.Errorf("%d keep-alives in %v", empty, latest.Sub(began))
		}
		expectReplies(t, conn, `{eboot_file,<<"slow">>,<<"slow">>}`, `{eboot_file,<<"last">>,<<"last">>}`, `{eboot_done,3}`)
		if n := s.Stats().KeepAlives; n < uint64(empty) {
			t.Errorf("%d keep-alives counted, %d read", n, empty)
		}
	}
	if !open(t, conn) {
		t.Error("the connection ended while it was idle")
	}
}

// TestKeepAliveWhileOpening: a slave hears from its server from the request for its first
// session on; all else that a session brings begins when it is open.
func TestKeepAliveWhileOpening(t *testing.T) {
	for _, refused := range []bool{false, true} {
		files, holder := newExtendedTree(), &duplicates{}
		loaded := make(chan struct{})
		files.refuse = func(Open) error {
			<-loaded
			if refused {
				return ErrUnavailable
			}
			return nil
		}
		s, addr := startFiles(t, FileServerOptions{Host: files, Holder: holder})
		load := sync.OnceFunc(func() { close(loaded) })
		t.Cleanup(load)
		conn := dial(t, addr)
		held := holder.at(t, 1)
		t.Cleanup(func() { _ = held.file.Close() })
		if got := exchange(t, conn, packet(beginTerm(4, atomOpen))); got != `{eboot_open,{error,badarg}}` {
			t.Error(got)
		}
		began := time.Now()
		send(t, conn, askOpen(false))
		for n := 1; n <= 2; n++ {
			frame, err := readPacket(conn)
			if waited := time.Since(began); err != nil || len(frame) > 0 || waited < time.Duration(n)*keepAliveAfter || waited > time.Duration(n)*(keepAliveAfter+time.Second) {
				t.Fatalf("% x, %v after %v; want an empty frame", frame, err, waited)
			}
		}
		if c := s.connections(nil)[0]; c.opened.Load() || c.leaving() || held.dropped.Load() || s.Stats().Opens != 0 {
			t.Error("the session is open before the Session said so")
		}
		load()
		want := openedText + `]}}`
		if refused {
			want = `{eboot_open,{error,unavailable}}`
		}
		expectReplies(t, conn, want)
		eventually(t, "the request has been answered", func() bool { return !held.busy.Load() || held.dropped.Load() })
		if held.dropped.Load() == refused {
			t.Errorf("refused: %v, dropped by the Holder: %v", refused, held.dropped.Load())
		}
		send(t, conn, ask("get", "/bin/start.boot"))
		expectReplies(t, conn, `{get,{ok,<<"boot">>}}`)
	}
}

// TestNoKeepAlive: nothing is written to a connection that is not opened, nor to one that
// waits for nothing.
func TestNoKeepAlive(t *testing.T) {
	files := newExtendedTree()
	slow := make(chan struct{})
	files.tree.open = func(string) (io.ReadCloser, int64, error) {
		<-slow
		return nil, 0, errNotNow
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	idle, stock := dial(t, addr), dial(t, addr)
	opensOn(t, idle)
	send(t, stock, ask("get", "/slow"))
	pass(3 * keepAliveAfter)
	close(slow)
	if rest, err := io.ReadAll(stock); err != nil || len(rest) > 0 {
		t.Errorf("a stock connection was sent % x, %v", rest, err)
	}
	open(t, idle) // fails when there is something to read
}

// TestKeepAliveNeverInAFrame hammers opened connections with keep-alives while they stream
// content of every form, to slaves that read it in pieces of all sizes.
func TestKeepAliveNeverInAFrame(t *testing.T) {
	files := newExtendedTree()
	content := make([]byte, 256<<10)
	for i := range content {
		content[i] = byte(i)
	}
	files.fetch = func(name string, _ bool) (Content, error) {
		data := content[:len(name)*len(name)*1000]
		if len(name)%2 == 0 {
			return Content{Reader: io.NopCloser(bytes.NewReader(data)), Size: int64(len(data))}, nil
		}
		return Content{Data: data}, nil
	}
	s, addr := startFiles(t, FileServerOptions{Host: files})
	const slaves = 3
	var paths []string
	var want []byte
	for i := range 64 {
		path := string(make([]byte, i%16))
		paths = append(paths, string(bytes.ReplaceAll([]byte(path), []byte{0}, []byte("x"))))
		data, _ := files.fetch(paths[i], false)
		if data.Reader != nil {
			data.Data, _ = io.ReadAll(data.Reader)
		}
		want = append(appendFile(want[:len(want):len(want)], []byte(paths[i]), false, int64(len(data.Data))), data.Data...)
	}
	want = appendDone(want, len(paths))

	ctx, stop := context.WithCancel(t.Context())
	var hammers, readers sync.WaitGroup
	conns := make([]*net.TCPConn, slaves)
	for i := range conns {
		conns[i] = dial(t, addr)
		opensOn(t, conns[i])
	}
	for range 2 {
		hammers.Go(func() {
			for ; ctx.Err() == nil; <-time.After(100 * time.Microsecond) {
				for _, c := range s.connections(nil) {
					if c.opened.Load() {
						c.keepAlive()
					}
				}
			}
		})
	}
	for i, conn := range conns {
		readers.Go(func() {
			if _, err := conn.Write(askFetch(paths...)); err != nil {
				t.Error(err)
				return
			}
			if err := readExactly(conn, want, i*7001+11); err != nil {
				t.Errorf("slave %d: %v", i, err)
			}
		})
	}
	readers.Wait()
	stop()
	hammers.Wait()
	if n := s.Stats().KeepAlives; n == 0 {
		t.Error("no keep-alive was sent: nothing was tried")
	}
}

// readExactly reads frames, the empty ones passed over, until want has come.
func readExactly(r io.Reader, want []byte, piece int) error {
	var have []byte
	buffer := make([]byte, piece)
	for len(want) > 0 {
		n, err := r.Read(buffer)
		if err != nil {
			return fmt.Errorf("%w with %d bytes to come", err, len(want))
		}
		have = append(have, buffer[:n]...)
		for len(have) >= headerSize {
			if bytes.Equal(have[:headerSize], emptyFrame[:]) {
				have = have[headerSize:]
				continue
			}
			frame, err := readPacketAny(have)
			if err != nil {
				break // more is to come
			}
			if !bytes.HasPrefix(want, have[:headerSize]) || !bytes.HasPrefix(want[headerSize:], frame) {
				return fmt.Errorf("a frame of %d bytes that differs, with %d bytes to come", len(frame), len(want))
			}
			have, want = have[headerSize+len(frame):], want[headerSize+len(frame):]
		}
	}
	return nil
}

// readPacketAny is readPacketLimited without its limit.
func readPacketAny(data []byte) ([]byte, error) {
	n := int(data[0])<<24 | int(data[1])<<16 | int(data[2])<<8 | int(data[3])
	if len(data) < headerSize+n {
		return nil, errCutShort
	}
	return data[headerSize : headerSize+n], nil
}

// TestKeepAliveInPieces: what the kernel did not take of a keep-alive comes before
// everything else.
func TestKeepAliveInPieces(t *testing.T) {
	s, addr := startFiles(t, FileServerOptions{Host: newExtendedTree()})
	conn := dial(t, addr)
	opensOn(t, conn)
	eventually(t, "the session is open", func() bool { return s.Stats().Opens == 1 })
	c := s.connections(nil)[0]
	for owed := 1; owed < headerSize; owed++ {
		for _, request := range [][]byte{ask("get", "/bin/start.boot"), ask("get", "/nothing"), askFetch("bin/empty"), nil} {
			c.turn.Lock()
			if _, err := c.conn.Write(emptyFrame[owed:]); err != nil {
				t.Fatal(err)
			}
			c.owed = owed
			c.turn.Unlock()
			if request == nil {
				c.keepAlive()
			} else {
				send(t, conn, request)
			}
			if frame, err := readPacket(conn); err != nil || len(frame) > 0 {
				t.Fatalf("% x, %v; want an empty frame", frame, err)
			}
			if request != nil {
				if text, empty := readReply(t, conn); empty > 0 {
					t.Errorf("a keep-alive before %s", text)
				}
			}
			if bytes.Contains(request, []byte(atomFetch)) {
				expectReplies(t, conn, `{eboot_done,1}`)
			}
		}
	}
}

// cutting is a connection that takes some bytes in all, and then fails.
type cutting struct {
	net.Conn
	takes int
	fails error
}

func (c *cutting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b[:min(c.takes, len(b))])
	if c.takes -= n; n < len(b) {
		err = c.fails
	}
	return n, err
}

// TestNoKeepAliveInACutFrame: a frame that was cut short is not completed by a keep-alive
// before the connection is closed.
func TestNoKeepAliveInACutFrame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	short := func() io.ReadCloser { return io.NopCloser(strings.NewReader("x")) }
	failing := io.NopCloser(io.MultiReader(short(), iotest.ErrReader(errNotNow)))
	data := Content{Data: []byte("xyz")}
	get, fetch := len(appendContentHeader(nil, 3)), len(appendFile(nil, []byte("a"), false, 3))
	for _, c := range []struct {
		what    string
		content Content
		stream  bool
		cut     error // of the connection
		sent    int
		want    error
	}{
		{"a short reader", Content{Reader: short(), Size: 3}, false, nil, get, errWrongSize},
		{"a short file", Content{Reader: file, Size: 3}, false, nil, get + 1, errWrongSize},
		{"a reader that fails", Content{Reader: failing, Size: 3}, false, nil, get, errNotNow},
		{"a short reader, fetched", Content{Reader: short(), Size: 3}, true, nil, fetch, errWrongSize},
		{"a write that fails", data, false, net.ErrClosed, get + 2, net.ErrClosed},
		{"a write that fails, fetched", data, true, net.ErrClosed, fetch + 2, net.ErrClosed},
		{"a slave that takes no more", data, false, os.ErrDeadlineExceeded, get + 2, errProgress},
	} {
		t.Run(c.what, func(t *testing.T) {
			ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			slave := dial(t, ln.Addr().String())
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			files := newExtendedTree()
			files.fetch = func(string, bool) (Content, error) { return c.content, nil }
			server := &connection{server: NewFileServer(FileServerOptions{}), group: &group{heart: newHeartbeat()}, conn: conn}
			server.files = &extendedSession{tree: files}
			server.beat()
			if c.cut != nil {
				server.conn = &cutting{conn, c.sent, c.cut}
			}
			server.keepAlive() // this one is written
			if c.stream {
				_, err = server.stream(slices.Values([][]byte{[]byte("a")}))
			} else {
				_, err = server.sendContent(c.content)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("failed with %v, want %v", err, c.want)
			}
			server.keepAlive()
			server.hangUp()
			if all, err := io.ReadAll(slave); err != nil || len(all) != headerSize+c.sent {
				t.Errorf("the slave got % x, %v; want %d bytes", all, err, headerSize+c.sent)
			}
		})
	}
}

// TestKeepAliveWaitsForNobody: a slave that reads nothing stops no keep-alive of another.
func TestKeepAliveWaitsForNobody(t *testing.T) {
	files := newExtendedTree()
	content := bytes.Repeat([]byte("x"), 1<<20)
	slow := make(chan struct{})
	files.fetch = func(name string, _ bool) (Content, error) {
		if name == "slow" {
			<-slow
		}
		return Content{Data: content}, nil
	}
	s, addr := startFiles(t, FileServerOptions{Host: files})
	stuck, waiting, full := dial(t, addr), dial(t, addr), dial(t, addr)
	for _, conn := range []net.Conn{stuck, waiting, full} {
		opensOn(t, conn)
	}
	send(t, stuck, askFetch(make([]string, 100)...)) // and reads nothing
	send(t, waiting, askFetch("slow"))
	eventually(t, "the slave that waits hears from its server", func() bool { return s.Stats().KeepAlives > 1 })
	for range 2 {
		if frame, err := readPacket(waiting); err != nil || len(frame) > 0 {
			t.Errorf("% x, %v; want an empty frame", frame, err)
		}
	}
	close(slow)

	// One whose buffer is full, and whose server waits for its own session.
	eventually(t, "all sessions are open", func() bool { return s.Stats().Opens == 3 })
	var c *connection
	for _, candidate := range s.connections(nil) {
		if candidate.slave.Port() == uint16(full.LocalAddr().(*net.TCPAddr).Port) {
			c = candidate
		}
	}
	if err := c.conn.(*net.TCPConn).SetWriteBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		before := uint64(0)
		for n := 1; before != s.Stats().KeepAlives || n%1000 != 0; n++ { // until the kernel takes no more
			if n%1000 == 0 {
				before = s.Stats().KeepAlives
			}
			c.keepAlive()
		}
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Error("a keep-alive waits for a slave that reads nothing")
		_ = full.Close()
		<-done
	}
}

func TestHeartbeatDue(t *testing.T) {
	h := newHeartbeat()
	now := h.epoch.Add(time.Hour)
	make := func(busy, control bool, quiet time.Duration, restart bool) *connection {
		c := &connection{}
		c.restart.Store(restart)
		c.busy.Store(busy)
		c.control.Store(control)
		c.stirred.Store(int64(time.Hour - quiet))
		return c
	}
	for _, c := range []struct {
		what          string
		busy, control bool
		quiet         time.Duration
		restart       bool
		due           bool
		wait          time.Duration
	}{
		{"idle", false, false, time.Minute, false, false, keepAliveAfter},
		{"just asked", true, false, 0, false, false, keepAliveTick},
		{"waits", true, false, keepAliveAfter - 1, false, false, keepAliveTick},
		{"waits long", true, false, keepAliveAfter, false, true, keepAliveTick},
		{"to stay, idle", false, true, controlBeat - 1, false, false, keepAliveAfter},
		{"to stay, idle for long", false, true, controlBeat, false, true, keepAliveAfter},
		{"to stay, waits", true, true, keepAliveAfter, false, true, keepAliveTick},
		{"to be told to restart", false, true, 0, true, true, keepAliveTick},
	} {
		conn := make(c.busy, c.control, c.quiet, c.restart)
		h.add(conn)
		due, wait := h.due(now, nil)
		if slices.Contains(due, conn) != c.due || wait != c.wait {
			t.Errorf("%s: %d due, next in %v; want %v, %v", c.what, len(due), wait, c.due, c.wait)
		}
		h.remove(conn)
	}
	if due, wait := h.due(now, nil); len(due) > 0 || wait != forever {
		t.Errorf("nobody: %d due, next in %v", len(due), wait)
	}
}
