package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"eboot"
	"eboot/api"
	"eboot/config"
)

// The default address may be anybody's of this machine: no token goes there that nobody sent there.
func TestTokenWantsAnAddress(t *testing.T) {
	if _, err := os.Stat(config.DefaultSocket); err == nil {
		t.Skip("a server runs on this machine")
	}
	token := eboot.FormatToken([8]byte{1}, [32]byte{2})
	for name, c := range map[string]struct {
		address, token string
		want           error
	}{
		"token alone":    {"", token, eboot.ErrInvalid},
		"neither":        {"", "", nil},
		"said":           {"http://127.0.0.1:4380", token, nil},
		"a list of none": {" , ", token, eboot.ErrInvalid},
	} {
		env := map[string]string{"EBOOT_ADDRESS": c.address, "EBOOT_TOKEN": c.token}
		cmd := &command{getenv: func(name string) string { return env[name] }}
		client, err := cmd.client()
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if client != nil {
			client.Close()
		}
	}
}

// A socket that an ordinary user may not even look at is where the server is all the same.
func TestLocalAddress(t *testing.T) {
	closed := t.TempDir()
	socket := filepath.Join(closed, "api.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := localAddress(socket); got != "unix://"+socket {
		t.Errorf("a socket: %s", got)
	}
	if got := localAddress(closed); got != api.DefaultAddress {
		t.Errorf("no socket: %s", got)
	}
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod(closed, 0o700) }()
	seen := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which is nobody's, ends with the goroutine
		if os.Geteuid() == 0 {
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				t.Error(err)
			}
		}
		seen <- localAddress(socket)
	}()
	if got := <-seen; got != "unix://"+socket {
		t.Errorf("a socket behind a closed door: %s", got)
	}
}
