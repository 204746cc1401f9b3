package testutil

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"
)

// accept takes connections until Sever or Cut.
func (d *Delay) accept() {
	for {
		slave, err := d.tcp.AcceptTCP()
		if err != nil {
			return
		}
		accepted := time.Now()
		server, err := d.dial(slave.RemoteAddr())
		if err != nil {
			reset(slave)
			continue
		}
		d.mu.Lock()
		if d.severed {
			d.mu.Unlock()
			reset(slave)
			reset(server)
			return
		}
		number := d.opened
		d.opened++
		d.conns[slave], d.conns[server] = true, true
		d.mu.Unlock()
		d.group.Go(func() { d.forward(number, accepted, slave, server) })
	}
}

// dial connects to the server from the slave's own address.
func (d *Delay) dial(slave net.Addr) (*net.TCPConn, error) {
	d.mu.Lock()
	port := d.port
	d.mu.Unlock()
	from := netip.AddrPortFrom(netip.MustParseAddrPort(slave.String()).Addr(), 0)
	to := netip.AddrPortFrom(netip.MustParseAddr(d.opts.Server), port)
	return net.DialTCP("tcp4", net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to))
}

// forward passes one connection until both ways have ended.
func (d *Delay) forward(number int, accepted time.Time, slave, server *net.TCPConn) {
	up, down := newDelayLine(), newDelayLine()
	frames := &frameSplitter{}
	// The slave believes that it was connected at once; over such a way it could send
	// the first byte only a round trip later.
	connected := accepted.Add(d.opts.RoundTrip)
	d.group.Go(func() {
		d.pass(up, connected, slave, server, func(data []byte) {
			for _, request := range frames.add(data) {
				d.noteRequest(Exchanged{Connection: number, Request: request, Reply: -1})
			}
		})
		up.Close()
	})
	d.group.Go(func() {
		d.pass(down, connected, server, slave, d.noteReceived)
		down.Close()
	})
	ends := make(chan struct{})
	d.group.Go(func() {
		down.Run(d.ended)
		close(ends)
	})
	up.Run(d.ended)
	<-ends
	d.mu.Lock()
	delete(d.conns, slave)
	delete(d.conns, server)
	d.mu.Unlock()
	_, _ = slave.Close(), server.Close()
}

func (d *Delay) noteRequest(e Exchanged) {
	d.mu.Lock()
	d.requests = append(d.requests, e)
	d.mu.Unlock()
	if d.opts.OnRequest != nil {
		d.opts.OnRequest(e)
	}
}

func (d *Delay) noteReceived(data []byte) {
	d.mu.Lock()
	d.received += int64(len(data))
	total := d.received
	d.mu.Unlock()
	if d.opts.OnReceived != nil {
		d.opts.OnReceived(total)
	}
}

// pass reads from one end until it ends and puts what comes on the line to the other, the
// end included: none leaves before it could have come over a connection made at `connected`.
func (d *Delay) pass(line *delayLine, connected time.Time, from, to *net.TCPConn, note func([]byte)) {
	buf := make([]byte, 32<<10)
	deliver := func(do func()) {
		at := d.halfWay()
		if first := connected.Add(d.opts.RoundTrip / 2); at.Before(first) {
			at = first
		}
		line.Put(at, func() {
			if !d.silent.Load() {
				do()
			}
		})
	}
	for {
		n, err := from.Read(buf)
		if n > 0 && !d.silent.Load() {
			data := slices.Clone(buf[:n])
			note(data)
			// When the other end has gone, the other way says so.
			deliver(func() { _, _ = to.Write(data) })
		}
		if errors.Is(err, io.EOF) {
			deliver(func() { _ = to.CloseWrite() })
			return
		}
		if err != nil {
			deliver(func() { reset(to) })
			return
		}
	}
}

// frameSplitter finds the frames in a stream.
type frameSplitter struct{ rest []byte }

// add takes what came and returns the contents of the frames that are whole.
func (s *frameSplitter) add(data []byte) [][]byte {
	s.rest = append(s.rest, data...)
	var frames [][]byte
	for len(s.rest) >= 4 {
		end := 4 + int(binary.BigEndian.Uint32(s.rest))
		if len(s.rest) < end {
			break
		}
		frames = append(frames, slices.Clone(s.rest[4:end]))
		s.rest = s.rest[end:]
	}
	return frames
}
