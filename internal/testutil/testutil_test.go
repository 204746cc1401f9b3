package testutil

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTermsAreReadBackAsErlangWritesThem(t *testing.T) {
	tests := []struct {
		name string
		term any
		want any
	}{
		{"atom", Atom("get_cwd"), Atom("get_cwd")},
		{"string", "/bin/start.boot", Text("/bin/start.boot")},
		{"empty string", "", List{}},
		{"code points above 255", "λ.erl", Text("λ.erl")},
		{"tuple", Tuple{Atom("get"), "x"}, Tuple{Atom("get"), Text("x")}},
		{"numbers", List{1, 300, -1}, List{1, 300, -1}},
		{"numbers of more than 32 bits", List{1 << 47, -1 << 40, math.MaxInt64, math.MinInt64}, List{1 << 47, -1 << 40, math.MaxInt64, math.MinInt64}},
		{"binary", []byte("abc"), []byte("abc")},
		{"float", 1.5, 1.5},
		{"raw big", Raw{tagSmallBig, 5, 0, 0, 0, 0, 0, 1}, 1 << 32},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode(Encode(tt.term))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %s, want %s", Format(got), Format(tt.want))
			}
		})
	}
	// term_to_binary("aaa…", [compressed])
	long := strings.Repeat("a", 300)
	var packed bytes.Buffer
	w := zlib.NewWriter(&packed)
	_, _ = w.Write(Encode(long)[1:])
	_ = w.Close()
	compressed := append(binary.BigEndian.AppendUint32([]byte{131, 80}, uint32(len(Encode(long))-1)), packed.Bytes()...)
	if got, err := Decode(compressed); err != nil || !reflect.DeepEqual(got, Text(long)) {
		t.Errorf("compressed term: %s, %v", Format(got), err)
	}
	for _, bad := range [][]byte{nil, compressed[:12], {131, 80, 255, 255, 255, 255, 1}, {131}, {131, 107, 0, 9, 1}, {131, 108, 0xff, 0xff, 0xff, 0xff, 106}, {131, 106, 106}} {
		if got, err := Decode(bad); err == nil {
			t.Errorf("decode %x = %s, want an error", bad, Format(got))
		}
	}
}

// The reference server's file service, seen by the client.
func TestBootServerAnswers(t *testing.T) {
	erl := RequireErl(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a b.txt"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := StartBootServer(t, erl, BootServerOptions{Dir: dir}).Client()
	got, err := c.Request(Tuple{Atom("get"), "a b.txt"})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{get,{ok,<<"hello">>}}`; Format(got) != want {
		t.Errorf("got %s, want %s", Format(got), want)
	}
	got, err = c.Request(Atom("get_cwd"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{get_cwd,{ok,"` + dir + `"}}`; Format(got) != want {
		t.Errorf("got %s, want %s", Format(got), want)
	}
}

// A node boots from the reference server in a namespace of its own, and every module
// but the preloaded ones came from there.
func TestSlaveBootsFromBootServer(t *testing.T) {
	erl := RequireErl(t)
	ns := NewNamespace(t)
	StartBootServer(t, erl, BootServerOptions{Namespace: ns})
	for _, embedded := range []bool{false, true} {
		// The reference serves its host's files under their own names, so the root of
		// the node must be that of the installation.
		s := StartSlave(t, erl, SlaveOptions{
			Hosts: []string{"127.0.0.1"}, Root: erl.Root, Embedded: embedded, Namespace: ns,
		})
		r := s.Report(30 * time.Second)
		if local := r.Local(erl.Root); len(local) > 0 {
			t.Errorf("modules from elsewhere: %v", local)
		}
		t.Logf("%s: %d modules, %v", r.Mode, len(r.Modules), r.Took)
	}
}

// The whole reference server in its namespace answers discovery there.
func TestBootServerDiscovery(t *testing.T) {
	erl := RequireErl(t)
	ns := NewNamespace(t)
	StartBootServer(t, erl, BootServerOptions{Namespace: ns})
	conn, err := ns.ListenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	replies := Discover(t, conn, erl.ERTS, 300*time.Millisecond, "127.0.0.1")
	if len(replies) != 1 || replies[0].Priority != 0 || replies[0].ERTS != erl.ERTS {
		t.Errorf("replies %+v, want one with priority 0 and version %s", replies, erl.ERTS)
	}
	if replies := Discover(t, conn, "5.0", 300*time.Millisecond, "127.0.0.1"); len(replies) > 0 {
		t.Errorf("replies %+v to another version, want silence", replies)
	}
}

// A boot is recorded, cut in the middle, and played back.
func TestRecorder(t *testing.T) {
	erl := RequireErl(t)
	server := StartBootServer(t, erl, BootServerOptions{})
	recorder := StartRecorder(t, RecorderOptions{Address: "127.0.0.39", ERTS: erl.ERTS, Dial: server.Dial})
	StartSlave(t, erl, SlaveOptions{Hosts: []string{"127.0.0.39"}, Root: erl.Root}).Report(30 * time.Second)
	exchanges := recorder.Exchanges()
	if command, path := exchanges[0].Path(); command != "get" || path != erl.BootScript() {
		t.Errorf("first request %s %s, want get %s", command, path, erl.BootScript())
	}
	recorder.Close()

	recording := NewRecording(exchanges)
	conn, err := server.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	received, err := recording.Replay(conn)
	if err != nil {
		t.Fatal(err)
	}
	if received != recording.ReplyBytes() {
		t.Errorf("replay received %d bytes, the boot %d", received, recording.ReplyBytes())
	}
	t.Logf("%d requests, %d bytes", recording.Requests(), received)

	cut := 0
	severed := StartRecorder(t, RecorderOptions{
		Address: "127.0.0.39", ERTS: erl.ERTS, Dial: server.Dial,
		Cut: func(Exchanged) bool { cut++; return cut == 3 },
	})
	c := Dial(t, severed.tcp.Addr().String())
	for range 2 {
		if _, err := c.Request(Atom("get_cwd")); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Request(Atom("get_cwd")); err == nil {
		t.Errorf("request after the cut: %s", Format(got))
	}
	if !severed.Severed() {
		t.Error("recorder does not know that it was cut")
	}
	if conn, err := net.DialTimeout("tcp4", severed.tcp.Addr().String(), time.Second); err == nil {
		_ = conn.Close()
		t.Error("a severed recorder takes connections")
	}
}

func TestParseReport(t *testing.T) {
	r, err := parseReport("\nloaded lists /r/lib/lists.beam\nloaded init preloaded\nloaded x /home/x.beam\npath .\nroot /r\nmode interactive\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Local("/r"), ","); got != "x from /home/x.beam" {
		t.Errorf("local modules %q", got)
	}
}
