package bootproto

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/bootproto/etf"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// startFiles serves files on loopback until the test ends, and returns the
// address.
func startFiles(t testing.TB, options FileServerOptions) (*FileServer, string) {
	t.Helper()
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	s := NewFileServer(options)
	serveUntilCleanup(t, s, ln)
	return s, ln.Addr().String()
}

func serveUntilCleanup(t testing.TB, s *FileServer, ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, "13.1.5") }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// packet puts the header before a frame.
func packet(frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

// ask is a request with a name, as OTP 26 and later write it.
func ask(op, name string) []byte {
	return packet(etf.AppendName(etf.AppendAtom(etf.AppendTuple([]byte{etf.Version}, 2), op), name))
}

func readPacket(r io.Reader) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(header[:]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

// exchange sends one packet and returns the reply as Erlang writes it.
func exchange(t testing.TB, conn io.ReadWriter, request []byte) string {
	t.Helper()
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	reply, err := readPacket(conn)
	if err != nil {
		t.Fatalf("reply to % x: %v", request, err)
	}
	text, err := etf.Format(reply)
	if err != nil {
		t.Fatalf("reply to % x: % x: %v", request, reply, err)
	}
	return text
}

// eventually polls until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func TestRequests(t *testing.T) {
	files := newTree()
	s, addr := startFiles(t, FileServerOptions{Host: files, Logger: testLogger(t)})
	conn := dial(t, addr)
	term := func(parts ...any) []byte {
		b := []byte{etf.Version}
		for _, p := range parts {
			switch p := p.(type) {
			case int:
				b = append(b, byte(p))
			case string:
				b = append(b, p...)
			}
		}
		return packet(b)
	}
	for _, c := range []struct {
		request []byte
		want    string
	}{
		{ask("get", "/bin/start.boot"), `{get,{ok,<<"boot">>}}`},
		{ask("get", "/bin/empty"), `{get,{ok,<<"">>}}`},
		{ask("get", "/lib/é"), `{get,{ok,<<"accent">>}}`},
		{ask("get", "/lib/日本"), `{get,{ok,<<"Japan">>}}`},
		{ask("get", "/nothing"), `{get,{error,enoent}}`},
		{ask("get", "/bin"), `{get,{error,eisdir}}`},
		{ask("get", ""), `{get,{error,eisdir}}`},
		{ask("get", "a\x00b"), `{get,{error,badarg}}`},
		{ask("list_dir", "/lib"), `{list_dir,{ok,["big","\x{e9}",[26085,26412]]}}`},
		{ask("list_dir", "/none"), `{list_dir,{ok,[]}}`},
		{ask("list_dir", "/bin/empty"), `{list_dir,{error,enotdir}}`},
		{ask("read_file_info", "/lib/é"), `{read_file_info,{ok,{file_info,6,regular,read,{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},33188,1,0,0,0,0,0}}}`},
		{ask("read_file_info", "/bin/start.boot"), `{read_file_info,{ok,{file_info,4,regular,read,{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},33261,1,0,0,0,0,0}}}`},
		{ask("read_link_info", "/bin"), `{read_link_info,{ok,{file_info,4096,directory,read,{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},{{2025,11,22},{17,34,56}},16877,1,0,0,0,0,0}}}`},
		{ask("read_link_info", "/link"), `{read_link_info,{ok,{file_info,3,symlink,read,{{1970,1,1},{0,0,0}},{{1970,1,1},{0,0,0}},{{1970,1,1},{0,0,0}},41471,1,0,0,0,0,0}}}`},
		{ask("read_file_info", "/link"), `{read_file_info,{error,enoent}}`},
		{ask("get_cwd", "C:"), `{get_cwd,{error,enotsup}}`},
		{ask("get_cwd", "z:"), `{get_cwd,{error,enotsup}}`},
		{ask("get_cwd", "1:"), `{get_cwd,{error,einval}}`},
		{ask("get_cwd", "C:/"), `{get_cwd,{error,einval}}`},
		{ask("get_cwd", ""), `{get_cwd,{error,badarg}}`},
		{term(119, 7, "get_cwd"), `{get_cwd,{ok,"/opt/erl\x{e4}ng"}}`},
		{term(100, 0, 7, "get_cwd"), `{get_cwd,{ok,"/opt/erl\x{e4}ng"}}`},
		{term(104, 2, 119, 7, "get_cwd", 119, 1, "C"), `{get_cwd,{error,badarg}}`},
		{term(104, 2, 119, 7, "get_cwd", 108, 0, 0, 0, 1, 98, 255, 255, 255, 253, 106), `{get_cwd,{error,einval}}`},
		{term(104, 2, 100, 0, 3, "get", 107, 0, 15, "/bin/start.boot"), `{get,{ok,<<"boot">>}}`},
		{term(104, 2, 115, 3, "get", 108, 0, 0, 0, 1, 97, "/", 107, 0, 14, "bin/start.boot"), `{get,{ok,<<"boot">>}}`},
		{term(105, 0, 0, 0, 2, 118, 0, 3, "get", 107, 0, 15, "/bin/start.boot", 1, 2, 3), `{get,{ok,<<"boot">>}}`},
		{term(104, 2, 119, 3, "get", 109, 0, 0, 0, 15, "/bin/start.boot"), `{get,{error,badarg}}`},
		{term(104, 2, 119, 14, "read_file_info", 119, 1, "a"), `{read_file_info,{error,badarg}}`},
		{term(104, 2, 119, 8, "list_dir", 97, 1), `{list_dir,{error,badarg}}`},
		{term(104, 3, 119, 3, "get", 106, 106), `{error,unknown_command}`},
		{term(104, 2, 119, 4, "frob", 106), `{error,unknown_command}`},
		{term(119, 3, "get"), `{error,unknown_command}`},
		{term(104, 2, 107, 0, 3, "get", 106), `{error,unknown_command}`},
		{term(97, 1), `{error,unknown_command}`},
		{term(104, 2, 119, 3, "get"), `{error,badarg}`},
		{term(104, 2, 119, 3, "get", 108, 255, 255, 255, 255, 106), `{error,badarg}`},
		{term(104, 2, 119, 4, "frob", 80, 0, 0, 0, 1), `{error,badarg}`},
		{term(80, 0, 0, 0, 1, 0x78, 0x9c), `{error,badarg}`},
		{term(), `{error,badarg}`},
		{packet(nil), `{error,badarg}`},
		{packet([]byte("junk")), `{error,badarg}`},
	} {
		if got := exchange(t, conn, c.request); got != c.want {
			text, _ := etf.Format(c.request[4:])
			t.Errorf("%s\n got %s\nwant %s", text, got, c.want)
		}
	}
	stats := s.Stats()
	if stats.Connections != 1 || stats.Accepted != 1 || stats.Requests < 40 || stats.Errors < 20 || stats.Malformed < 5 {
		t.Errorf("stats: %+v", stats)
	}
	files.mu.Lock()
	defer files.mu.Unlock()
	if stats.BytesSent == 0 || uint64(files.sent) > stats.BytesSent {
		t.Errorf("%d bytes sent, the session was told of %d", stats.BytesSent, files.sent)
	}
}

func TestCannotServeNowClosesWithoutReply(t *testing.T) {
	files := newTree()
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	if _, err := conn.Write(ask("get", "/damaged")); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Fatalf("read %q, %v; want the end", rest, err)
	}
	eventually(t, "the session is closed with the reason", func() bool {
		ended := files.ended()
		return len(ended) == 1 && errors.Is(ended[0], errNotNow)
	})
}

