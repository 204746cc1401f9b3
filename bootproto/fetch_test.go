package bootproto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestStreamContent fetches content of every form and of many sizes with one request.
func TestStreamContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "content")
	content := make([]byte, 1<<20+17)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	files := newExtendedTree()
	files.fetch = func(name string, _ bool) (Content, error) {
		kind, number, _ := strings.Cut(name, "/")
		size, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return Content{}, syscall.ENOENT
		}
		packed := strings.HasPrefix(kind, "packed")
		if strings.HasSuffix(kind, "data") {
			return Content{Data: content[:size], Packed: packed}, nil
		}
		file, err := os.Open(path)
		if strings.HasSuffix(kind, "reader") {
			return Content{Reader: struct{ io.ReadCloser }{file}, Size: size, Packed: packed}, err
		}
		return Content{Reader: file, Size: size, Packed: packed}, err
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	opensOn(t, conn)
	var paths []string
	var want []byte
	for round := range 2 {
		for _, size := range []int{0, 1, 4096, 20<<10 + round, 32<<10 + 1, 300 << 10, len(content)} {
			for _, kind := range []string{"data", "packed data", "file", "packed reader", "reader", "data"} {
				path := fmt.Sprint(kind, "/", size)
				paths = append(paths, path, "missing")
				want = append(appendFile(want, []byte(path), strings.HasPrefix(kind, "packed"), int64(size)), content[:size]...)
				want = appendFileError(want, []byte("missing"), "enoent")
			}
		}
	}
	want = appendDone(want, len(paths))
	send(t, conn, askFetch(paths...))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("what came differs")
	}
	if got := exchange(t, conn, ask("get", "/bin/start.boot")); got != `{get,{ok,<<"boot">>}}` {
		t.Error(got)
	}
}

// TestStreamMany fetches the most that one request may ask for: all too many for one batch.
func TestStreamMany(t *testing.T) {
	files := newExtendedTree()
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	opensOn(t, conn)
	var paths, want []string
	for i := range MaxFetch {
		paths = append(paths, []string{"bin/start.boot", "bin/empty", "none", "lib/big"}[i%4])
		want = append(want, []string{`<<"boot">>`, `<<"">>`, `{error,eisdir}`, `<<"` + strings.Repeat("big.", 50) + `"...>>`}[i%4])
	}
	send(t, conn, askFetch(paths...))
	for i, path := range paths {
		expectReplies(t, conn, fmt.Sprintf(`{eboot_file,<<"%s">>,%s}`, path, want[i]))
	}
	expectReplies(t, conn, fmt.Sprintf(`{eboot_done,%d}`, MaxFetch))
	if stats := s.Stats(); stats.Fetched != MaxFetch*3/4 {
		t.Errorf("stats: %+v", stats)
	}
}

