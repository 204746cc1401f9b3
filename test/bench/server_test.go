package bench

import (
	"bytes"
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
// them apart from everything else. Slaves are 127.0.0.1 and others of 127.0.0.0/8.
const (
	ebootAddress    = "127.0.0.41"
	recorderAddress = "127.0.0.42"
	apiAddress      = "http://" + ebootAddress + ":4380"
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
	tb     testing.TB
	binary string
	cmd    *exec.Cmd
	log    logBuffer
	done   chan struct{}
	ns     *testutil.Namespace // nil: the machine's own network
	dir    string
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
}

// startServer starts an eboot server with nothing published but what its directory
// holds, allows 127.0.0.0/8 and waits until its API answers. It ends with the benchmark.
func startServer(tb testing.TB, opts serverOptions) *server {
	tb.Helper()
	binary, err := buildBinary()
	if err != nil {
		tb.Fatal(err)
	}
	s := &server{tb: tb, binary: binary, ns: opts.Namespace, dir: opts.Dir, done: make(chan struct{})}
	if s.dir == "" {
		s.dir = newDir(tb)
	}
	settings := filepath.Join(s.dir, "eboot.yaml")
	text := fmt.Sprintf("data_dir: %s/data\nboot: {bind: [%s], tcp_ports: 0, roots: [%s]}\napi: {bind: %q, socket: %s}\nlog: {level: warn}\n",
		s.dir, ebootAddress, strings.Join(opts.Roots, ", "), strings.TrimPrefix(apiAddress, "http://"), s.socket())
	if err := os.WriteFile(settings, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	s.cmd = exec.Command(binary, "agent", "--config", settings)
	s.cmd.Env = plainEnvironment()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.inNamespace(s.cmd.Start); err != nil {
		tb.Fatalf("start eboot: %v", err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	tb.Cleanup(s.stop)
	client := s.client()
	defer client.Close()
	testutil.Poll(tb, 30*time.Second, "eboot is to take requests", func() bool {
		s.alive()
		status, err := client.Status(tb.Context())
		return err == nil && status.Leader != ""
	})
	s.allow(eboot.WhitelistEntry{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Channel: eboot.DefaultChannel})
	return s
}

// allow adds entries to the whitelist.
func (s *server) allow(entries ...eboot.WhitelistEntry) {
	s.tb.Helper()
	client := s.client()
	defer client.Close()
	if _, err := client.Allow(s.tb.Context(), entries...); err != nil {
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

func (s *server) inNamespace(f func() error) error {
	if s.ns == nil {
		return f()
	}
	return s.ns.Do(f)
}

// socket is the Unix socket of the API: it is reached from every network namespace.
func (s *server) socket() string { return filepath.Join(s.dir, "api") }

func (s *server) client() *api.Client {
	s.tb.Helper()
	c, err := api.NewClient(api.ClientOptions{Addresses: []string{"unix://" + s.socket()}})
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

func (s *server) alive() {
	s.tb.Helper()
	select {
	case <-s.done:
		s.tb.Fatalf("eboot ended: %v\n%s", s.cmd.ProcessState, s.log.String())
	default:
	}
}

// stop ends the server gracefully, or hard after 30 s. It may be called repeatedly.
func (s *server) stop() {
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
	address := apiAddress
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
		replies := testutil.Discover(s.tb, conn, erl.ERTS, 200*time.Millisecond, ebootAddress)
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
	pid     int
	dial    func() (net.Conn, error)
	mayFail bool // a boot may fail without failing the benchmark
}

// target returns the file service of the server, for slaves at address.
func (s *server) target(erl testutil.Erlang, slave string) target {
	s.tb.Helper()
	address := netip.AddrPortFrom(netip.MustParseAddr(ebootAddress), s.filePort(erl)).String()
	dialer := &net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(slave)}}
	return target{name: "eboot", pid: s.pid(), dial: func() (net.Conn, error) { return dialer.Dial("tcp4", address) }}
}

// referenceTarget starts the file service of erl_boot_server.
func referenceTarget(tb testing.TB, erl testutil.Erlang) target {
	tb.Helper()
	reference := testutil.StartBootServer(tb, erl, testutil.BootServerOptions{})
	dialer := &net.Dialer{Timeout: patience}
	return target{
		name: "erl_boot_server", pid: reference.PID(), mayFail: true,
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
