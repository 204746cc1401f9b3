package gossip

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// node is a Gossip with its Run.
type node struct {
	*Gossip
	log  *logBuffer
	wall *wall
	stop func()
}

// start opens a server on addr, HOST:PORT, and runs it until the test's end.
func start(t *testing.T, id, addr string, change ...func(*Options)) *node {
	t.Helper()
	n := &node{log: &logBuffer{}}
	o := Options{
		Cluster: "prod", Bind: netip.MustParseAddrPort(addr), Interval: 100 * time.Millisecond, Local: true,
		Meta:   Meta{ID: id, Peer: "127.0.0.1:4381", Version: "1.2.3", Wire: 1, Expect: 3, StateVersion: 1, Boot: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Logger: hclog.New(&hclog.LoggerOptions{Output: n.log, Level: hclog.Info}),
	}
	for _, f := range change {
		f(&o)
	}
	g, err := open(o, func(tr *transport) memberlist.NodeAwareTransport {
		n.wall = &wall{NodeAwareTransport: tr}
		return n.wall
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Gossip = g
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run of %s: %v", id, err)
				}
			case <-time.After(patience):
				t.Errorf("Run of %s did not end", id)
			}
			if err := g.Close(); err != nil {
				t.Errorf("Close of %s: %v", id, err)
			}
		})
	}
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("log of %s at %s:\n%s", id, addr, n.log)
		}
	})
	return n
}

func seeds(of ...*node) func(*Options) {
	return func(o *Options) {
		for _, n := range of {
			o.Seeds = append(o.Seeds, n.Address().String())
		}
	}
}

// sees waits until n's members satisfy a condition.
func (n *node) sees(t *testing.T, what string, ok func([]Member) bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		changed := n.Changed()
		if ok(n.Members()) {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("%s: waited %v for: %s; sees %+v", n.id, patience, what, n.Members())
		}
	}
}

func aliveIDs(members []Member) []string {
	var ids []string
	for _, m := range members {
		if m.Alive {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (n *node) seesAlive(t *testing.T, ids ...string) {
	t.Helper()
	n.sees(t, "alive "+strings.Join(ids, ", "), func(m []Member) bool { return slices.Equal(aliveIDs(m), ids) })
}

func (n *node) member(id string) Member {
	for _, m := range n.Members() {
		if m.ID == id {
			return m
		}
	}
	return Member{}
}

// poll waits until done.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		<-tick.C
	}
}

// wall is a network that can be cut: nothing leaves for the addresses given.
type wall struct {
	memberlist.NodeAwareTransport
	mu  sync.Mutex
	cut map[string]bool

	tape func(what string, sent []byte) // nil: nothing is recorded
}

func (w *wall) record(tape func(string, []byte)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tape = tape
}

func (w *wall) sent(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tape != nil {
		w.tape("packet", b)
	}
}

func (w *wall) to(others ...*node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = map[string]bool{}
	for _, n := range others {
		w.cut[n.Address().String()] = true
	}
}

func (w *wall) isCut(a string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[a]
}

func (w *wall) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if w.isCut(a.Addr) {
		return time.Now(), nil
	}
	w.sent(b)
	return w.NodeAwareTransport.WriteToAddress(b, a)
}

func (w *wall) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if w.isCut(a.Addr) {
		return nil, net.ErrClosed
	}
	return w.NodeAwareTransport.DialAddressTimeout(a, timeout)
}

// cut separates two groups; heal undoes all.
func cut(left, right []*node) {
	for _, n := range left {
		n.wall.to(right...)
	}
	for _, n := range right {
		n.wall.to(left...)
	}
}

func heal(all ...*node) {
	for _, n := range all {
		n.wall.to()
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lines returns those that contain all of the texts.
func (l *logBuffer) lines(texts ...string) []string {
	var found []string
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			found = append(found, line)
		}
	}
	return found
}