// TestPlanIsBounded: a slave gets no more of a plan than it could have asked for.
func TestPlanIsBounded(t *testing.T) {
	files := newExtendedTree()
	files.opened.Plan = make([]string, MaxFetch+1)
	for i := range files.opened.Plan {
		files.opened.Plan[i] = "bin/empty"
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	if got, want := exchange(t, conn, askOpen(false, "plan")), `<<"bin/empty">>`; strings.Count(got, want) != MaxFetch {
		t.Errorf("a plan of %d files", strings.Count(got, want))
	}
	for range MaxFetch {
		expectReplies(t, conn, `{eboot_file,<<"bin/empty">>,<<"">>}`)
	}
	expectReplies(t, conn, fmt.Sprintf(`{eboot_done,%d}`, MaxFetch))
}

// TestStreamWrites: the files of a stream go with few system calls, and large ones by
// sendfile(2).
func TestStreamWrites(t *testing.T) {
	if n := len(regexp.MustCompile(`(?m)write[v(]`).FindAll(traced(t, "write,writev", "TestPlanIsBounded"), -1)); n < 3 || n > MaxFetch/4 {
		t.Errorf("%d writes for %d small files", n, MaxFetch)
	}
	if n := len(regexp.MustCompile(`(?m)sendfile.* = \d+$`).FindAll(traced(t, "sendfile", "TestStreamContent"), -1)); n == 0 {
		t.Error("no call of sendfile")
	}
}

// TestPipelining sends several requests before any reply is read, in pieces of any size.
func TestPipelining(t *testing.T) {
	_, addr := startFiles(t, FileServerOptions{Host: newExtendedTree()})
	all := bytes.Join([][]byte{
		ask("get", "/bin/start.boot"), askOpen(false, "plan"), askFetch("bin/empty", "none"), askReport("started", 5),
		ask("get", "/nothing"), askReport("x", 6), askFetch("bin/start.boot"), askOpen(true), ask("list_dir", "/none"),
	}, nil)
	for size := 1; size <= 2*len(all); size *= 3 {
		conn := dial(t, addr)
		var writing sync.WaitGroup
		writing.Go(func() {
			for rest := all; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				if _, err := conn.Write(rest[:min(size, len(rest))]); err != nil {
					return // the reader sees it
				}
			}
		})
		expectReplies(t, conn,
			`{get,{ok,<<"boot">>}}`, openedText+`,{plan,[<<"bin/start.boot">>,<<"nothing">>]}]}}`,
			`{eboot_file,<<"bin/start.boot">>,<<"boot">>}`, `{eboot_file,<<"nothing">>,{error,enoent}}`, `{eboot_done,2}`,
			`{eboot_file,<<"bin/empty">>,<<"">>}`, `{eboot_file,<<"none">>,{error,eisdir}}`, `{eboot_done,2}`,
			`{get,{error,enoent}}`, `{eboot_file,<<"bin/start.boot">>,<<"boot">>}`, `{eboot_done,1}`, openedText+`]}}`, `{list_dir,{ok,[]}}`)
		writing.Wait()
		_ = conn.Close()
	}
}

