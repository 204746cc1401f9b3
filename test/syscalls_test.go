package test

import (
	"bufio"
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"

	"eboot/internal/testutil"
)

// requireProgram skips a test that lacks a program, or fails it where all must be there.
func requireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("EBOOT_REQUIRE_ERL") == "1":
		t.Fatalf("EBOOT_REQUIRE_ERL=1, but %v", err)
	default:
		t.Skipf("needs %s: %v", name, err)
	}
	return path
}

// unitValues are the values of a key of the unit in their order.
func unitValues(t testing.TB, key string) (values []string) {
	t.Helper()
	content, err := os.ReadFile("../deploy/eboot.service")
	if err != nil {
		t.Fatal(err)
	}
	options, err := unit.DeserializeOptions(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range options {
		if o.Name == key {
			values = append(values, o.Value)
		}
	}
	return values
}

// unitSystemCalls are the system calls that SystemCallFilter= of the unit leaves a server,
// groups taken apart by systemd itself.
func unitSystemCalls(t testing.TB) map[string]bool {
	t.Helper()
	allowed := map[string]bool{}
	for _, value := range unitValues(t, "SystemCallFilter") {
		value, without := strings.CutPrefix(value, "~")
		for _, name := range strings.Fields(value) {
			for _, call := range systemCalls(t, name) {
				if without {
					delete(allowed, call)
				} else {
					allowed[call] = true
				}
			}
		}
	}
	return allowed
}

// systemCalls are those of a name, which may be that of a group (@NAME).
func systemCalls(t testing.TB, name string) []string {
	t.Helper()
	if !strings.HasPrefix(name, "@") {
		return []string{name}
	}
	out, err := exec.Command(requireProgram(t, "systemd-analyze"), "syscall-filter", name).Output()
	if err != nil {
		t.Fatalf("systemd-analyze syscall-filter %s: %v", name, err)
	}
	var calls []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "" || line == name || strings.HasPrefix(line, "#") {
			continue
		}
		calls = append(calls, systemCalls(t, line)...)
	}
	if len(calls) == 0 {
		t.Fatalf("%s has no system call: %s", name, out)
	}
	return calls
}

// A line of strace: the process, and a call that begins.
var (
	tracedCall   = regexp.MustCompile(`^\d+ +([a-z0-9_]+)\(`)
	tracedSocket = regexp.MustCompile(`socket(?:pair)?\((AF_[A-Z0-9]+),`)
)

// traced is what was seen of servers: each of these with a line in which it was.
type traced struct {
	calls      map[string]string
	families   map[string]string // of addresses: AF_INET, …
	executable map[string]string // memory that can be written and executed, by call
}

// add reads a file of strace.
func (s traced) add(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := tracedCall.FindStringSubmatch(line); m != nil {
			s.calls[m[1]] = line
			if strings.Contains(line, "PROT_WRITE|PROT_EXEC") || m[1] != "mmap" && strings.Contains(line, "PROT_EXEC") {
				s.executable[m[1]] = line // MemoryDenyWriteExecute= refuses both
			}
		}
		if m := tracedSocket.FindStringSubmatch(line); m != nil {
			s.families[m[1]] = line
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

// Servers that found a cluster with certificates, take a bundle, boot a node, are stopped,
// started and killed use no system call that the unit keeps from them: a dependency that begins to
// use another one is seen here, and not in a service that gets EPERM. (S18)
func TestUnitAllowsTheSystemCallsOfServers(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	strace := requireProgram(t, "strace")
	allowed := unitSystemCalls(t)
	for call, want := range map[string]bool{"sendfile": true, "accept4": true, "bind": true, "ptrace": false, "setpriority": false, "mount": false, "init_module": false} {
		if allowed[call] != want {
			t.Errorf("the unit allows %s: %v, want %v", call, allowed[call], want)
		}
	}
	dir := t.TempDir()
	trace := func(name string) string { return filepath.Join(dir, name) }
	c := startBootable(t, erl, 3, "127.0.0.0/8", clusterOptions{Secure: true, Under: func(name string) []string {
		// -D: the server is the child, so that it gets the signals. Not --seccomp-bpf, which would
		// be faster: once strace is gone, every call of a holder that is left would fail. Calls that
		// are made all the time are not written down.
		return []string{strace, "-D", "-f", "-qq", "-A", "-s", "8", "-o", trace(name),
			"-e", "trace=!" + strings.Join(frequent, ","), "--"}
	}})
	c.WaitReady(t, erl, "127.0.0.1")
	c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})
	c.Run(t, "cluster", "members").want(t, 0)
	c.servers[0].Stop(t)
	c.servers[0].Start(t)
	c.WaitFormed(t)
	c.servers[1].Kill()
	c.servers[1].Start(t)
	c.WaitFormed(t)
	c.WaitReady(t, erl, "127.0.0.1")
	c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses()})

	seen := traced{calls: map[string]string{}, families: map[string]string{}, executable: map[string]string{}}
	for _, s := range c.servers {
		seen.add(t, trace(s.Name))
	}
	for _, call := range append(slices.Sorted(maps.Keys(seen.calls)), frequent...) {
		if !allowed[call] {
			t.Errorf("a server uses %s, which the unit does not allow: %s", call, seen.calls[call])
		}
	}
	families := strings.Fields(strings.Join(unitValues(t, "RestrictAddressFamilies"), " "))
	for family, line := range seen.families {
		if !slices.Contains(families, family) {
			t.Errorf("a server uses %s, which the unit does not allow: %s", family, line)
		}
	}
	for call, line := range seen.executable {
		t.Errorf("a server uses %s for memory that it may write and execute: %s", call, line)
	}
	for _, call := range []string{"execve", "bind", "listen", "accept4", "sendto", "sendfile", "fsync", "renameat", "mmap"} {
		if seen.calls[call] == "" {
			t.Errorf("%s was not seen: the trace does not show what servers do", call)
		}
	}
	for _, family := range []string{"AF_INET", "AF_UNIX"} {
		if seen.families[family] == "" {
			t.Errorf("%s was not seen: the trace does not show what servers do", family)
		}
	}
	t.Logf("%d system calls: %s %s", len(seen.calls)+len(frequent), strings.Join(slices.Sorted(maps.Keys(seen.calls)), " "), strings.Join(frequent, " "))
}

// frequent are calls that every Go program makes all the time.
var frequent = []string{"futex", "epoll_pwait", "nanosleep", "read", "write", "madvise", "munmap", "rt_sigprocmask", "rt_sigaction", "rt_sigreturn", "sigaltstack", "sched_yield", "tgkill", "getpid"}
