package bootproto

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowHost takes its time to let a slave in.
type slowHost struct {
	*tree
	admit chan struct{}
}

func (h *slowHost) Connect(slave netip.AddrPort, erts string) (Session, error) {
	<-h.admit
	return h.tree.Connect(slave, erts)
}

// TestDrainEndsWhatWasNotAdmitted: a connection that the Host lets in when the
// time to drain is over ends at once, however busy its slave is.
func TestDrainEndsWhatWasNotAdmitted(t *testing.T) {
	host := &slowHost{tree: newTree()}
	inBubble(t, FileServerOptions{Host: host}, func(t *testing.T, _ *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		host.admit = make(chan struct{})
		conn := ln.dial()
		defer conn.Close()
		synctest.Wait()
		stop()
		pass(DefaultDrain + time.Second)
		select {
		case <-served:
			t.Error("the server has ended before its connection")
		default:
		}
		admitted := time.Now()
		close(host.admit)
		if took := untilClosed(t, conn); took != 0 {
			t.Errorf("closed %v after it was let in", took)
		}
		<-served
		if ended := host.ended(); len(ended) != 1 || !errors.Is(ended[0], errDraining) || time.Since(admitted) != 0 {
			t.Errorf("ended with %v, %v after it was let in", ended, time.Since(admitted))
		}
	})
}

// TestDrainedServer: a server that is drained and lives on ends a connection when its
// slave asks after a while of quiet, or asks on when the time to drain is over, and closes
// none by itself.
func TestDrainedServer(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	files := newTree()
	inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		idle, endless := ln.dial(), ln.dial()
		exchange(t, idle, request)
		exchange(t, endless, request)
		pass(time.Minute / 2)
		exchange(t, endless, request)
		s.Drain(true)
		s.Drain(true) // it is again and again
		askUntilClosed := func(conn net.Conn, least, most time.Duration) {
			t.Helper()
			began := time.Now()
			for {
				if _, err := conn.Write(request); err != nil {
					break
				}
				if _, err := readPacket(conn); err != nil {
					break
				}
				pass(500 * time.Millisecond)
			}
			if took := time.Since(began); took < least || took > most {
				t.Errorf("a slave that asks again and again was served for %v, want %v to %v", took, least, most)
			}
		}
		askUntilClosed(endless, DefaultDrain, DefaultDrain+time.Second)
		pass(time.Minute/2 - DefaultDrain) // the slave is about to close it
		synctest.Wait()
		if n := s.Stats().Connections; n != 1 {
			t.Errorf("%d connections are open, want the idle one", n)
		}
		send(t, idle, request[:1])
		if took := untilClosed(t, idle); took != 0 {
			t.Errorf("a connection was closed %v after a request that followed quiet", took)
		}
		late := ln.dial() // it was answered before
		askUntilClosed(late, DefaultDrain, DefaultDrain+time.Second)

		again := ln.dial()
		exchange(t, again, request)
		s.Drain(false)
		pass(2 * DefaultQuiet)
		exchange(t, again, request)
		_ = again.Close()
		for _, reason := range files.ended()[:3] {
			if !errors.Is(reason, errDraining) {
				t.Errorf("ended with %v", reason)
			}
		}
	})
}

// duplicates is a Holder that takes what it is given, in this process.
type duplicates struct {
	mu   sync.Mutex
	held []*duplicate
}

type duplicate struct {
	file              *os.File
	refuse            atomic.Bool // Release fails
	busy              atomic.Bool
	released, dropped atomic.Bool
}

func (h *duplicates) Hold(conn *net.TCPConn) Held {
	f, err := conn.File()
	if err != nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d := &duplicate{file: f}
	h.held = append(h.held, d)
	return d
}

// at waits until the connections of n slaves are held, and returns that of the last.
func (h *duplicates) at(t *testing.T, n int) *duplicate {
	t.Helper()
	var last *duplicate
	eventually(t, "the connection is held", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.held) == n {
			last = h.held[n-1]
		}
		return len(h.held) == n
	})
	return last
}

func (d *duplicate) Busy(busy bool) { d.busy.Store(busy) }
func (d *duplicate) Release() bool  { return !d.refuse.Load() && !d.released.Swap(true) }
func (d *duplicate) Drop()          { d.dropped.Store(true) }

// open reports whether the connection is, for its slave.
func open(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 {
		t.Fatal("the slave was sent something")
	}
	return timedOut(err)
}

