package testutil

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of its own, with nothing in it but a loopback
// interface. It has no name and lives as long as the test: a killed test leaves nothing
// behind.
type Namespace struct {
	file *os.File // /proc/…/ns/net
}

// NewNamespace makes one. It needs root.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	n := &Namespace{}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		if err := setLoopbackUp(); err != nil {
			return err
		}
		var err error
		n.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	})
	if err != nil {
		t.Skipf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = n.file.Close() })
	return n
}

// Path names the namespace for programs such as `ip` and `nsenter --net=PATH`, as long
// as the test runs.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// onOwnThread runs f on a thread that is thrown away afterwards: a thread that has
// changed its namespace must never run anything else.
func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}

func setLoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// Do runs f inside the namespace. Sockets that f makes stay there for good; f must
// make them itself, not on other goroutines (net.Dial with an address literal and
// net.ListenUDP do).
func (n *Namespace) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

// DialTCP connects from inside the namespace.
func (n *Namespace) DialTCP(address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", address, 10*time.Second)
		return err
	})
	return conn, err
}

// ListenUDP opens a UDP socket inside the namespace.
func (n *Namespace) ListenUDP(address string) (*net.UDPConn, error) {
	local, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	var conn *net.UDPConn
	err = n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", local)
		return err
	})
	return conn, err
}
