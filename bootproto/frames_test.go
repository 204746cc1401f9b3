package bootproto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// planOf is a host with a plan of n files, which differ, in Frames, and what a slave must get
// for it. A file that is fetched all the same, because the link was found slow, is the same.
func planOf(t testing.TB, n, size int) (files *extendedTree, want []byte) {
	t.Helper()
	files = newExtendedTree()
	files.opened.Tree, files.opened.Plan = nil, nil
	for i := range n {
		path := fmt.Sprint("lib/", i)
		files.opened.Plan = append(files.opened.Plan, path)
		want = append(append(want, appendFile(nil, []byte(path), false, int64(size))...), contentOf(path, size)...)
	}
	files.fetch = func(path string, _ bool) (Content, error) { return Content{Data: contentOf(path, size)}, nil }
	frames, err := EncodeFrames(files.opened.Plan, func(path string) (Content, error) { return files.fetch(path, false) })
	if err != nil {
		t.Fatal(err)
	}
	if frames.Size() != int64(len(want)) {
		t.Fatalf("frames of %d bytes, want %d", frames.Size(), len(want))
	}
	files.opened.Frames = frames
	return files, append(want, appendDone(nil, n)...)
}

// contentOf is size bytes that no other path has, and no zeros, which keep-alives are made of.
func contentOf(path string, size int) []byte {
	return bytes.Repeat([]byte(path+";"), size/len(path)+1)[:size]
}

// opensPlan sends a request for a session with a plan, and reads the reply up to the files.
func opensPlan(t testing.TB, conn io.ReadWriter) {
	t.Helper()
	if _, err := conn.Write(askOpen(false, "plan")); err != nil {
		t.Fatal(err)
	}
	if got, _ := readReply(t, conn); !strings.HasPrefix(got, "{eboot_open,{ok,") {
		t.Fatal(got)
	}
}

// TestFrames: a plan in frames comes as if its files were fetched.
func TestFrames(t *testing.T) {
	for _, c := range []struct{ files, size int }{{1, 0}, {1, 1}, {3, 4095}, {200, 36 << 10}, {7, 1 << 20}, {MaxFetch, 10}} {
		files, want := planOf(t, c.files, c.size)
		s, addr := startFiles(t, FileServerOptions{Host: files})
		conn := dial(t, addr)
		opensPlan(t, conn)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d files of %d bytes: what came differs", c.files, c.size)
		}
		before := int64(len(appendPlan(appendOpened(nil, Open{Plan: true}, files.opened), Open{Plan: true}, files.opened)))
		eventually(t, "the session is told what was sent", func() bool {
			files.tree.mu.Lock()
			defer files.tree.mu.Unlock()
			return files.sent == before+int64(len(want))
		})
		if got := exchange(t, conn, ask("get", "/bin/start.boot")); got != `{get,{ok,<<"boot">>}}` {
			t.Error(got)
		}
		if stats := s.Stats(); stats.Fetched != uint64(c.files) || stats.BytesSent < uint64(len(want)) {
			t.Errorf("stats: %+v", stats)
		}
	}
}

