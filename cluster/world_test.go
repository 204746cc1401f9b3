package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// world is a network of servers: real TCP and real Raft, with gossip that knows
// everything at once.
type world struct {
	t       testing.TB
	mu      sync.Mutex
	nodes   map[string]*node
	cut     map[[2]string]bool // from, to: nothing gets there
	conns   map[net.Conn][2]string
	removed map[string]bool
	deaf    string // this server's Raft takes no connection
	mute    string // this server does not say what it knows
	changed broadcast
}

// node is one server, and what stays of it when it is stopped.
type node struct {
	w       *world
	id, dir string
	expect  int
	port    string // where it is to be found

	belonged bool   // what the agent keeps beside the id
	cluster  string // UUID, which the state has and the agent keeps
	complete bool
	address  string
	running  *server // nil: stopped
	stopForm func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{t: t, nodes: map[string]*node{}, cut: map[[2]string]bool{}, conns: map[net.Conn][2]string{}, removed: map[string]bool{}}
}

// node adds a server that is not running.
func (w *world) node(id string, expect int) *node {
	w.t.Helper()
	n := &node{w: w, id: id, dir: w.t.TempDir(), port: freePort(w.t), expect: expect, complete: true}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[id] = n
	return n
}

func (w *world) group(expect int, ids ...string) []*node {
	w.t.Helper()
	var group []*node
	for _, id := range ids {
		group = append(group, w.node(id, expect))
	}
	return group
}

func startAll(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.start()
	}
}

const quick = 250 * time.Millisecond // heartbeat

func (n *node) start(change ...func(*Options)) {
	n.w.t.Helper()
	ln, err := net.Listen("tcp", n.place())
	if err != nil {
		n.w.t.Fatal(err)
	}
	w := n.w
	w.mu.Lock()
	n.address = ln.Addr().String()
	belonged := n.belonged
	w.mu.Unlock()
	o := Options{
		Dir: n.dir, ServerID: n.id, Address: n.address, StateMachine: &list{}, Stream: NewStream(&wire{Listener: ln, n: n, address: n.address}),
		Logger:    hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: w.t.Output(), Name: n.id}),
		Directory: n, Expect: n.expect, MayFound: !belonged,
		Removed: w.wasRemoved, Cluster: n.belongsTo,
		Admit: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			n.belonged = true
		},
		pace: pace{poll: 20 * time.Millisecond, heartbeat: quick, stable: 100 * time.Millisecond},
	}
	for _, c := range change {
		c(&o)
	}
	c, err := Open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &server{c, o.StateMachine.(*list)}
	ctx, cancel := context.WithCancel(context.Background())
	var forming sync.WaitGroup
	forming.Go(func() {
		if err := c.Form(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, eboot.ErrUnavailable) {
			w.t.Errorf("%s: form: %v", n.id, err)
		}
	})
	w.mu.Lock()
	n.running = s
	n.stopForm = func() { cancel(); forming.Wait() }
	w.mu.Unlock()
	w.changed.notify()
	w.t.Cleanup(func() { n.stop() })
}

func (n *node) place() string { return net.JoinHostPort("127.0.0.1", n.port) }

var lastPort atomic.Uint32

