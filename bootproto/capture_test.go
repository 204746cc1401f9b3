package bootproto

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot/bootproto/etf"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "record testdata/*.wire again: a stock node booting from erl_boot_server; needs erl and root")

// The recorded runs of a stock node, and the arguments that make them.
var captures = map[string][]string{
	"interactive": {"-s", "init", "stop"},
	"embedded":    {"-mode", "embedded", "-s", "init", "stop"},
	"loader": {"-eval", `
		Root = code:root_dir(),
		L = fun(F, A) -> (catch apply(erl_prim_loader, F, A)) end,
		[L(F, [Root ++ N]) || F <- [list_dir, read_file_info, read_link_info, get_file],
		                      N <- ["", "/bin/start.boot", "/bin/erl", "/none", "/bin/start.boot/x", "/bin/..//bin/.", "/é", "/日本", "/😀"]],
		[L(F, [N]) || F <- [list_dir, read_file_info, read_link_info], N <- ["", ".", "relative"]],
		L(get_file, ["kernel.app"]),
		L(get_cwd, []), [L(get_cwd, [D]) || D <- ["C:", "c", ""]],
		init:stop().`},
}

// TestCapture records what a stock node and erl_boot_server say to each other.
// The server binds UDP 4368 on all addresses, so it runs in a network namespace
// of its own, and a proxy stands between.
func TestCapture(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	server := startBootServer(t)
	for name, args := range captures {
		wire := server.capture(t, args)
		if err := os.WriteFile(filepath.Join("testdata", name+".wire"), wire, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// bootServer is OTP's erl_boot_server in a network namespace.
type bootServer struct {
	namespace *os.File
}

func startBootServer(t testing.TB) *bootServer {
	t.Helper()
	cmd := exec.Command("unshare", "-n", "sh", "-c", `ip link set lo up && exec erl +fnu -noinput -eval '
		{ok, _} = erl_boot_server:start(["127.0.0.1"]), io:format("ready~n")'`)
	cmd.Dir = "/usr"
	cmd.Stderr = testWriter{t}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("erl_boot_server: %q, %v", line, err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = namespace.Close() })
	return &bootServer{namespace}
}

// dial opens a socket inside the server's namespace.
func (s *bootServer) dial(network, addr string) (net.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := unix.Setns(int(s.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // the thread must not go back to the pool
		}
	}()
	return net.Dial(network, addr)
}

// capture boots one node through a proxy and returns what was said.
func (s *bootServer) capture(t *testing.T, args []string) []byte {
	t.Helper()
	var wire recorder
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	ln, err := net.Listen("tcp4", "127.0.0.21:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := ListenDiscovery(netip.MustParseAddr("127.0.0.21"))
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
		_ = udp.Close()
	})
	upstream, err := s.dial("udp4", "127.0.0.1:4368")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	port := make(chan uint16, 16) // of erl_boot_server
	running.Go(func() {
		datagram := make([]byte, 512)
		for {
			n, client, err := udp.ReadFromUDPAddrPort(datagram)
			if err != nil {
				return
			}
			wire.add("query", datagram[:n])
			if _, err := upstream.Write(datagram[:n]); err != nil {
				t.Error(err)
				return
			}
			if n, err = upstream.Read(datagram); err != nil {
				t.Error(err)
				return
			}
			wire.add("answer", datagram[:n])
			port <- binary.BigEndian.Uint16(datagram[7:])
			binary.BigEndian.PutUint16(datagram[7:], uint16(ln.Addr().(*net.TCPAddr).Port))
			if _, err := udp.WriteToUDPAddrPort(datagram[:n], client); err != nil {
				t.Error(err)
				return
			}
		}
	})
	running.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := s.dial("tcp4", fmt.Sprint("127.0.0.1:", <-port))
			if err != nil {
				t.Error(err)
				return
			}
			wire.relay(client, server)
			_ = client.Close()
			_ = server.Close()
		}
	})

	deadline, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	erl := exec.CommandContext(deadline, "erl", append([]string{"-loader", "inet", "-hosts", "127.0.0.21", "-id", "x", "-noshell"}, args...)...)
	erl.Env = append(os.Environ(), "HOME=/nonexistent")
	if output, err := erl.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return wire.bytes()
}

// recorder writes one line for each message: what it is, and a Go string. A reply
// with content has only the size of the content.
type recorder struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.lines.Bytes())
}

func (r *recorder) add(what string, message []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(&r.lines, "%s %s\n", what, strconv.QuoteToASCII(string(message)))
}

func (r *recorder) relay(client, server io.ReadWriter) {
	for {
		request, err := readPacket(client)
		if err != nil {
			return
		}
		r.add("request", request)
		if _, err := server.Write(packet(request)); err != nil {
			return
		}
		reply, err := readPacket(server)
		if err != nil {
			return
		}
		if header := contentHeader(reply); header > 0 {
			r.mu.Lock()
			fmt.Fprintf(&r.lines, "content %d %s\n", len(reply)-header, strconv.QuoteToASCII(string(reply[:header])))
			r.mu.Unlock()
		} else {
			r.add("reply", reply)
		}
		if _, err := client.Write(packet(reply)); err != nil {
			return
		}
	}
}

// contentHeader returns the length of what stands before the content in
// {get,{ok,Content}}, 0 for any other reply.
func contentHeader(reply []byte) int {
	for _, header := range [][]byte{
		append([]byte{etf.Version, 104, 2, 100, 0, 3}, append([]byte("get"), append([]byte{104, 2, 100, 0, 2}, "okm"...)...)...),
		append([]byte{etf.Version, 104, 2, 119, 3}, append([]byte("get"), append([]byte{104, 2, 119, 2}, "okm"...)...)...),
	} {
		if bytes.HasPrefix(reply, header) {
			return len(header) + 4
		}
	}
	return 0
}

// message is one line of a recorded run.
type message struct {
	what  string
	size  int64 // of the content
	bytes []byte
}

func readWire(t testing.TB, file string) []message {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var messages []message
	for line := range strings.Lines(string(data)) {
		var m message
		var quoted string
		m.what, quoted, _ = strings.Cut(strings.TrimSpace(line), " ")
		if m.what == "content" {
			var size string
			size, quoted, _ = strings.Cut(quoted, " ")
			if m.size, err = strconv.ParseInt(size, 10, 64); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		}
		text, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		m.bytes = []byte(text)
		messages = append(messages, m)
	}
	return messages
}