// TestFramesAreSentByTheKernel: no process copies them.
func TestFramesAreSentByTheKernel(t *testing.T) {
	sent := 0
	for _, match := range regexp.MustCompile(`(?m)sendfile.* = (\d+)$`).FindAllSubmatch(traced(t, "sendfile", "TestFrames"), -1) {
		n, err := strconv.Atoi(string(match[1]))
		if err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	if sent < 2<<20 { // of 14 MiB: the rest is fetched when this is found to be slow
		t.Errorf("sendfile sent %d bytes", sent)
	}
}

// TestFramesBesideFiles: what is not in the frames follows them, and frames of more files than
// the plan are none of it.
func TestFramesBesideFiles(t *testing.T) {
	files, want := planOf(t, 3, 1000)
	want = want[:files.opened.Frames.Size()]
	want = append(append(want, appendFile(nil, []byte("more"), false, 4)...), "more"...)
	want = append(appendFileError(want, []byte("none"), "enoent"), appendDone(nil, 5)...)
	files.opened.Plan = append(files.opened.Plan, "more", "none")
	files.fetch = func(path string, _ bool) (Content, error) {
		if path == "none" {
			return Content{}, syscall.ENOENT
		}
		return Content{Data: []byte(path)}, nil
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	opensPlan(t, conn)
	if err := readExactly(conn, want, 1<<10); err != nil {
		t.Error(err)
	}

	fewer, _ := planOf(t, 3, 1000)
	fewer.opened.Plan, fewer.fetch = fewer.opened.Plan[:2], files.fetch
	_, addr = startFiles(t, FileServerOptions{Host: fewer})
	conn = dial(t, addr)
	opensPlan(t, conn)
	expectReplies(t, conn, `{eboot_file,<<"lib/0">>,<<"lib/0">>}`, `{eboot_file,<<"lib/1">>,<<"lib/1">>}`, `{eboot_done,2}`)
}

// TestFramesOfSeveral: slaves that are slow, each in its own way, one that is not, and one that
// goes away share the frames.
func TestFramesOfSeveral(t *testing.T) {
	files, want := planOf(t, 200, 36<<10)
	s, addr := startFiles(t, FileServerOptions{Host: files})
	begin := func() *net.TCPConn {
		conn := dial(t, addr)
		if err := conn.SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		opensPlan(t, conn)
		return conn
	}
	gone := begin()
	if _, err := io.ReadFull(gone, make([]byte, 100<<10)); err != nil {
		t.Error(err)
	}
	var slaves sync.WaitGroup
	for _, pace := range []struct {
		piece int
		pause time.Duration
	}{{300 << 10, 10 * time.Millisecond}, {2 << 20, 2 * keepAliveAfter}, {len(want), 0}} {
		conn := begin()
		slaves.Go(func() {
			got, piece := make([]byte, 0, len(want)), make([]byte, pace.piece)
			for len(got) < len(want) {
				n, err := io.ReadFull(conn, piece[:min(len(piece), len(want)-len(got))])
				if got = append(got, piece[:n]...); err != nil {
					t.Errorf("%v after %d bytes", err, len(got))
					return
				}
				<-time.After(pace.pause)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("what came in pieces of %d bytes differs", pace.piece)
			}
		})
	}
	slaves.Wait()
	_ = gone.Close()
	eventually(t, "the connection has ended with its slave", func() bool { ended := files.ended(); return len(ended) == 1 && ended[0] != nil })
	files.denied.Store(true)
	s.Recheck()
	eventually(t, "all connections have ended", func() bool { return s.Stats().Connections == 0 })
	frames := files.opened.Frames
	if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", frames.file.Fd())); err != nil || !strings.Contains(to, framesName) {
		t.Errorf("the frames are at %q, %v", to, err)
	}
	inode := inodeOf(t, frames.file)
	if n := descriptorsOf(t, inode); n != 1 {
		t.Errorf("%d descriptors of the frames, want one", n)
	}
	frames, files.opened.Frames = nil, nil
	eventually(t, "the frames are closed", func() bool { runtime.GC(); return descriptorsOf(t, inode) == 0 })
}

// inodeOf returns the number of a file; there is no other like it while the file is open.
func inodeOf(t testing.TB, file *os.File) uint64 {
	t.Helper()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// descriptorsOf counts those of the frames with an inode.
func descriptorsOf(t testing.TB, inode uint64) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, e := range entries {
		name := "/proc/self/fd/" + e.Name()
		to, err := os.Readlink(name)
		info, statErr := os.Stat(name)
		if err == nil && statErr == nil && strings.Contains(to, framesName) && info.Sys().(*syscall.Stat_t).Ino == inode {
			count++
		}
	}
	return count
}

// TestFramesOnASlowLink: the frames stop at the end of one, and what is left goes packed.
func TestFramesOnASlowLink(t *testing.T) {
	const n, size = 400, 36 << 10
	files, _ := planOf(t, n, size)
	files.fetch = func(_ string, pack bool) (Content, error) {
		if !pack {
			return Content{}, errNotNow
		}
		return Content{Data: []byte("x"), Packed: true}, nil
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	if err := conn.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	opensPlan(t, conn)
	<-time.After(time.Second) // the server waits for the slave meanwhile
	plain := 0
	for i := range n {
		frame, err := readPacket(conn)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case len(frame) < size:
		case plain < i:
			t.Fatalf("file %d came plain after only %d", i, plain)
		default:
			plain++
		}
	}
	expectReplies(t, conn, fmt.Sprintf(`{eboot_done,%d}`, n))
	if plain == n {
		t.Error("all files came plain")
	}

	conn = dial(t, addr) // a slave that knows already that its link is slow
	send(t, conn, askOpen(true, "plan"))
	readReply(t, conn)
	if reply, _ := readReply(t, conn); reply != `{eboot_file,<<"lib/0">>,{packed,<<"x">>}}` {
		t.Errorf("%.100s", reply)
	}
}

// TestFramesProgress reads frames slowly, as TestProgressTimeout does a reply, over a
// connection that no file can be sent to.
func TestFramesProgress(t *testing.T) {
	for _, c := range []struct {
		rate  int // bytes a second
		reads bool
	}{{4 << 10, true}, {512, false}} {
		files, want := planOf(t, 3, 100<<10)
		inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, _ *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
			conn := ln.dial()
			defer conn.Close()
			opensPlan(t, conn)
			var got []byte
			var err error
			for piece := make([]byte, c.rate); len(got) < len(want) && err == nil; pass(time.Second) {
				var n int
				n, err = io.ReadFull(conn, piece[:min(len(piece), len(want)-len(got))])
				got = append(got, piece[:n]...)
			}
			if c.reads != (err == nil) || !bytes.HasPrefix(want, got) {
				t.Errorf("%d bytes a second: %v after %d bytes", c.rate, err, len(got))
			}
			_ = conn.Close()
			synctest.Wait()
			if ended := files.ended(); !c.reads && (len(ended) != 1 || !errors.Is(ended[0], errProgress)) {
				t.Errorf("ended with %v", ended)
			}
		})
	}
}

