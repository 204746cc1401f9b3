package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// Where the servers of these benchmarks are: UDP port 4368 is fixed, so addresses keep
// them apart from everything else. Slaves are 127.0.0.1 and others of 127.0.0.0/8. Those of a
// group of servers are with it.
const (
	ebootAddress    = "127.0.0.41"
	recorderAddress = "127.0.0.42"
)

// buildBinary returns the binary to measure, and builds it once.
var buildBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("EBOOT_BIN"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(runDir, "eboot")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "eboot/cmd/eboot")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build eboot: %w\n%s", err, out)
	}
	return path, nil
})

// server is an eboot process.
type server struct {
	tb      testing.TB
	binary  string
	cmd     *exec.Cmd
	log     logBuffer
	done    chan struct{}
	ns      *testutil.Namespace // nil: the machine's own network
	dir     string
	address string
	client  *api.Client // of this server; reads are of what it knows itself
	ending  sync.Once
}

// logBuffer holds what a server has logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() < 1<<20 {
		l.buf.Write(p)
	}
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// serverOptions say what differs from the defaults.
type serverOptions struct {
	Dir       string              // of data; empty: a new one
	Roots     []string            // boot.roots
	Namespace *testutil.Namespace // nil: the machine's own network
	Address   string              // empty: ebootAddress
	Group     []string            // addresses of the servers that belong together, this one included; empty: it is alone
}

// settings is the configuration file of a server in dir.
func (o serverOptions) settings(dir, socket string) string {
	lines := []string{
		"data_dir: " + filepath.Join(dir, "data"),
		fmt.Sprintf("boot: {bind: [%s], tcp_ports: 0, roots: [%s]}", o.Address, strings.Join(o.Roots, ", ")),
		fmt.Sprintf("api: {bind: '%s:4380', socket: %s, insecure: true}", o.Address, socket),
		"log: {level: warn}",
	}
	if len(o.Group) > 0 {
		lines = append(lines,
			fmt.Sprintf("cluster: {name: bench, expect: %d}", len(o.Group)),
			fmt.Sprintf("peer: {bind: '%s:4381'}", o.Address),
			fmt.Sprintf("gossip: {bind: '%s:4382', seeds: ['%s:4382']}", o.Address, strings.Join(o.Group, ":4382', '")),
			"tls: {insecure: true}")
	}
	return strings.Join(lines, "\n") + "\n"
}

// launch starts an eboot server, which ends with the benchmark, and waits for nothing.
func launch(tb testing.TB, opts serverOptions) *server {
	tb.Helper()
	binary, err := buildBinary()
	if err != nil {
		tb.Fatal(err)
	}
	opts.Address = cmp.Or(opts.Address, ebootAddress)
	s := &server{tb: tb, binary: binary, ns: opts.Namespace, dir: opts.Dir, address: opts.Address, done: make(chan struct{})}
	if s.dir == "" {
		s.dir = newDir(tb)
	}
	if s.client, err = api.NewClient(api.ClientOptions{Addresses: []string{"unix://" + s.socket()}, Stale: true}); err != nil {
		tb.Fatal(err)
	}
	settings := filepath.Join(s.dir, "eboot.yaml")
	writeFile(tb, settings, []byte(opts.settings(s.dir, s.socket())))
	s.cmd = exec.Command(binary, "agent", "--config", settings)
	s.cmd.Env = plainEnvironment()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	ended, err := testutil.Spawn(s.cmd, s.ns)
	if err != nil {
		tb.Fatalf("start eboot: %v", err)
	}
	go func() {
		<-ended // how it ended is in cmd.ProcessState
		close(s.done)
	}()
	tb.Cleanup(s.stop)
	return s
}

// startServer starts an eboot server with nothing published but what its directory
// holds, allows 127.0.0.0/8 and waits until its API answers. It ends with the benchmark.
func startServer(tb testing.TB, opts serverOptions) *server {
	tb.Helper()
	s := launch(tb, opts)
	testutil.Poll(tb, 30*time.Second, "eboot is to take requests", func() bool {
		s.alive()
		status, err := s.client.Status(tb.Context())
		return err == nil && status.Leader != ""
	})
	s.allowSlaves()
	return s
}

// allowSlaves allows 127.0.0.0/8.
func (s *server) allowSlaves() {
	s.tb.Helper()
	s.allow(eboot.WhitelistEntry{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Channel: eboot.DefaultChannel})
}

// allow adds entries to the whitelist.
func (s *server) allow(entries ...eboot.WhitelistEntry) {
	s.tb.Helper()
	if _, err := s.client.Allow(s.tb.Context(), entries...); err != nil {
		s.tb.Fatalf("allow %d prefixes: %v", len(entries), err)
	}
}

