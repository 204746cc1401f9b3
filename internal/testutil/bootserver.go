package testutil

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// BootServer is OTP's own erl_boot_server, serving the files of this machine: the
// reference that eboot is compared with.
type BootServer struct {
	t         testing.TB
	process   *process
	namespace *Namespace // nil: on the machine's own network
	port      uint16     // of its file service
}

// BootServerOptions say how the reference server is started.
type BootServerOptions struct {
	// Dir is its working directory, which relative names mean. Empty: a temporary one.
	Dir string
	// Whitelist are IPv4 addresses that it serves. Empty: 127.0.0.1.
	Whitelist []string
	// Namespace: the whole server, discovery included, there. nil: its file service
	// alone, on the machine's own loopback. erl_boot_server binds 0.0.0.0:4368, and so the whole of
	// it cannot run beside any other EBOOT server.
	Namespace *Namespace
}

// The file service of erl_boot_server without its discovery: boot_init/1 is the
// process that accepts and serves; it asks the registered process boot_server who is
// allowed, which a plain process answers here as the gen_server would.
const fileServiceEval = `
	Allowed = [{{255,255,255,255},A} || A <- [%[1]s]],
	Answer = fun Loop() -> receive {'$gen_call', From, which} -> gen_server:reply(From, Allowed), Loop() end end,
	register(boot_server, spawn(Answer)),
	{ok, L} = gen_tcp:listen(0, [binary, {packet,4}]),
	{ok, Port} = inet:port(L),
	Ref = make_ref(),
	Pid = proc_lib:spawn(erl_boot_server, boot_init, [Ref]),
	ok = gen_tcp:controlling_process(L, Pid),
	Pid ! {Ref, L},
	io:format("serving ~w~n", [Port]).`

const bootServerEval = `
	{ok, _} = erl_boot_server:start([%[1]s]),
	{ok, Port} = inet:port(element(6, sys:get_state(boot_server))),
	io:format("serving ~w~n", [Port]).`

var servingLine = regexp.MustCompile(`(?m)^serving (\d+)$`)

// StartBootServer starts the reference server and waits until it serves.
func StartBootServer(t testing.TB, erl Erlang, opts BootServerOptions) *BootServer {
	t.Helper()
	whitelist := opts.Whitelist
	if len(whitelist) == 0 {
		whitelist = []string{"127.0.0.1"}
	}
	quoted := make([]string, len(whitelist))
	for i, a := range whitelist {
		quoted[i] = "{" + strings.ReplaceAll(netip.MustParseAddr(a).String(), ".", ",") + "}"
	}
	eval := fileServiceEval
	if opts.Namespace != nil {
		eval = bootServerEval
	}
	eval = strings.Join(strings.Fields(fmt.Sprintf(eval, strings.Join(quoted, ","))), " ")

	// +fnu: names are UTF-8 whatever the locale of the test run. No logger output: the
	// server logs every connection that is closed in the middle.
	args := []string{"+fnu", "-noinput", "-boot", "start_clean", "-kernel", "logger_level", "none", "-eval", eval}
	cmd := erl.command(erl.program(), args...)
	home := t.TempDir()
	cmd.Dir = opts.Dir
	if cmd.Dir == "" {
		cmd.Dir = home
	}
	// TZ: file times go over the wire as local time.
	cmd.Env = append(os.Environ(), "HOME="+home, "TZ=UTC", "LANG=C.UTF-8", "ERL_CRASH_DUMP_SECONDS=0")
	s := &BootServer{t: t, namespace: opts.Namespace}
	s.process = startProcess(t, cmd, opts.Namespace)
	Poll(t, 20*time.Second, "erl_boot_server is to serve", func() bool {
		if s.process.exited() {
			t.Fatalf("erl_boot_server ended: %v\n%s", s.process.err, s.process.out.String())
		}
		m := servingLine.FindStringSubmatch(s.process.out.String())
		if m == nil {
			return false
		}
		_, err := fmt.Sscan(m[1], &s.port)
		return err == nil
	})
	return s
}

// Address is the address of its file service, on its own network.
func (s *BootServer) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Stop kills it.
func (s *BootServer) Stop() { s.process.kill() }

// PID is the process id of the emulator, to read its CPU time.
func (s *BootServer) PID() int { return s.process.cmd.Process.Pid }

// Dial connects to its file service, wherever it runs.
func (s *BootServer) Dial() (net.Conn, error) {
	if s.namespace != nil {
		return s.namespace.DialTCP(s.Address())
	}
	return net.DialTimeout("tcp4", s.Address(), 10*time.Second)
}

// Client connects and returns a client of its file service.
func (s *BootServer) Client() *FileClient {
	s.t.Helper()
	conn, err := s.Dial()
	if err != nil {
		s.t.Fatalf("connect to erl_boot_server: %v", err)
	}
	return NewFileClient(s.t, conn)
}