// freePort is one below those that the kernel gives to outgoing connections, so that a
// server that was stopped gets its port again.
func freePort(t testing.TB) string {
	t.Helper()
	lastPort.CompareAndSwap(0, uint32(os.Getpid()))
	for range 1000 {
		port := fmt.Sprint(12000 + lastPort.Add(1)%20000)
		if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// stop ends the server, which keeps its directory and its address.
func (n *node) stop() {
	w := n.w
	w.mu.Lock()
	s, stopForm := n.running, n.stopForm
	n.running = nil
	w.mu.Unlock()
	if s == nil {
		return
	}
	w.changed.notify()
	stopForm()
	if err := s.Close(); err != nil {
		w.t.Errorf("close %s: %v", n.id, err)
	}
}

// wipe has a stopped server lose its raft directory, and keep its id.
func (n *node) wipe() {
	n.w.t.Helper()
	if err := os.RemoveAll(n.dir); err != nil {
		n.w.t.Fatal(err)
	}
}

// mayMove skips a test in which a leader learns new addresses: hashicorp/raft 1.8.0 then
// reads the id of the follower, which stays the same, without its lock (updateLastAppended in
// replication.go), which does no harm and which the race detector reports.
func mayMove(t testing.TB) {
	t.Helper()
	if raceDetector {
		t.Skip("hashicorp/raft has a harmless data race when an address changes")
	}
}

// move has a stopped server come back at another address.
func (n *node) move() { n.port = freePort(n.w.t) }

func (n *node) server() *server {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.running
}

func (n *node) belongsTo() string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.cluster
}

// is has a server belong to a cluster from now on.
func (n *node) is(cluster string) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.cluster = cluster
}

func (w *world) silence(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mute = id
}

func (w *world) wasRemoved(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed[id]
}

// isolate cuts a server off from all others, in both directions; gossip too.
func (w *world) isolate(id string) { w.separate(id, true) }

func (w *world) rejoin(id string) { w.separate(id, false) }

func (w *world) separate(id string, cut bool) {
	w.mu.Lock()
	for other := range w.nodes {
		if other != id {
			w.cut[[2]string{id, other}], w.cut[[2]string{other, id}] = cut, cut
		}
	}
	var lost []net.Conn
	for conn, ends := range w.conns {
		if w.cut[ends] || w.cut[[2]string{ends[1], ends[0]}] {
			lost = append(lost, conn)
		}
	}
	w.mu.Unlock()
	for _, conn := range lost {
		conn.Close()
	}
	w.changed.notify()
}

func (w *world) isCut(from, to string) bool { return w.cut[[2]string{from, to}] }

// Peers are those that run and can be reached.
func (n *node) Peers() []Peer {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var peers []Peer
	for id, other := range n.w.nodes {
		if other != n && other.running != nil && !n.w.isCut(n.id, id) && !n.w.isCut(id, n.id) {
			peers = append(peers, Peer{ID: id, Address: other.address, Expect: other.expect})
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
	return peers
}

func (n *node) Changed() <-chan struct{} { return n.w.changed.wait() }

func (n *node) Ask(_ context.Context, p Peer) (Knowledge, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	other := n.w.nodes[p.ID]
	if other == nil || other.running == nil || other.address != p.Address || n.w.mute == p.ID || n.w.isCut(n.id, p.ID) || n.w.isCut(p.ID, n.id) {
		return Knowledge{}, fmt.Errorf("%s: %w", p.ID, eboot.ErrUnreachable)
	}
	k := other.running.Knowledge()
	k.Complete, k.Cluster = other.complete, other.cluster
	return k, nil
}

// wire carries Raft, with the names of both ends said first.
type wire struct {
	net.Listener
	n       *node
	address string
	mu      sync.Mutex
	open    []net.Conn
}

func (l *wire) Addr() net.Addr { return peerAddress(l.address) }

func (l *wire) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, to, err := l.greet(conn)
		if err != nil || to != l.n.id {
			conn.Close()
			continue
		}
		l.keep(conn, from, to)
		return conn, nil
	}
}

func (l *wire) greet(conn net.Conn) (from, to string, err error) {
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", "", err
	}
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return "", "", err
		}
		if b[0] == '\n' {
			break
		}
	}
	if _, err := fmt.Sscan(string(line), &from, &to); err != nil {
		return "", "", err
	}
	answer := "no\n"
	if to == l.n.id {
		answer = "ok\n"
	}
	if _, err := conn.Write([]byte(answer)); err != nil {
		return "", "", err
	}
	return from, to, conn.SetDeadline(time.Time{})
}