// TestHolder: a connection whose server stops is left to the Holder, open, when it was
// quiet; a connection that ends otherwise ends although it is held.
func TestHolder(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	files, holder := newTree(), &duplicates{}
	defer func() {
		for _, d := range holder.held {
			_ = d.file.Close()
		}
	}()
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	s := NewFileServer(FileServerOptions{Host: files, Holder: holder, Quiet: 50 * time.Millisecond, Drain: time.Second})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, "13.1.5") }()
	connect := func(n int) (*net.TCPConn, *duplicate) {
		conn := dial(t, ln.Addr().String())
		exchange(t, conn, request)
		return conn, holder.at(t, n)
	}

	closing, closed := connect(1)
	_ = closing.Close()
	eventually(t, "the slave closed: the Holder is told", closed.dropped.Load)

	denied, cut := connect(2)
	eventually(t, "the request has been answered", func() bool { return !cut.busy.Load() })
	send(t, denied, request[:5])
	eventually(t, "a request is outstanding", cut.busy.Load)
	files.denied.Store(true)
	s.Recheck()
	if took := untilClosed(t, denied); took > time.Second {
		t.Errorf("closed after %v although it was to be at once", took)
	}
	eventually(t, "the server closed: the Holder is told", cut.dropped.Load)
	files.denied.Store(false)

	idle, left := connect(3)
	partial, half := connect(4)
	eventually(t, "the request has been answered", func() bool { return !half.busy.Load() })
	send(t, partial, request[:5])
	eventually(t, "a request is outstanding", half.busy.Load)
	unreleased, kept := connect(5)
	kept.refuse.Store(true)
	began := time.Now()
	stop()
	eventually(t, "a quiet connection is released", left.released.Load)
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("released after %v", took)
	}
	if err := <-served; err != nil || time.Since(began) < time.Second {
		t.Errorf("served: %v, after %v", err, time.Since(began))
	}
	if !open(t, idle) || left.dropped.Load() {
		t.Error("a quiet connection ended with the server")
	}
	if open(t, partial) || half.released.Load() || !half.dropped.Load() || !half.busy.Load() {
		t.Error("a connection in the middle of a request did not end with the server")
	}
	if open(t, unreleased) || !kept.dropped.Load() {
		t.Error("a connection that the Holder did not take did not end with the server")
	}
}

// TestHolderIsQuick: a server whose slaves are quiet ends as soon as they are.
func TestHolderIsQuick(t *testing.T) {
	holder := &duplicates{}
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	s := NewFileServer(FileServerOptions{Host: newTree(), Holder: holder, Quiet: 500 * time.Millisecond})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, "13.1.5") }()
	conn := dial(t, ln.Addr().String())
	exchange(t, conn, ask("get", "/bin/start.boot"))
	defer holder.at(t, 1).file.Close()
	began := time.Now()
	stop()
	for range 10 {
		<-time.After(50 * time.Millisecond)
		exchange(t, conn, ask("get", "/bin/start.boot"))
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("ended after %v", took)
	}
	if !open(t, conn) {
		t.Error("the connection ended with the server")
	}
}

// overtaking is a connection whose server begins to stop, and sets a deadline for it,
// while the connection's own goroutine is about to set one: its own comes last.
type overtaking struct {
	net.Conn
	stop  func()
	calls atomic.Int32
}

func (c *overtaking) SetReadDeadline(t time.Time) error {
	if c.calls.Add(1) == 1 {
		c.stop()
	}
	return c.Conn.SetReadDeadline(t)
}

// TestDrainOvertakesADeadline: a deadline that was chosen before the drain began and
// is set afterwards does not keep a silent connection from the Holder.
func TestDrainOvertakesADeadline(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	s := NewFileServer(FileServerOptions{})
	g := &group{}
	began := time.Now()
	c := &connection{server: s, group: g, held: &duplicate{}, began: began}
	c.now, c.quietSince = began, began
	c.conn = &overtaking{Conn: server, stop: func() { g.draining.Store(true) }}
	if err := c.expect(errFirstByte, DefaultFirstByteTimeout); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); !timedOut(err) || time.Since(began) > 2*DefaultQuiet {
		t.Errorf("the read ended with %v after %v, want a timeout after %v", err, time.Since(began), DefaultQuiet)
	}
}
