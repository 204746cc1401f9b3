package peerport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"eboot"
)

// DialTimeout bounds Dial where its context does not.
const DialTimeout = 10 * time.Second

// A peer that is silent for this long is gone: cut off, hung as a whole machine, or
// without power. Without it a connection that only waits would wait for ever, and one
// that sends would for 15 minutes.
const silence = 10 * time.Second

// keepAlive asks a quiet peer whether it is there.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 2, Count: 3}

// Dialer connects to the peer ports of other servers.
type Dialer struct {
	Cluster     string      // name of the cluster
	Server      string      // id of the server that dials
	Credentials Credentials // nil: none, as in Options
}

// Dial connects to the peer port at address, HOST:PORT, and asks for a protocol. to is
// the id of the server that is meant to be there; "": whichever is. It returns when the
// listener of that protocol has taken the connection.
//
// The error wraps eboot.ErrUnreachable when there was no connection or it ended
// without an answer; otherwise the text is the other server's and the error wraps
// eboot.ErrConflict (it belongs to another cluster or has another id),
// eboot.ErrUnavailable (it does not take part in that protocol yet, is full or
// stopping), eboot.ErrDenied (it does not speak that protocol, or one of the two does
// not accept the certificate of the other) or eboot.ErrInvalid. It also wraps the
// context's error when that ended the call.
func (d Dialer) Dial(ctx context.Context, address, protocol, to string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: keepAlive, Control: func(_, _ string, raw syscall.RawConn) error { return limitSilence(raw) }}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		return nil, fmt.Errorf("dial %s for %s: %w: %w", address, protocol, eboot.ErrUnreachable, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	conn, err := d.secure(raw)
	if err == nil {
		err = ask(conn, preface{protocol: protocol, cluster: d.Cluster, from: d.Server, to: to})
	}
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline in the past has been set, or will be
	}
	if err == nil {
		return conn, nil
	}
	_ = raw.Close() // no use for it
	r := alert(err)
	switch {
	case r != nil, errors.As(err, &r):
		return nil, fmt.Errorf("dial %s for %s: refused: %s: %w", address, protocol, r.text, r.kind)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("dial %s for %s: no answer: %w: %w", address, protocol, eboot.ErrUnreachable, err)
}

func ask(conn net.Conn, p preface) error {
	line := p.encode()
	if len(line) > maxPreface {
		return refuse(eboot.ErrInvalid, "the preface is too long")
	}
	if _, err := conn.Write(line); err != nil {
		// It may have been refused before it said anything.
		if r := new(refusal); errors.As(readAnswer(conn), &r) {
			return r
		}
		return err
	}
	return readAnswer(conn)
}

// notice sets up an accepted connection so that a silent peer is noticed.
// TCP_NODELAY is Go's default.
func notice(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	// Both fail only on a connection that has broken already.
	_ = tcp.SetKeepAliveConfig(keepAlive)
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = limitSilence(raw)
	}
}

// limitSilence ends a connection when what was sent is not acknowledged in time
// (tcp(7), TCP_USER_TIMEOUT; it also bounds how long keep-alive probes go on).
func limitSilence(raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence/time.Millisecond))
	}); e != nil {
		return e
	}
	return err
}