func (l *wire) keep(conn net.Conn, from, to string) {
	l.mu.Lock()
	l.open = append(l.open, conn)
	l.mu.Unlock()
	l.n.w.mu.Lock()
	defer l.n.w.mu.Unlock()
	l.n.w.conns[conn] = [2]string{from, to}
}

func (l *wire) Connect(address, id string, timeout time.Duration) (net.Conn, error) {
	if id == "" {
		return nil, fmt.Errorf("connect to %s: which server?: %w", address, eboot.ErrInvalid)
	}
	l.n.w.mu.Lock()
	cut := l.n.w.isCut(l.n.id, id) || l.n.w.deaf == id
	l.n.w.mu.Unlock()
	if cut {
		return nil, fmt.Errorf("connect to %s: %w", address, eboot.ErrUnreachable)
	}
	conn, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "%s %s\n", l.n.id, id); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	answer, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil || answer != "ok\n" {
		return nil, errors.Join(err, conn.Close(), fmt.Errorf("%s is not at %s: %w", id, address, eboot.ErrConflict))
	}
	l.keep(conn, l.n.id, id)
	return conn, nil
}

func (l *wire) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.open {
		conn.Close()
	}
	return err
}

// leader waits for the server that all of nodes call their leader.
func (w *world) leader(nodes ...*node) *node {
	w.t.Helper()
	var leader *node
	waitFor(w.t, "a leader that all know", func() bool {
		id := ""
		for _, n := range nodes {
			s := n.server()
			if s == nil {
				return false
			}
			of := s.Status().Leader
			if of == "" || id != "" && of != id {
				return false
			}
			id = of
		}
		w.mu.Lock()
		leader = w.nodes[id]
		w.mu.Unlock()
		return leader != nil && leader.server() != nil && leader.server().Status().Role == "leader"
	})
	return leader
}

// wantMembers waits until nodes all have this configuration: "-x" is a non-voter.
func (w *world) wantMembers(nodes []*node, want ...string) {
	w.t.Helper()
	describe := func(n *node) string {
		s := n.server()
		if s == nil {
			return n.id + " is stopped"
		}
		var all []string
		for _, m := range s.Status().Servers {
			text := m.ID
			if !m.Voter {
				text = "-" + text
			}
			all = append(all, text)
			w.mu.Lock()
			if other := w.nodes[m.ID]; other != nil && other.running != nil && other.address != m.Address {
				all = append(all, "at "+m.Address)
			}
			w.mu.Unlock()
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	slices.Sort(want)
	wanted := strings.Join(want, " ")
	last := ""
	defer func() {
		if w.t.Failed() {
			w.t.Logf("want %q, the last was %q", wanted, last)
		}
	}()
	waitFor(w.t, fmt.Sprintf("members %s", wanted), func() bool {
		for _, n := range nodes {
			if last = n.id + ": " + describe(n); describe(n) != wanted {
				return false
			}
		}
		return true
	})
}

// write has the leader of nodes take a command, and all of them apply it.
func (w *world) write(command string, nodes ...*node) {
	w.t.Helper()
	waitFor(w.t, "command "+command, func() bool {
		_, err := w.leader(nodes...).server().Apply(within10s(w.t), []byte(command))
		return err == nil
	})
	waitFor(w.t, command+" everywhere", func() bool {
		for _, n := range nodes {
			if !slices.Contains(n.server().list.all(), command) {
				return false
			}
		}
		return true
	})
}

// wantStanding waits for what a server says of itself.
func (n *node) wantStanding(is error, text string) {
	n.w.t.Helper()
	var err error
	defer func() {
		if n.w.t.Failed() {
			n.w.t.Logf("%s stands: %v", n.id, err)
		}
	}()
	waitFor(n.w.t, fmt.Sprintf("%s says %q", n.id, text), func() bool {
		err = n.server().Standing()
		return errors.Is(err, is) && (is == nil) == (err == nil) && strings.Contains(fmt.Sprint(err), text)
	})
}