func TestLargeFrames(t *testing.T) {
	files := newTree()
	long := "/" + strings.Repeat("x", MaxFrame-11-1)
	files.files[long] = Content{Data: []byte("long")}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	if request := ask("get", long); len(request) != headerSize+MaxFrame {
		t.Fatalf("a frame of %d bytes", len(request)-headerSize)
	}
	for range 2 {
		if got := exchange(t, conn, ask("get", long)); got != `{get,{ok,<<"long">>}}` {
			t.Error(got)
		}
		if got := exchange(t, conn, ask("get", "/bin/start.boot")); got != `{get,{ok,<<"boot">>}}` {
			t.Error(got)
		}
	}
	if _, err := conn.Write([]byte{0, 1, 0, 1, etf.Version}); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("a frame of 64 KiB + 1 was answered with %d bytes", n)
	}
	eventually(t, "the session is closed with the reason", func() bool {
		ended := files.ended()
		return len(ended) == 1 && errors.Is(ended[0], errTooLong)
	})
}

// TestChunks sends glued and split requests.
func TestChunks(t *testing.T) {
	_, addr := startFiles(t, FileServerOptions{Host: newTree()})
	conn := dial(t, addr)
	all := bytes.Join([][]byte{ask("get", "/bin/start.boot"), ask("get", "/"+strings.Repeat("x", 3000)), ask("list_dir", "/none"), packet(nil)}, nil)
	for size := 1; size <= len(all); size = size*3/2 + 1 {
		go func() {
			for rest := all; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				if _, err := conn.Write(rest[:min(size, len(rest))]); err != nil {
					return // the reader sees it
				}
			}
		}()
		for _, want := range []string{`{get,{ok,<<"boot">>}}`, `{get,{error,enoent}}`, `{list_dir,{ok,[]}}`, `{error,badarg}`} {
			reply, err := readPacket(conn)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := etf.Format(reply); got != want {
				t.Fatalf("chunks of %d: %s, %v; want %s", size, got, err, want)
			}
		}
	}
}

