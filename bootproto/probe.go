package bootproto

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reply is what something that takes itself for a boot server answers.
type Reply struct {
	From     netip.AddrPort // where it came from; a slave goes to that address
	Priority byte
	Port     uint16 // TCP port of its files
	ERTS     string // the version that it names; empty: none that could be one
}

// ProbeTarget is an IPv4 network that is asked: its broadcast address, and the address of
// ours in it that asks.
type ProbeTarget struct{ From, To netip.Addr }

// maxReplies bounds the addresses that one probe remembers: a stranger chooses those that it
// answers from.
const maxReplies = 256

// Probe looks for boot servers as a slave does that was given a broadcast address.
type Probe struct {
	targets []ProbeTarget
	conns   []*net.UDPConn // in the order of targets
}

// OpenProbe opens a socket for each target, at a port that the kernel chooses. It sends nothing.
func OpenProbe(targets []ProbeTarget) (*Probe, error) {
	p := &Probe{targets: targets}
	for _, target := range targets {
		conn, err := listenProbe(target.From)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("probe from %s: %w", target.From, err), p.Close())
		}
		p.conns = append(p.conns, conn)
	}
	return p, nil
}

func listenProbe(from netip.Addr) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(from.Unmap(), 0).String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// Sources are where the queries come from. A Discovery of this machine may hear them, too.
func (p *Probe) Sources() []netip.AddrPort {
	sources := make([]netip.AddrPort, len(p.conns))
	for i, conn := range p.conns {
		local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		sources[i] = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	}
	return sources
}

// Ask sends a query for each version to each target and returns what answers within a time,
// or until ctx ends: the first reply of each address, of at most 256. An error says which
// networks could not be asked; the replies of the others come with it.
func (p *Probe) Ask(ctx context.Context, versions []string, within time.Duration) ([]Reply, error) {
	return p.ask(ctx, versions, within, Port)
}

func (p *Probe) ask(ctx context.Context, versions []string, within time.Duration, port uint16) ([]Reply, error) {
	var failed error
	for i, conn := range p.conns {
		for _, version := range versions {
			query := appendQuery(nil, version)
			if _, err := conn.WriteToUDPAddrPort(query, netip.AddrPortFrom(p.targets[i].To, port)); err != nil {
				if op, ok := errors.AsType[*net.OpError](err); ok {
					err = op.Err // without our port, which is another one each time
				}
				failed = errors.Join(failed, fmt.Errorf("probe %s: %w", p.targets[i].To, err))
				break
			}
		}
	}
	heard := replySet{seen: map[netip.Addr]struct{}{}}
	deadline := time.Now().Add(within)
	var reading sync.WaitGroup
	for _, conn := range p.conns {
		_ = conn.SetReadDeadline(deadline)
		reading.Go(func() { heard.read(conn, deadline) })
	}
	stop := context.AfterFunc(ctx, func() {
		for _, conn := range p.conns {
			_ = conn.Close()
		}
	})
	reading.Wait()
	stop()
	return heard.replies, failed
}

// Close ends the probe.
func (p *Probe) Close() (err error) {
	for _, conn := range p.conns {
		if e := conn.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// replySet is what the sockets of a probe hear.
type replySet struct {
	mu      sync.Mutex
	seen    map[netip.Addr]struct{}
	replies []Reply
}

// read takes replies until the deadline, or until the socket is closed. Errors of single
// datagrams (an ICMP message of some host) end nothing.
func (s *replySet) read(conn *net.UDPConn, deadline time.Time) {
	datagram := make([]byte, maxReply+1)
	for time.Now().Before(deadline) {
		n, from, err := conn.ReadFromUDPAddrPort(datagram)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if r, ok := parseReply(datagram[:n]); ok {
			r.From = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			s.enter(r)
		}
	}
}

func (s *replySet) enter(r Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.seen[r.From.Addr()]; again || len(s.replies) >= maxReplies {
		return
	}
	s.seen[r.From.Addr()] = struct{}{}
	s.replies = append(s.replies, r)
}
