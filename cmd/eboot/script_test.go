package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"eboot"
	"eboot/bootproto"
	"eboot/internal/testutil"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"eboot": main})
}

// Each script may run a server: EBOOT has one UDP port, so each has a loopback
// address of its own, $IP, and its configuration is in eboot.yaml.
func TestScripts(t *testing.T) {
	var next atomic.Uint32
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("EBOOT_TEST_UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			ip, err := takeAddress(&next)
			if err != nil {
				return err
			}
			env.Setenv("IP", ip.String())
			env.Setenv("EBOOT_ADDRESS", fmt.Sprintf("http://%s:4380", ip))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second at the end of each command otherwise
			for file, data := range map[string]string{"eboot.yaml": "data", "second.yaml": "data2"} {
				settings := fmt.Sprintf("data_dir: %s\nboot: {bind: [%s], tcp_ports: 4368-4399}\napi: {bind: '%s:4380', socket: '', insecure: true}\nlog: {level: warn}\n",
					filepath.Join(env.WorkDir, data), ip, ip)
				if err := os.WriteFile(filepath.Join(env.WorkDir, file), []byte(settings), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"answers": answers,
			"await":   await,
			"empty":   empty,
			"get":     get,
			"hang":    hang,
			"holds":   holds,
			"mask":    mask,
			"poll":    poll,
			"spoil":   spoil,
			"status":  status,
		},
	})
}

// takeAddress returns one that no other script has. Two runs at once begin at
// different ones, and pass over what the other has.
func takeAddress(next *atomic.Uint32) (netip.Addr, error) {
	for range 250 {
		n := uint32(os.Getpid())*31 + next.Add(1)
		ip := netip.AddrFrom4([4]byte{127, 0, 2, byte(1 + n%250)})
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, bootproto.Port)))
		if err == nil {
			return ip, conn.Close()
		}
	}
	return netip.Addr{}, errors.New("all loopback addresses of these tests are in use")
}

// await runs eboot with args until it succeeds, for at most 30 seconds.
func await(ts *testscript.TestScript, neg bool, args []string) {
	repeat(ts, args, func(err error) bool { return (err == nil) != neg })
}

// poll runs eboot until it prints what a pattern matches: poll PATTERN ARG...
func poll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: poll PATTERN ARG...")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	repeat(ts, args[1:], func(error) bool { return pattern.MatchString(ts.ReadFile("stdout")) })
}

// repeat runs eboot until it did what it should, for at most 30 seconds.
func repeat(ts *testscript.TestScript, args []string, so func(error) bool) {
	until(ts, func() (string, bool) {
		err := ts.Exec("eboot", args...)
		return fmt.Sprintf("eboot %v: %v", args, err), so(err)
	})
}

// until asks again until it is so, for at most 30 seconds.
func until(ts *testscript.TestScript, so func() (otherwise string, ok bool)) {
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		otherwise, ok := so()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after 30 s: %s", otherwise)
		}
		<-tick.C
	}
}

// status runs a command and wants an exit code: status CODE COMMAND ARG...
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// get asks the file service at $IP for a file, as a slave on 127.0.0.1 does, and
// closes the connection: get PATH TEXT, where TEXT is to be in the reply.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get PATH TEXT")
	}
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
	var conn net.Conn
	until(ts, func() (string, bool) { // the port opens soon after a channel got its bundle
		var err error
		conn, err = dialer.Dial("tcp4", ts.Getenv("IP")+":4368")
		return fmt.Sprintf("get %s: %v", args[0], err), err == nil
	})
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(10 * time.Second)))
	request := testutil.Frame(testutil.Encode(testutil.Tuple{testutil.Atom("get"), testutil.Text(args[0])}))
	_, err := conn.Write(request)
	ts.Check(err)
	var size uint32
	ts.Check(binary.Read(conn, binary.BigEndian, &size))
	reply := make([]byte, size)
	_, err = io.ReadFull(conn, reply)
	ts.Check(err)
	if !bytes.Contains(reply, []byte(args[1])) {
		ts.Fatalf("get %s: %q", args[0], reply)
	}
}