// TestContent reads content of every form and of many sizes.
func TestContent(t *testing.T) {
	files := newTree()
	path := filepath.Join(t.TempDir(), "content")
	content := make([]byte, 3<<20+17)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sizes := []int64{0, 1, 4096, 32<<10 + 1, int64(len(content))}
	for _, size := range sizes {
		files.files[fmt.Sprint("/data/", size)] = Content{Data: content[:size]}
	}
	files.open = func(name string) (io.ReadCloser, int64, error) {
		file, err := os.Open(path)
		if err != nil {
			return nil, 0, err
		}
		kind, number, _ := strings.Cut(name[1:], "/")
		size, err := strconv.ParseInt(number, 10, 64)
		if kind == "reader" {
			return struct{ io.ReadCloser }{file}, size, err
		}
		return file, size, err
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	for _, size := range sizes {
		for _, kind := range []string{"data", "file", "reader"} {
			if _, err := conn.Write(ask("get", fmt.Sprintf("/%s/%d", kind, size))); err != nil {
				t.Fatal(err)
			}
			reply, err := readPacket(conn)
			if err != nil {
				t.Fatal(err)
			}
			want := appendContentHeader(nil, size)[headerSize:]
			if !bytes.Equal(reply, append(want, content[:size]...)) {
				t.Errorf("%s of %d bytes: a reply of %d bytes that differs", kind, size, len(reply))
			}
		}
	}
	short := len(content) + 1
	for _, name := range []string{fmt.Sprint("/file/", short), fmt.Sprint("/reader/", short), fmt.Sprint("/file/", maxContent+1)} {
		conn := dial(t, addr)
		if _, err := conn.Write(ask("get", name)); err != nil {
			t.Fatal(err)
		}
		if reply, err := readPacket(conn); err == nil {
			t.Errorf("%s: a whole reply of %d bytes", name, len(reply))
		}
	}
}

func TestLimits(t *testing.T) {
	files := newTree()
	s, addr := startFiles(t, FileServerOptions{Host: files, ConnectionsPerAddress: 2, Connections: 3, Quiet: time.Millisecond})
	first := dial(t, addr)
	for _, conn := range []net.Conn{first, dial(t, addr)} {
		exchange(t, conn, ask("get", "/"))
	}
	if !s.Full(loopback) || s.Full(netip.MustParseAddr("127.0.0.2")) {
		t.Error("two of two connections from 127.0.0.1 are open, and it is not full, or another address is")
	}
	if _, err := dial(t, addr).Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the third connection of an address: %v", err)
	}
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := other.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exchange(t, conn, ask("get", "/"))
	if !s.Full(netip.MustParseAddr("127.0.0.3")) {
		t.Error("three of three connections are open, and it is not full")
	}
	_ = first.Close()
	eventually(t, "there is room again", func() bool { return !s.Full(loopback) })
	if stats := s.Stats(); stats.Rejected != 1 || stats.Connections != 2 {
		t.Errorf("stats: %+v", stats)
	}
}

func TestRecheck(t *testing.T) {
	files := newTree()
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	exchange(t, conn, ask("get", "/"))
	s.Recheck()
	exchange(t, conn, ask("get", "/"))
	files.denied.Store(true)
	s.Recheck()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection of a denied slave: %v, want the end", err)
	}
	if _, err := dial(t, addr).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a new connection of a denied slave: %v, want the end", err)
	}
	eventually(t, "nothing is open", func() bool { return s.Stats().Connections == 0 })
	if ended := files.ended(); len(ended) != 1 || ended[0] == nil || ended[0].Error() != "no longer in the whitelist" {
		t.Errorf("reasons: %v", ended)
	}
	if stats := s.Stats(); stats.Denied != 2 {
		t.Errorf("stats: %+v", stats)
	}
}

// failing is a listener that fails before each connection.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return f.Listener.Accept()
}

func TestAcceptSurvives(t *testing.T) {
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	s := NewFileServer(FileServerOptions{Host: newTree()})
	serveUntilCleanup(t, s, &failing{ln, []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED}})
	exchange(t, dial(t, ln.Addr().String()), ask("get", "/"))
}

func TestServeReturnsWhenTheListenerIsClosed(t *testing.T) {
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := NewFileServer(FileServerOptions{Host: newTree()}).Serve(t.Context(), ln, ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want net.ErrClosed", err)
	}
}

func TestListenErrors(t *testing.T) {
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := ListenFiles(ln.Addr().(*net.TCPAddr).AddrPort()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, want EADDRINUSE", err)
	}
	if _, err := ListenFiles(netip.MustParseAddrPort("[::1]:0")); err == nil {
		t.Error("listens on IPv6")
	}
	if _, err := ListenDiscovery(netip.MustParseAddr("::1")); err == nil {
		t.Error("listens for discovery on IPv6")
	}
	udp, err := listenDiscovery(loopback, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, err := udp.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("127.255.255.255:9")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a broadcast: %v, want EACCES", err)
	}
	if _, err := listenDiscovery(loopback, udp.LocalAddr().(*net.UDPAddr).Port); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v, want EADDRINUSE", err)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	files := newTree()
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	reply := make([]byte, 1<<20)
	for _, name := range []string{"/usr/lib/erlang/lib/kernel-8.5.3/ebin/missing.beam", "/bin/start.boot", "/lib/big"} {
		request := ask("get", name)
		allocs := testing.AllocsPerRun(200, func() {
			_, err := conn.Write(request)
			if err == nil {
				_, err = io.ReadFull(conn, reply[:headerSize])
			}
			if err == nil {
				_, err = io.ReadFull(conn, reply[:binary.BigEndian.Uint32(reply)])
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		if allocs >= 1 {
			t.Errorf("%s: %v allocations a request", name, allocs)
		}
	}
}
