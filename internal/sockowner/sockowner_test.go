package sockowner

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func listen(t *testing.T, network, address string) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Skipf("no %s on %s here: %v", network, address, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestOwnSocket(t *testing.T) {
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Skip("no /proc here")
	}
	self := Owner{PID: os.Getpid(), Command: strings.TrimSpace(string(name))}
	for _, c := range []struct {
		network, bound, asked string
		found                 bool
	}{
		{"udp4", "127.0.0.1:0", "127.0.0.1", true},
		{"udp4", "127.0.0.1:0", "::ffff:127.0.0.1", true},
		{"udp4", "127.0.0.1:0", "0.0.0.0", true},
		{"udp4", "0.0.0.0:0", "127.0.0.1", true},
		{"udp4", "0.0.0.0:0", "0.0.0.0", true},
		{"udp", "[::]:0", "127.0.0.1", true}, // dual stack
		{"udp4", "127.0.0.1:0", "127.0.0.2", false},
		{"udp6", "[::1]:0", "127.0.0.1", false},
		{"udp6", "[::1]:0", "0.0.0.0", false},
	} {
		t.Run(c.network+" "+c.bound+" asked "+c.asked, func(t *testing.T) {
			port := listen(t, c.network, c.bound).Port()
			got, found := UDP(netip.AddrPortFrom(netip.MustParseAddr(c.asked), port))
			if found != c.found || found && got != self {
				t.Errorf("%+v, %t; want %+v, %t", got, found, self, c.found)
			}
		})
	}
}

func TestClosedSocket(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got, found := UDP(addr); found {
		t.Errorf("a closed socket is held by %+v", got)
	}
}

// A made-up /proc: what the kernel would show of processes that cannot be opened here.
func TestProc(t *testing.T) {
	word := func(address string) string { // as a kernel of this machine prints it
		bytes := netip.MustParseAddr(address).As4()
		return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(bytes[:]))
	}
	proc := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := func(local, inode string) string {
		return "  1: " + local + " 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 " + inode + " 2 0000000000000000 0\n"
	}
	write("net/udp", "  sl  local_address rem_address\n"+
		"\nrubbish\n"+line("zz:1110", "1")+line(word("10.0.0.1"), "2")+line("00:1110", "3")+
		line(word("10.0.0.1")+":1110", "77")+line(word("10.0.0.2")+":1110", "88")+line(word("10.0.0.3")+":1110", "0"))
	write("42/comm", "bo\x1b[31mot\n")
	write("43/comm", "other\n")
	write("notes/comm", "x")
	for name, target := range map[string]string{"42/fd/0": "/dev/null", "42/fd/3": "socket:[77]", "43/fd/0": "pipe:[77]"} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		asked string
		want  Owner
		found bool
	}{
		{"10.0.0.1:4368", Owner{PID: 42, Command: "bo[31mot"}, true},
		{"10.0.0.2:4368", Owner{}, true}, // of a process that cannot be read
		{"10.0.0.3:4368", Owner{}, false},
		{"10.0.0.1:4369", Owner{}, false},
		{"0.0.0.0:4368", Owner{PID: 42, Command: "bo[31mot"}, true},
	} {
		if got, found := find(proc, netip.MustParseAddrPort(c.asked)); got != c.want || found != c.found {
			t.Errorf("%s: %+v, %t; want %+v, %t", c.asked, got, found, c.want, c.found)
		}
	}
	if got, found := find(filepath.Join(proc, "none"), netip.MustParseAddrPort("10.0.0.1:4368")); found {
		t.Errorf("without /proc: %+v", got)
	}
}

func FuzzParseLocal(f *testing.F) {
	for _, s := range []string{"0100007F:1110", "00000000000000000000000000000000:1110", "0000000000000000FFFF00000100007F:0035", ":", "", "0:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if local, ok := parseLocal(s); ok && (!local.IsValid() || local.Addr().Is4In6()) {
			t.Errorf("%q: %v", s, local)
		}
	})
}
