package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"eboot"
)

// Only a socket that nobody listens at is taken away, not one whose server has no time.
func TestSocketThatIsTakenAway(t *testing.T) {
	listening := func(t *testing.T, path string, backlog int) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, backlog)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		want error
		gone bool
	}{
		"nothing": {func(*testing.T, string) {}, nil, true},
		"left behind": {func(t *testing.T, path string) {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			_ = ln.Close()
		}, nil, true},
		"in use": {func(t *testing.T, path string) { listening(t, path, 8) }, eboot.ErrConflict, false},
		"busy": {func(t *testing.T, path string) {
			listening(t, path, 0)
			for { // until the queue is full
				conn, err := net.Dial("unix", path)
				if err != nil {
					return
				}
				t.Cleanup(func() { _ = conn.Close() })
			}
		}, syscall.EAGAIN, false},
		"a file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, eboot.ErrInvalid, false},
		"a symlink": {func(t *testing.T, path string) {
			listening(t, path+".real", 8)
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		}, eboot.ErrInvalid, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			c.make(t, path)
			if err := clearSocket(path); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != c.gone {
				t.Errorf("is gone: %v, want %v", err, c.gone)
			}
		})
	}
}