// TestStreamCannotServeNow: what was fetched before is sent, then the connection ends.
func TestStreamCannotServeNow(t *testing.T) {
	files := newExtendedTree()
	closed := make(chan struct{}, 1)
	files.fetch = func(name string, _ bool) (Content, error) {
		switch name {
		case "good":
			return Content{Data: []byte("good")}, nil
		case "long":
			return Content{Reader: closing{strings.NewReader("x"), closed}, Size: 1 << 33}, nil
		case "short":
			return Content{Reader: closing{strings.NewReader("x"), closed}, Size: 2}, nil
		}
		return Content{}, errNotNow
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	for i, c := range []struct {
		name   string
		reason error
		rest   int // bytes that come after the good file
	}{{"damaged", errNotNow, 0}, {"long", errFrameLimit, 0}, {"short", errWrongSize, len(appendFile(nil, []byte("short"), false, 2))}} {
		conn := dial(t, addr)
		opensOn(t, conn)
		send(t, conn, askFetch("good", c.name, "good"))
		expectReplies(t, conn, `{eboot_file,<<"good">>,<<"good">>}`)
		if rest, err := io.ReadAll(conn); err != nil || len(rest) != c.rest {
			t.Errorf("%s: read %q, %v; want %d bytes", c.name, rest, err, c.rest)
		}
		if c.name != "damaged" {
			<-closed
		}
		eventually(t, "the session is closed with the reason", func() bool {
			ended := files.ended()
			return len(ended) == i+1 && errors.Is(ended[i], c.reason)
		})
	}
}

// closing is a reader that tells when it is closed.
type closing struct {
	io.Reader
	closed chan<- struct{}
}

func (c closing) Close() error {
	c.closed <- struct{}{}
	return nil
}

// TestStreamCut: the slave goes away in the middle of a stream, or is denied in it.
func TestStreamCut(t *testing.T) {
	files := newExtendedTree()
	content := bytes.Repeat([]byte("x"), 1<<20)
	files.fetch = func(string, bool) (Content, error) { return Content{Data: content}, nil }
	s, addr := startFiles(t, FileServerOptions{Host: files})
	begin := func() *net.TCPConn {
		conn := dial(t, addr)
		opensOn(t, conn)
		send(t, conn, askFetch(make([]string, MaxFetch)...))
		if _, err := io.ReadFull(conn, make([]byte, 3<<20)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	gone, denied := begin(), begin()
	_ = gone.Close()
	eventually(t, "the connection has ended with its slave", func() bool { return s.Stats().Connections == 1 })
	files.denied.Store(true)
	s.Recheck()
	eventually(t, "the connection has ended with the permission", func() bool { return s.Stats().Connections == 0 })
	if _, err := io.Copy(io.Discard, denied); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if ended := files.ended(); len(ended) != 2 || ended[0] == nil || ended[1] == nil {
		t.Errorf("ended with %v", ended)
	}
}

// TestStreamProgress reads a stream slowly, as TestProgressTimeout does a reply.
func TestStreamProgress(t *testing.T) {
	for _, c := range []struct {
		rate  int // bytes a second
		reads bool
	}{{4 << 10, true}, {512, false}} {
		files := newExtendedTree()
		content := bytes.Repeat([]byte("x"), 200<<10)
		files.fetch = func(string, bool) (Content, error) { return Content{Data: content}, nil }
		inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, _ *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
			conn := ln.dial()
			defer conn.Close()
			opensOn(t, conn)
			send(t, conn, askFetch("a", "b", "c"))
			taken, piece, want := 0, make([]byte, c.rate), 3*len(content)
			var err error
			for ; taken < want && err == nil; pass(time.Second) {
				var n int
				n, err = io.ReadFull(conn, piece)
				taken += n
			}
			if c.reads != (err == nil) {
				t.Errorf("%d bytes a second: %v after %d bytes", c.rate, err, taken)
			}
			_ = conn.Close()
			synctest.Wait()
			if ended := files.ended(); !c.reads && (len(ended) != 1 || !errors.Is(ended[0], errProgress)) {
				t.Errorf("ended with %v", ended)
			}
		})
	}
}

// TestPack: packed content is asked for when the slave found the link slow, and as soon as
// the server did.
func TestPack(t *testing.T) {
	files := newExtendedTree()
	var packed, plain atomic.Int32
	content := bytes.Repeat([]byte("x"), 1<<20)
	files.fetch = func(_ string, pack bool) (Content, error) {
		if pack {
			packed.Add(1)
			return Content{Data: []byte("x"), Packed: true}, nil
		}
		plain.Add(1)
		return Content{Data: content}, nil
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	send(t, conn, askOpen(true))
	readReply(t, conn)
	send(t, conn, askFetch("a"))
	expectReplies(t, conn, `{eboot_file,<<"a">>,{packed,<<"x">>}}`, `{eboot_done,1}`)
	if plain.Load() != 0 {
		t.Error("content that was not packed for a slave that found the link slow")
	}

	conn = dial(t, addr)
	if err := conn.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	opensOn(t, conn)
	send(t, conn, askFetch(make([]string, 100)...))
	packed.Store(0)
	for range 100 { // 10 MB a second at most
		frame, err := readPacket(conn)
		if err != nil {
			t.Fatal(err)
		}
		if len(frame) > 1<<20 {
			<-time.After(100 * time.Millisecond)
		}
	}
	expectReplies(t, conn, `{eboot_done,100}`)
	if plain.Load() == 0 || packed.Load() == 0 {
		t.Errorf("%d files plain, %d packed; the first must be plain, and the last packed", plain.Load(), packed.Load())
	}
	opensOn(t, conn) // which does not make the link a fast one
	send(t, conn, askFetch("a"))
	expectReplies(t, conn, `{eboot_file,<<"a">>,{packed,<<"x">>}}`, `{eboot_done,1}`)
}
