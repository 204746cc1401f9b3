package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"eboot"
	"eboot/api"
)

// door is one listener of the admin API.
type door struct {
	listener net.Listener
	kind     api.Door
}

// listenAPI opens the Unix socket and the TCP address that are configured.
func (a *Agent) listenAPI() (doors []door, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeDoors(doors))
			doors = nil
		}
	}()
	if path := a.config.API.Socket; path != "" {
		ln, err := listenSocket(path)
		if err != nil {
			return doors, err
		}
		doors = append(doors, door{api.Socket(ln), api.DoorSocket})
		address := "unix://" + path
		a.apiAddress.Store(&address)
	}
	if a.config.OpensTCP() {
		ln, err := net.Listen("tcp", a.config.API.Bind.String())
		if err != nil {
			return doors, bindError("api", "api.bind", err)
		}
		d, scheme := door{ln, api.DoorInsecure}, "http"
		if c := a.secrets.credentials; c != nil {
			d, scheme = door{tls.NewListener(api.Limit(ln, api.MaxConnections, api.MaxConnectionsPerAddress), c.ForOperators()), api.DoorTLS}, "https"
		}
		doors = append(doors, d)
		address := scheme + "://" + ln.Addr().String()
		a.apiAddress.Store(&address)
	}
	return doors, nil
}

// listenSocket opens the Unix socket. Its directory is made when there is none: it lets the
// server's own user and group in, as the socket does.
func listenSocket(path string) (*net.UnixListener, error) {
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("api socket: %w; make the directory, or choose another path (api.socket)", err)
	}
	// The file comes into being with the mode that the socket has (unix_bind in Linux), less the
	// umask: at no time may others open it.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, failed)
	}}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w; choose another path (api.socket), if this server must not make it", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("api socket: %w", err), ln.Close())
	}
	return ln.(*net.UnixListener), nil
}

// socketMode lets root, the server's own user and its group in.
const socketMode = 0o660

// clearSocket removes the socket that a server left behind, and nothing else.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("api socket: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("api socket %s: there is a file of another kind; remove it or choose another path: %w", path, eboot.ErrInvalid)
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("api socket %s: another server answers there: %w", path, eboot.ErrConflict), conn.Close())
	case !errors.Is(err, syscall.ECONNREFUSED): // one that is busy, or another user's, is in use
		return fmt.Errorf("api socket %s: there is one that may be in use; remove it or choose another path: %w", path, err)
	}
	return os.Remove(path)
}

func closeDoors(doors []door) (err error) {
	for _, d := range doors {
		err = errors.Join(err, d.listener.Close())
	}
	return err
}
