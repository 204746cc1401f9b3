package testnet

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// Command says what a Process runs.
type Command struct {
	Args []string // the program and its arguments
	Env  []string // "NAME=value", added to the environment of the test
	Dir  string   // working directory; that of the test when empty
	Name string   // what the log calls it; the base name of the program when empty
}

// Process is a program that a test runs, on a host or on the machine's own network. It
// is killed with the test.
type Process struct {
	t         testing.TB
	command   Command
	namespace *testutil.Namespace // nil: the machine's own network
	log       *os.File
	cmd       *exec.Cmd
	ended     chan struct{} // closed when cmd has ended
}

// printedOnFailure is how much of the end of a log a failed test prints.
const printedOnFailure = 8 << 10

// Start starts a program on the machine's own network.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	return start(t, c, nil)
}

// Start starts a program on the host.
func (h *Host) Start(t testing.TB, c Command) *Process {
	t.Helper()
	if c.Name == "" {
		c.Name = filepath.Base(c.Args[0]) + " on " + h.Name
	}
	return start(t, c, h.Namespace)
}

func start(t testing.TB, c Command, ns *testutil.Namespace) *Process {
	t.Helper()
	if c.Name == "" {
		c.Name = filepath.Base(c.Args[0])
	}
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{t: t, command: c, namespace: ns, log: log}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Kill()
		}
		if t.Failed() {
			p.printLog()
		}
		_ = log.Close()
	})
	p.start()
	return p
}

func (p *Process) start() {
	p.t.Helper()
	cmd := exec.Command(p.command.Args[0], p.command.Args[1:]...)
	cmd.Dir = p.command.Dir
	cmd.Env = append(os.Environ(), p.command.Env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	result, err := testutil.Spawn(cmd, p.namespace)
	if err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		<-result // how it ended is in cmd.ProcessState
		close(ended)
	}()
}

// PID is the process id of the latest run.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the latest run has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running reports whether the program has not ended. A paused one runs.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill ends the program and its children without a word (kill -9) and waits. Its
// sockets are closed by the kernel when it returns. Nothing happens when it has ended already.
func (p *Process) Kill() {
	p.t.Helper()
	p.signalGroup(syscall.SIGKILL)
	<-p.ended
}

// Term asks the program to end, as systemd does, and waits for that. A program that
// still runs at the deadline fails the test.
func (p *Process) Term(deadline time.Duration) *os.ProcessState {
	p.t.Helper()
	if p.Running() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may end by itself meanwhile
	}
	return p.Wait(deadline)
}

// Wait waits for the program to end by itself. One that still runs at the deadline fails
// the test.
func (p *Process) Wait(deadline time.Duration) *os.ProcessState {
	p.t.Helper()
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.t.Fatalf("%s still runs after %v", p.command.Name, deadline)
	}
	return p.cmd.ProcessState
}

// Pause stops the program and its children where they are (SIGSTOP) and waits until
// they stand. The kernel goes on taking in what is sent to them and accepts their
// connections: the peers see a host that hangs.
func (p *Process) Pause() {
	p.t.Helper()
	p.signalGroup(syscall.SIGSTOP)
	testutil.Poll(p.t, 5*time.Second, p.command.Name+" is to stand still", func() bool { return !p.Running() || p.stopped() })
}

// Resume lets a paused program go on.
func (p *Process) Resume() {
	p.t.Helper()
	p.signalGroup(syscall.SIGCONT)
}

// Restart starts the program again, with the same arguments, after killing it when it runs.
func (p *Process) Restart() {
	p.t.Helper()
	p.Kill()
	p.start()
}

// signalGroup is for a group whose leader has not been waited for: after that, its
// number may be somebody else's.
func (p *Process) signalGroup(s syscall.Signal) {
	if p.Running() {
		_ = syscall.Kill(-p.PID(), s)
	}
}

// stopped reports whether every thread stands: the state is the third field of
// /proc/PID/task/TID/stat (proc(5)), which follows the name in parentheses.
func (p *Process) stopped() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, thread := range threads {
		content, err := os.ReadFile(thread)
		_, rest, ok := bytes.Cut(content, []byte(") "))
		if err != nil || !ok || !bytes.HasPrefix(rest, []byte("T")) {
			return false
		}
	}
	return true
}

// Output is what the program has printed on both channels, in all its runs.
func (p *Process) Output() string {
	p.t.Helper()
	content, err := os.ReadFile(p.log.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	return string(content)
}

func (p *Process) printLog() {
	content, err := os.ReadFile(p.log.Name())
	if err != nil {
		p.t.Logf("log of %s: %v", p.command.Name, err)
		return
	}
	if cut := len(content) - printedOnFailure; cut > 0 {
		content = content[cut:]
	}
	p.t.Logf("end of the log of %s:\n%s", p.command.Name, strings.TrimSpace(string(content)))
}
