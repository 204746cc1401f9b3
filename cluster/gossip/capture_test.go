package gossip

import (
	"flag"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "record testdata/gossip.wire again: what three servers say to each other")

// TestCapture records what servers send: packets, what one that joins sends over a
// connection, and the answer.
func TestCapture(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	var mu sync.Mutex
	var lines []string
	tape := func(what string, sent []byte) {
		mu.Lock()
		defer mu.Unlock()
		line := what + " " + strconv.QuoteToASCII(string(sent))
		if len(lines) < 80 && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	a := start(t, "7d44fb5c-9f0a-4f0e-8f5f-6d2f1d0a7c11", "127.0.0.81:4382")
	a.wall.record(tape)
	relay, err := net.Listen("tcp", "127.0.0.91:0")
	if err != nil {
		t.Fatal(err)
	}
	var relaying sync.WaitGroup
	defer relaying.Wait()
	defer relay.Close()
	relaying.Go(func() {
		for {
			in, err := relay.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", a.Address().String())
			if err != nil {
				in.Close()
				return
			}
			for _, way := range []struct {
				what     string
				from, to net.Conn
			}{{"stream", in, out}, {"answer", out, in}} {
				relaying.Go(func() {
					defer way.to.Close()
					b := make([]byte, maxMessage)
					for {
						n, err := way.from.Read(b)
						if err != nil {
							return
						}
						tape(way.what, b[:n])
						if _, err := way.to.Write(b[:n]); err != nil {
							return
						}
					}
				})
			}
		}
	})
	byRelay := func(o *Options) { o.Seeds = []string{relay.Addr().String()} }
	b := start(t, "b", "127.0.0.82:4382", byRelay)
	b.wall.record(tape)
	c := start(t, "c", "127.0.0.83:4382", byRelay)
	a.seesAlive(t, "b", "c")
	poll(t, "twenty packets are to be sent", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(lines) > 24
	})
	c.stop()
	a.sees(t, "c is gone", func(m []Member) bool { return len(aliveIDs(m)) == 2 })
	b.stop()
	a.stop()
	mu.Lock()
	defer mu.Unlock()
	if err := os.WriteFile("testdata/gossip.wire", []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// recorded are the messages of testdata/gossip.wire of one kind: packet, stream or answer.
func recorded(t testing.TB, what string) (messages [][]byte) {
	t.Helper()
	data, err := os.ReadFile("testdata/gossip.wire")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if quoted, ok := strings.CutPrefix(strings.TrimSpace(line), what+" "); ok {
			m, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatal(err)
			}
			messages = append(messages, []byte(m))
		}
	}
	if len(messages) == 0 {
		t.Fatalf("no %s was recorded", what)
	}
	return messages
}