// empty wants a directory with nothing in it: empty DIR.
func empty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] empty DIR")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if (len(entries) == 0) == neg {
		ts.Fatalf("%s: %d entries: %v", args[0], len(entries), entries)
	}
}

// hang listens on ADDRESS:PORT, accepts and never answers, until the script ends.
func hang(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hang ADDRESS:PORT")
	}
	ln, err := net.Listen("tcp4", args[0])
	ts.Check(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	ts.Defer(func() {
		_ = ln.Close()
		<-ended
	})
}

// answers starts a server that answers as a file says, until the script ends, and puts
// its address into a variable: answers VARIABLE FILE. Each line of the file is
//
//	METHOD PATH STATUS BODYFILE [why the answer is stale]
//
// A request that no line names is answered with 404 and no explanation. So the output
// of verbs can be fixed for groups of servers in any state.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: answers VARIABLE FILE")
	}
	mux := http.NewServeMux()
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 5)
		if len(f) < 4 {
			ts.Fatalf("%s: %q", args[1], line)
		}
		body := ts.ReadFile(f[3])
		code, err := strconv.Atoi(f[2])
		ts.Check(err)
		mux.HandleFunc(f[0]+" "+f[1], func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if len(f) > 4 && r.URL.Query().Get("stale") == "" {
				w.Header().Set("Eboot-Stale", f[4])
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		})
	}
	server := httptest.NewServer(mux)
	ts.Defer(server.Close)
	ts.Setenv(args[0], server.URL)
}

// holds waits until a file holds a text: holds FILE TEXT.
func holds(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: holds FILE TEXT")
	}
	until(ts, func() (string, bool) {
		data, err := os.ReadFile(ts.MkAbs(args[0]))
		return fmt.Sprintf("%s does not hold %q: %q, %v", args[0], args[1], data, err), bytes.Contains(data, []byte(args[1]))
	})
}

// spoil changes one byte of the blob that has the content of a file, as a bad disk
// does, or of the file alone when no data directory is given: spoil FILE [DATADIR].
func spoil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: spoil FILE [DATADIR]")
	}
	content := []byte(ts.ReadFile(args[0]))
	name := ts.MkAbs(args[0])
	if len(args) == 2 {
		digest := eboot.DigestOf(content).String()
		name = filepath.Join(ts.MkAbs(args[1]), "store", "blobs", digest[:2], digest)
		stored, err := os.ReadFile(name)
		ts.Check(err)
		if !bytes.Equal(stored, content) {
			ts.Fatalf("%s holds something else", name)
		}
	}
	content[len(content)/2] ^= 0xff
	ts.Check(os.WriteFile(name, content, 0o600))
}

// maskTable replaces what differs from run to run.
var maskTable = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`UUID-[0-9a-z]{8,13}\b`), "UUID-N"}, // of a boot or an event
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "DIGEST"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "SHORT"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`), "TIME"},
	{regexp.MustCompile(`127\.0\.2\.\d+`), "IP"},
	{regexp.MustCompile(`by process \d+`), "by process PID"},
	{regexp.MustCompile(`127\.0\.0\.1:\d{5}\b`), "127.0.0.1:PORT"},
	{regexp.MustCompile(`"(revision|free_bytes|term|index|last_index|applied_index|cached_index|last_term|snapshot_index|snapshot_term)": \d+`), `"$1": 0`},
	{regexp.MustCompile(`index \d+(, term \d+)?`), "index N$1"},
	{regexp.MustCompile(`, term \d+`), ", term N"},
	{regexp.MustCompile(`[\d.]+ [kMGTP]?B free`), "SPACE free"},
	{regexp.MustCompile(`[ \t]+\n`), "\n"},
}

// mask writes what a command printed (stdout, stderr or a file) to a file, with what
// differs from run to run replaced: mask stdout FILE.
func mask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mask stdout|stderr|FILE FILE")
	}
	text := ts.ReadFile(args[0])
	for _, row := range maskTable {
		text = row.pattern.ReplaceAllString(text, row.with)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}