// plainEnvironment is the environment without what configures eboot.
func plainEnvironment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "EBOOT_") {
			env = append(env, v)
		}
	}
	return env
}

// socket is the Unix socket of the API: it is reached from every network namespace.
func (s *server) socket() string { return filepath.Join(s.dir, "api") }

func (s *server) alive() {
	s.tb.Helper()
	select {
	case <-s.done:
		s.tb.Fatalf("eboot ended: %v\n%s", s.cmd.ProcessState, s.log.String())
	default:
	}
}

// stop ends the server gracefully, or hard after 30 s. It may be called repeatedly.
func (s *server) stop() { s.ending.Do(s.end) }

func (s *server) end() {
	s.client.Close()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails once it has ended
	timer := time.NewTimer(30 * time.Second)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.tb.Error("eboot has not ended 30 s after SIGTERM")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if s.tb.Failed() {
		s.tb.Logf("log of eboot:\n%s", s.log.String())
	}
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// publish runs `eboot bundle publish` and returns how long it took, as a user waits for it.
func (s *server) publish(name, version, path string, flags ...string) time.Duration {
	s.tb.Helper()
	address := "http://" + s.address + ":4380"
	if s.ns != nil {
		address = "unix://" + s.socket()
	}
	args := append([]string{"bundle", "publish", name, version, path, "--dereference", "--address", address, "--timeout", "5m"}, flags...)
	cmd := exec.Command(s.binary, args...)
	cmd.Env = plainEnvironment()
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		s.tb.Fatalf("eboot %s: %v\n%s\nlog of the server:\n%s", strings.Join(args, " "), err, out, s.log.String())
	}
	return took
}

// filePort asks by discovery where the files for erl are, and waits for the answer.
func (s *server) filePort(erl testutil.Erlang) uint16 {
	s.tb.Helper()
	var port uint16
	testutil.Poll(s.tb, 30*time.Second, "eboot is to answer discovery", func() bool {
		s.alive()
		conn, err := listenUDP(s.ns, "127.0.0.1:0")
		if err != nil {
			s.tb.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		replies := testutil.Discover(s.tb, conn, erl.ERTS, 200*time.Millisecond, s.address)
		if len(replies) > 0 {
			port = replies[0].Port
		}
		return len(replies) > 0
	})
	return port
}

func listenUDP(ns *testutil.Namespace, address string) (*net.UDPConn, error) {
	if ns != nil {
		return ns.ListenUDP(address)
	}
	local, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP("udp4", local)
}

// target is a file service under load.
type target struct {
	name    string
	pids    []int // of its processes
	dial    func() (net.Conn, error)
	mayFail bool // a boot may fail without failing the benchmark
}

// target returns the file service of the server, for slaves at address.
func (s *server) target(erl testutil.Erlang, slave string) target {
	s.tb.Helper()
	address := netip.AddrPortFrom(netip.MustParseAddr(s.address), s.filePort(erl)).String()
	dialer := &net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(slave)}}
	return target{name: "eboot", pids: []int{s.pid()}, dial: func() (net.Conn, error) { return dialer.Dial("tcp4", address) }}
}

// referenceTarget starts the file service of erl_boot_server.
func referenceTarget(tb testing.TB, erl testutil.Erlang) target {
	tb.Helper()
	reference := testutil.StartBootServer(tb, erl, testutil.BootServerOptions{})
	dialer := &net.Dialer{Timeout: patience}
	return target{
		name: "erl_boot_server", pids: []int{reference.PID()}, mayFail: true,
		dial: func() (net.Conn, error) { return dialer.Dial("tcp4", reference.Address()) },
	}
}

// startOTP starts an eboot server that serves the installed OTP.
func startOTP(tb testing.TB, erl testutil.Erlang) *server {
	tb.Helper()
	s := startServer(tb, serverOptions{Roots: []string{erl.Root}})
	s.publish("otp", "1", erl.Root, "--channel", eboot.DefaultChannel)
	return s
}

// copyTree copies as cp -r does: links stay links.
func copyTree(tb testing.TB, from, to string) {
	tb.Helper()
	if out, err := exec.Command("cp", "-r", from, to).CombinedOutput(); err != nil {
		tb.Fatalf("cp -r %s %s: %v\n%s", from, to, err, out)
	}
}

// inTurn calls both, in an order that changes with the round.
func inTurn(round int, first, second func()) {
	if round%2 == 1 {
		first, second = second, first
	}
	first()
	second()
}

// drain reads n bytes and throws them away, with few system calls.
func drain(conn io.Reader, n int64, buffer []byte) error {
	for n > 0 {
		k, err := conn.Read(buffer[:min(n, int64(len(buffer)))])
		n -= int64(k)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}
