package testutil

import (
	"bytes"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a child with its own process group, killed as a whole when the test ends.
type process struct {
	cmd  *exec.Cmd
	out  outputBuffer
	done chan struct{} // closed when cmd has ended
	err  error         // of Wait; read after done
}

// outputBuffer collects stdout and stderr of one child. Bounded, so that a node that
// prints for ever does not eat the machine.
type outputBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxOutput = 4 << 20

func (o *outputBuffer) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if room := maxOutput - o.buf.Len(); room > 0 {
		o.buf.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func (o *outputBuffer) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// startProcess starts cmd, in ns when that is not nil.
func startProcess(t testing.TB, cmd *exec.Cmd, ns *Namespace) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	// A grandchild that keeps the pipe open must not keep Wait from returning.
	cmd.WaitDelay = 2 * time.Second
	ended, err := Spawn(cmd, ns)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = <-ended
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends the whole process group and waits for it. A group whose leader was
// already waited for is left alone: its number may have gone to somebody else, and what
// remains of it (erl_child_setup) ends by itself when the emulator is gone.
func (p *process) kill() {
	if !p.exited() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.done
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