// TestFramesBetweenKeepAlives: keep-alives may be tried at any time, and one that was written in
// part is ended before the first frame.
func TestFramesBetweenKeepAlives(t *testing.T) {
	files, want := planOf(t, 200, 36<<10)
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	opensOn(t, conn)
	eventually(t, "the session is open", func() bool { return s.Stats().Opens == 1 })
	c := s.connections(nil)[0]
	var hammer sync.WaitGroup
	over := make(chan struct{})
	hammer.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				c.keepAlive()
			}
		}
	})
	for range 5 {
		opensPlan(t, conn)
		if err := readExactly(conn, want, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	close(over)
	hammer.Wait()
	if s.Stats().KeepAlives == 0 {
		t.Error("no keep-alive was sent: nothing was tried")
	}
	eventually(t, "the connection waits for nothing", func() bool { return !c.busy.Load() })
	c.slow = false // it may have been found so, on a busy machine
	small, want := planOf(t, 3, 1000)
	frames := small.opened.Frames
	for owed := 1; owed < headerSize; owed++ {
		c.turn.Lock()
		if _, err := c.conn.Write(emptyFrame[owed:]); err != nil {
			t.Fatal(err)
		}
		c.owed = owed
		c.turn.Unlock()
		var sending sync.WaitGroup
		sending.Go(func() {
			if sent, count, err := c.sendFrames(frames, 3); err != nil || count != 3 || sent != frames.Size() {
				t.Errorf("sent %d files of %d bytes: %v", count, sent, err)
			}
		})
		if frame, err := readPacket(conn); err != nil || len(frame) > 0 {
			t.Errorf("% x, %v; want an empty frame", frame, err)
		}
		if err := readExactly(conn, want[:frames.Size()], 64<<10); err != nil {
			t.Errorf("%d bytes owed: %v", owed, err)
		}
		sending.Wait()
	}
}

// TestEncodeFrames: contents of every form, and files that cannot be had.
func TestEncodeFrames(t *testing.T) {
	content := contentOf("content", 300<<10)
	closed := make(chan struct{}, 1)
	get := func(path string) (Content, error) {
		reader := closing{bytes.NewReader(content), closed}
		switch path {
		case "data":
			return Content{Data: content, Packed: true}, nil
		case "reader":
			return Content{Reader: reader, Size: int64(len(content))}, nil
		case "short":
			return Content{Reader: reader, Size: int64(len(content)) + 1}, nil
		case "long":
			return Content{Reader: reader, Size: 1 << 33}, nil
		}
		return Content{}, errNotNow
	}
	frames, err := EncodeFrames([]string{"data", "reader"}, get)
	if err != nil {
		t.Fatal(err)
	}
	<-closed
	want := append(appendFile(nil, []byte("data"), true, int64(len(content))), content...)
	want = append(append(want, appendFile(nil, []byte("reader"), false, int64(len(content)))...), content...)
	for range 2 { // each with an offset of its own
		file, err := frames.open()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if got, err := io.ReadAll(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	if _, err := frames.file.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("what slaves are sent can be changed: %v", err)
	}
	if err := frames.file.Truncate(1); !errors.Is(err, syscall.EPERM) {
		t.Errorf("what slaves are sent can be cut short: %v", err)
	}
	for path, want := range map[string]error{"short": io.EOF, "long": errFrameLimit, "none": errNotNow} {
		if frames, err := EncodeFrames([]string{"data", path}, get); frames != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if path != "none" {
			<-closed
		}
	}
	if empty, err := EncodeFrames(nil, get); err != nil || empty.Size() != 0 {
		t.Errorf("no files: %v", err)
	}
}
