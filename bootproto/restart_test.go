package bootproto

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	"eboot/bootproto/etf"
)

const testBoot = 0xa1b2c3d4e5f6

// askControl is {eboot_open,1,Digest,[{boot,Boot},{can,Can}]}.
func askControl(boot int64, can ...string) []byte {
	b := etf.AppendInteger(appendKey(options(2), "boot"), boot)
	return packet(etf.AppendNil(appendAtoms(appendKey(b, "can"), can)))
}

func slaveOf(conn net.Conn) netip.Addr { return conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr() }

// isRestart reads frames until one is not empty.
func isRestart(t *testing.T, conn net.Conn) bool {
	t.Helper()
	for {
		frame, err := readPacket(conn)
		if err != nil {
			t.Fatal(err)
		}
		if len(frame) > 0 {
			return bytes.Equal(frame, goldenRestart.frame())
		}
	}
}

func TestRestart(t *testing.T) {
	files := newExtendedTree()
	files.opened.Control = true
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	refused := func(when string, slave netip.Addr, boot uint64) {
		t.Helper()
		if err := s.Restart(slave, boot); !errors.Is(err, ErrNoSession) {
			t.Errorf("%s: %v", when, err)
		}
	}
	send(t, conn, ask("get", "/bin/start.boot"))
	expectReplies(t, conn, `{get,{ok,<<"boot">>}}`)
	refused("no session", slaveOf(conn), testBoot)
	refused("no session, no number", slaveOf(conn), 0)
	send(t, conn, askControl(testBoot))
	readReply(t, conn)
	refused("an older loader", slaveOf(conn), testBoot)
	send(t, conn, askControl(testBoot, "fly", "restart"))
	readReply(t, conn)
	eventually(t, "the slave can be told", func() bool { return s.Restart(slaveOf(conn), testBoot) == nil })
	if !isRestart(t, conn) {
		t.Error("the slave was told something else")
	}
	refused("another boot", slaveOf(conn), testBoot+1)
	refused("another slave", netip.MustParseAddr("127.0.0.99"), testBoot)
	send(t, conn, ask("get", "/bin/start.boot")) // it was told once
	expectReplies(t, conn, `{get,{ok,<<"boot">>}}`)

	if err := s.Restart(slaveOf(conn), testBoot); err != nil || !isRestart(t, conn) {
		t.Errorf("told again: %v", err)
	}
	_ = conn.Close()
	eventually(t, "the connection has ended", func() bool { return s.Stats().Connections == 0 })
	refused("its connection has ended", slaveOf(conn), testBoot)
}

// A slave whose channel keeps no connection open is not told, even when its connection happens to
// be there.
func TestRestartWithoutControl(t *testing.T) {
	s, addr := startFiles(t, FileServerOptions{Host: newExtendedTree()})
	conn := dial(t, addr)
	send(t, conn, askControl(testBoot, "restart"))
	readReply(t, conn)
	eventually(t, "the session is open", func() bool { return s.Stats().Opens == 1 })
	if err := s.Restart(slaveOf(conn), testBoot); !errors.Is(err, ErrNoSession) {
		t.Error(err)
	}
}

// TestRestartBetweenFrames: a slave that is being sent files is told after one of them, whole.
func TestRestartBetweenFrames(t *testing.T) {
	files := newExtendedTree()
	files.opened.Control = true
	content := bytes.Repeat([]byte("x"), 8<<20)
	files.fetch = func(string, bool) (Content, error) { return Content{Data: content}, nil }
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	send(t, conn, askControl(testBoot, "restart"))
	readReply(t, conn)
	const n = 8
	send(t, conn, askFetch(make([]string, n)...))
	frame, err := readPacket(conn) // the others are being written
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(slaveOf(conn), testBoot); err != nil { // does not wait
		t.Fatal(err)
	}
	count := map[string]int{}
	for done := appendDone(nil, n)[headerSize:]; !bytes.Equal(frame, done); {
		switch {
		case bytes.Equal(frame, goldenRestart.frame()):
			count["restart"]++
		case len(frame) > len(content):
			count["file"]++
		case len(frame) > 0:
			t.Fatalf("read % x", frame)
		}
		if frame, err = readPacket(conn); err != nil {
			t.Fatal(err)
		}
	}
	if count["restart"] == 0 && !isRestart(t, conn) || count["restart"] > 1 || count["file"] != n {
		t.Errorf("read %v", count)
	}
}
