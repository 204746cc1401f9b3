package api

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Socket returns the listener of a Unix socket whose connections say which user opened
// them: Server shows it as the sender's name. What the kernel does not tell is "unknown".
func Socket(ln *net.UnixListener) net.Listener { return socketListener{ln} }

type socketListener struct{ *net.UnixListener }

func (l socketListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return socketConn{UnixConn: conn, user: userOf(conn)}, nil
}

type socketConn struct {
	*net.UnixConn
	user socketUser
}

func (c socketConn) RemoteAddr() net.Addr { return c.user }

// socketUser is the address of the other end.
type socketUser string

func (socketUser) Network() string  { return "unix" }
func (u socketUser) String() string { return string(u) }

// userOf asks who opened a connection (unix(7), SO_PEERCRED).
func userOf(conn *net.UnixConn) socketUser {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "unknown"
	}
	user := socketUser("unknown")
	_ = raw.Control(func(fd uintptr) { // it fails on a closed connection, of which nothing will be read
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			user = socketUser(fmt.Sprintf("uid %d", c.Uid))
		}
	})
	return user
}
