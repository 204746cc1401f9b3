package bootproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is the UDP port of discovery, fixed in the client (kernel, inet_boot.hrl:
// EBOOT_PORT).
const Port = 4368

const (
	// A rack that is switched on sends three datagrams a slave at once, more with
	// a long -hosts; the kernel charges each with up to 768 bytes.
	discoveryReadBuffer = 1 << 20

	// What waits for one host that is not there takes as much as the kernel's default, 208 KiB
	// (net.ipv4.neigh.default.unres_qlen_bytes): there must be room for more.
	discoveryWriteBuffer = 1 << 20

	// A stock slave gives up on a server whose listen queue is full for 15 s, so
	// a whole rack must fit. The kernel cuts it to net.core.somaxconn.
	fileBacklog = 4096
)

// ListenDiscovery binds the UDP socket of discovery to an IPv4 address. On
// 0.0.0.0 it also hears broadcast; on another address it hears only what was
// sent to that address. Each datagram comes with the address that it was sent
// to. What cannot be a request is dropped by the kernel. When another process holds
// the port, the error wraps syscall.EADDRINUSE.
func ListenDiscovery(addr netip.Addr) (*net.UDPConn, error) {
	return listenDiscovery(addr.Unmap(), Port)
}

func listenDiscovery(addr netip.Addr, port int) (*net.UDPConn, error) {
	if !addr.Is4() {
		return nil, fmt.Errorf("listen for discovery on %s: not an IPv4 address", addr)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error {
			// Without permission to broadcast the kernel refuses a reply to an address
			// that is the broadcast address of any of its networks.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 0); err != nil {
				return fmt.Errorf("forbid broadcast: %w", err)
			}
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				return fmt.Errorf("ask for destination addresses: %w", err)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err != nil {
				return fmt.Errorf("ask for the number of dropped datagrams: %w", err)
			}
			return attachFilter(fd) // before it is bound: nothing comes in past it
		})
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", net.JoinHostPort(addr.String(), strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("listen for discovery: %w", err)
	}
	udp := conn.(*net.UDPConn)
	if err := errors.Join(udp.SetReadBuffer(discoveryReadBuffer), udp.SetWriteBuffer(discoveryWriteBuffer)); err != nil {
		_ = udp.Close()
		return nil, fmt.Errorf("listen for discovery: %w", err)
	}
	return udp, nil
}

// ListenFiles binds a TCP listener for the file protocol to an IPv4 address. Its
// queue holds 4096 connections, as far as net.core.somaxconn allows it. Port 0
// means any free port. When the port is taken, the error wraps
// syscall.EADDRINUSE.
func ListenFiles(addr netip.AddrPort) (net.Listener, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if !addr.Addr().Is4() {
		return nil, fmt.Errorf("listen for slaves on %s: not an IPv4 address", addr)
	}
	// No keep-alive: the idle and progress timeouts find a dead slave sooner, and
	// a rack that boots is spared four system calls a connection.
	config := net.ListenConfig{KeepAlive: -1}
	ln, err := config.Listen(context.Background(), "tcp4", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen for slaves: %w", err)
	}
	// The net package asks for a queue of net.core.somaxconn, or 128 where /proc
	// cannot be read. A second listen(2) changes the length of the queue.
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error { return unix.Listen(fd, fileBacklog) })
	}
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen for slaves on %s: set the length of the queue: %w", addr, err)
	}
	return ln, nil
}

// control runs f on the descriptor of a socket.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}
