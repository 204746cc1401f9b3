package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"eboot/api"
	"eboot/internal/testutil"
)

// program builds the program once for the whole run.
var program = sync.OnceValues(func() (string, error) {
	dir, err := built()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "eboot")
	out, err := exec.Command("go", "build", "-o", path, "eboot/cmd/eboot").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return path, nil
})

var built = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "eboot-test-*") })

// removeBinary deletes what program built, if anything.
func removeBinary() {
	if dir, err := built(); err == nil {
		_ = os.RemoveAll(dir)
	}
}

// serverProcess is an eboot agent in a process of its own, which can be killed.
type serverProcess struct {
	Address string
	Client  *api.Client
	cmd     *exec.Cmd
	output  *bytes.Buffer // read only after the process has ended
	ended   chan struct{}
}

// startProcess runs `eboot agent` on address with its data in dir, and waits until it
// can take writes. It is killed with the test.
func startProcess(t testing.TB, address, dir string) *serverProcess {
	t.Helper()
	return startProcessWith(t, address, dir, fmt.Sprintf("boot: {bind: [%s]}", address))
}

// startProcessWith is startProcess with a boot section of its own.
func startProcessWith(t testing.TB, address, dir, boot string) *serverProcess {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(t.TempDir(), "eboot.yaml")
	write(t, settings, fmt.Sprintf("data_dir: %s\n%s\napi: {bind: '%s:4380', socket: '', insecure: true}\nlog: {level: warn}\n", dir, boot, address))
	s := &serverProcess{Address: address, cmd: exec.Command(path, "agent", "--config", settings), output: &bytes.Buffer{}, ended: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // killed on purpose, most of the time
		close(s.ended)
	}()
	t.Cleanup(s.Kill)
	if s.Client, err = api.NewClient(api.ClientOptions{Addresses: []string{"http://" + address + ":4380"}, Timeout: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Client.Close)
	testutil.Poll(t, 30*time.Second, "server process is to have a leader", func() bool {
		select {
		case <-s.ended:
			t.Fatalf("server ended: %s", s.output)
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		status, err := s.Client.Status(ctx)
		return err == nil && status.Role == "leader"
	})
	return s
}

// Kill ends the process without a word, and waits until it is gone.
func (s *serverProcess) Kill() {
	_ = s.cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	<-s.ended
}
