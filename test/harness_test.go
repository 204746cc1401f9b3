// Package test holds the tests of the whole system: eboot as an operator runs it and
// unmodified Erlang nodes as they boot. Each test has servers of its own, on loopback addresses of
// its own, started through the same type that the binary starts. What holds times against each
// other runs alone; what mostly waits is marked t.Parallel and runs beside its like after that.
package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"eboot"
	"eboot/api"
	"eboot/config"
	"eboot/ingest"
	"eboot/internal/agent"
	"eboot/internal/testutil"
)

func TestMain(m *testing.M) {
	if isFlood() {
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		removeBinary()
		os.Exit(code)
	}))
}

// The addresses of these tests, one for each thing that answers discovery: UDP port
// 4368 is fixed, so the address is what keeps them apart. Each run has a network of its own
// out of 127/8, so that two runs on one machine do not meet.
var loopback = struct {
	sync.Mutex
	inUse [64]bool
}{}

// takeAddress returns a loopback address that nothing else of this run uses, until the
// test ends.
func takeAddress(t testing.TB) string {
	t.Helper()
	loopback.Lock()
	defer loopback.Unlock()
	for i, used := range loopback.inUse {
		if used {
			continue
		}
		loopback.inUse[i] = true
		t.Cleanup(func() {
			loopback.Lock()
			defer loopback.Unlock()
			loopback.inUse[i] = false
		})
		pid := os.Getpid()
		return fmt.Sprintf("127.%d.%d.%d", 31+pid/250%100, 1+pid%250, 1+i)
	}
	t.Fatal("all loopback addresses of these tests are in use")
	return ""
}

// serverOptions say what an eboot server under test serves.
type serverOptions struct {
	Address string   // takeAddress when empty
	DataDir string   // a temporary one when empty
	Roots   []string // boot.roots
	Pace    time.Duration
}

// server is a running eboot agent.
type server struct {
	Address string
	DataDir string
	Client  *api.Client

	agent *agent.Agent
	stop  context.CancelFunc
	done  chan struct{}
	err   error // of Run; after done
}

// startServer starts an agent with nothing published and nobody allowed, and waits
// until it takes requests.
func startServer(t testing.TB, opts serverOptions) *server {
	t.Helper()
	s := &server{Address: opts.Address, DataDir: opts.DataDir, done: make(chan struct{})}
	if s.Address == "" {
		s.Address = takeAddress(t)
	}
	if s.DataDir == "" {
		s.DataDir = t.TempDir()
	}
	c := config.Default()
	c.DataDir = s.DataDir
	c.Boot.Bind = []netip.Addr{netip.MustParseAddr(s.Address)}
	c.Boot.Roots = opts.Roots
	if opts.Pace != 0 {
		c.Boot.Priority.Pace = opts.Pace
	}
	c.API = config.API{Bind: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0), Insecure: true}

	var err error
	s.agent, err = agent.New(agent.Options{Config: c, Logger: testLogger(t), Version: "test"})
	if err != nil {
		t.Fatalf("new agent: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		s.err = s.agent.Run(ctx)
		close(s.done)
	}()
	t.Cleanup(func() { s.Stop(t) })
	select {
	case <-s.agent.Started():
	case <-s.done:
		t.Fatalf("agent ended at once: %v", s.err)
	case <-time.After(20 * time.Second):
		t.Fatal("agent has not started after 20 s")
	}
	if s.Client, err = api.NewClient(api.ClientOptions{Addresses: []string{s.agent.APIAddress()}}); err != nil {
		t.Fatalf("new client: %v", err)
	}
	t.Cleanup(s.Client.Close)
	return s
}

// startEboot starts a server that shows the tree below each of roots to the slaves
// of this machine, for the ERTS of erl.
func startEboot(t testing.TB, erl testutil.Erlang, tree string, roots []string) *server {
	t.Helper()
	s := startServer(t, serverOptions{Roots: roots})
	s.Publish(t, erl, "otp", "1", tree)
	s.Allow(t, "127.0.0.0/8")
	s.WaitReady(t, erl)
	return s
}

// Publish publishes the tree at path for the ERTS of erl and moves channel stable to it.
func (s *server) Publish(t testing.TB, erl testutil.Erlang, name, version, path string) {
	t.Helper()
	publishTree(t, s.Client, erl, eboot.Ref{Name: name, Version: version}, path)
}

func publishTree(t testing.TB, client *api.Client, erl testutil.Erlang, ref eboot.Ref, path string) api.PublishOutcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	source, err := ingest.Open(ctx, path, ingest.Options{Dereference: true, ERTS: []string{erl.ERTS}})
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	defer func() { _ = source.Close() }()
	found := source.Found()
	outcome, err := client.Publish(ctx, api.Publish{
		Ref: ref, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig,
		Channel: eboot.DefaultChannel, Source: source,
	})
	if err != nil {
		t.Fatalf("publish %s: %v", path, err)
	}
	if loader := os.Getenv(stockLoaderEnvironment); loader != "" {
		setLoader(t, client, loader)
	}
	return outcome
}

// Allow lets the addresses of prefix boot from channel stable.
func (s *server) Allow(t testing.TB, prefix string) {
	t.Helper()
	allow(t, s.Client, prefix)
}

func allow(t testing.TB, client *api.Client, prefix string) {
	t.Helper()
	p, err := eboot.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: p, Channel: eboot.DefaultChannel}); err != nil {
		t.Fatalf("allow %s: %v", prefix, err)
	}
}

// Deny takes the entry of prefix away.
func (s *server) Deny(t testing.TB, prefix string) {
	t.Helper()
	p, err := eboot.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.Deny(t.Context(), p); err != nil {
		t.Fatalf("deny %s: %v", prefix, err)
	}
}

// WaitReady waits until discovery for the ERTS of erl is answered.
func (s *server) WaitReady(t testing.TB, erl testutil.Erlang) {
	t.Helper()
	s.FileAddress(t, erl)
}

// discover asks once, from a new port: a new search, whose first answer is not
// delayed by a repeat.
func (s *server) discover(t testing.TB, erl testutil.Erlang) (testutil.Discovered, bool) {
	t.Helper()
	conn := testutil.ListenUDP(t, "127.0.0.1:0")
	defer func() { _ = conn.Close() }()
	replies := testutil.Discover(t, conn, erl.ERTS, 200*time.Millisecond, s.Address)
	if len(replies) == 0 {
		return testutil.Discovered{}, false
	}
	return replies[0], true
}

// FileAddress is where the file service for the ERTS of erl listens, once discovery says so.
func (s *server) FileAddress(t testing.TB, erl testutil.Erlang) string {
	t.Helper()
	var reply testutil.Discovered
	testutil.Poll(t, 20*time.Second, s.Address+" is to answer discovery", func() (ok bool) {
		reply, ok = s.discover(t, erl)
		return ok
	})
	return fmt.Sprintf("%s:%d", s.Address, reply.Port)
}

// Stop ends the server gracefully and waits. It may be called repeatedly.
func (s *server) Stop(t testing.TB) {
	t.Helper()
	s.stop()
	select {
	case <-s.done:
	case <-time.After(40 * time.Second):
		t.Fatal("agent has not ended 40 s after it was told to")
	}
	if s.err != nil && !errors.Is(s.err, context.Canceled) {
		t.Errorf("agent ended with %v", s.err)
	}
}

// testLogger sends logs to t.Log until the test has ended.
func testLogger(t testing.TB) hclog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.ended.Store(true) })
	level := hclog.Warn
	if os.Getenv("EBOOT_TEST_LOG") != "" {
		level = hclog.LevelFromString(os.Getenv("EBOOT_TEST_LOG"))
	}
	return hclog.New(&hclog.LoggerOptions{Name: "eboot", Level: level, Output: w, DisableTime: true})
}

type testWriter struct {
	t     testing.TB
	ended atomic.Bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	if !w.ended.Load() {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}

// write makes a file and the directories above it.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newAgentAt makes an agent for address that is not running.
func newAgentAt(t testing.TB, address string) *agent.Agent {
	t.Helper()
	c := config.Default()
	c.DataDir = t.TempDir()
	c.Boot.Bind = []netip.Addr{netip.MustParseAddr(address)}
	c.API = config.API{Bind: netip.MustParseAddrPort(address + ":0"), Insecure: true}
	a, err := agent.New(agent.Options{Config: c, Logger: testLogger(t), Version: "test"})
	if err != nil {
		t.Fatalf("new agent: %v", err)
	}
	return a
}

// startFlaky stands before a server and closes each connection after n requests. It
// returns the number of connections.
func startFlaky(t testing.TB, erl testutil.Erlang, s *server, address string, n int) *atomic.Int64 {
	t.Helper()
	var connections atomic.Int64
	dial := s.dial(t, erl)
	testutil.StartRecorder(t, testutil.RecorderOptions{
		Address: address, ERTS: erl.ERTS,
		Dial: func() (net.Conn, error) {
			connections.Add(1)
			conn, err := dial()
			if err != nil {
				return nil, err
			}
			return &dyingConn{Conn: conn, left: n}, nil
		},
	})
	return &connections
}

// dyingConn fails to send after some requests.
type dyingConn struct {
	net.Conn
	left int
}

func (c *dyingConn) Write(p []byte) (int, error) {
	if c.left--; c.left < 0 {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}
