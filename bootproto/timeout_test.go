package bootproto

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener of connections in memory, for tests with a clock of their
// own.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accept:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.accept <- pipeConn{server}
	return client
}

// pipeConn has an address as a TCP connection has.
type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[::ffff:10.0.0.7]:40000"))
}

// inBubble runs a test with a file server and a clock of its own. stop ends the
// server's context; the server has ended when serve is closed.
func inBubble(t *testing.T, options FileServerOptions, test func(t *testing.T, s *FileServer, ln *pipes, stop func(), served <-chan struct{})) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		s := NewFileServer(options)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan struct{})
		go func() {
			defer close(served)
			if err := s.Serve(ctx, ln, "13.1.5"); err != nil {
				t.Errorf("serve: %v", err)
			}
		}()
		test(t, s, ln, cancel, served)
		cancel()
		<-served
	})
}

// pass lets time pass, by the clock of the bubble.
func pass(d time.Duration) { <-time.After(d) }

// untilClosed reads until the connection is closed and returns how long that
// took.
func untilClosed(t *testing.T, conn io.Reader) time.Duration {
	t.Helper()
	began := time.Now()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v", rest, err)
	}
	return time.Since(began)
}

func TestReadTimeouts(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	for _, c := range []struct {
		what        string
		run         func(t *testing.T, conn net.Conn)
		least, most time.Duration
		reason      error
	}{
		{"nothing is sent", func(*testing.T, net.Conn) {}, DefaultFirstByteTimeout, DefaultFirstByteTimeout, errFirstByte},
		{"half a request", func(t *testing.T, conn net.Conn) {
			send(t, conn, request[:5])
		}, DefaultFrameTimeout, DefaultFrameTimeout, errFrameTime},
		{"a request byte by byte", func(t *testing.T, conn net.Conn) {
			for i := range 9 {
				send(t, conn, request[i:i+1])
				pass(time.Second)
			}
		}, time.Second, time.Second, errFrameTime},
		{"idle after a request", func(t *testing.T, conn net.Conn) {
			exchange(t, conn, request)
		}, DefaultIdleTimeout * 7 / 8, DefaultIdleTimeout, errIdle},
		{"idle after many requests", func(t *testing.T, conn net.Conn) {
			for range 100 {
				exchange(t, conn, request)
				pass(time.Second)
			}
			for range 3 {
				exchange(t, conn, request)
				pass(60 * time.Second) // as long as a stock slave keeps it
			}
			exchange(t, conn, request)
		}, DefaultIdleTimeout * 7 / 8, DefaultIdleTimeout, errIdle},
		{"half a request after a request", func(t *testing.T, conn net.Conn) {
			exchange(t, conn, request)
			send(t, conn, request[:len(request)-1])
		}, DefaultFrameTimeout, DefaultFrameTimeout, errFrameTime},
		{"idle after a slow reply", func(t *testing.T, conn net.Conn) {
			send(t, conn, request)
			pass(59 * time.Second) // the slave takes its time to read
			if _, err := readPacket(conn); err != nil {
				t.Error(err)
			}
		}, DefaultIdleTimeout * 7 / 8, DefaultIdleTimeout, errIdle},
		{"idle after a slow request", func(t *testing.T, conn net.Conn) {
			send(t, conn, request[:5])
			pass(9 * time.Second)
			exchange(t, conn, request[5:])
		}, DefaultIdleTimeout * 7 / 8, DefaultIdleTimeout, errIdle},
	} {
		files := newTree()
		inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
			conn := ln.dial()
			c.run(t, conn)
			if took := untilClosed(t, conn); took < c.least || took > c.most {
				t.Errorf("%s: closed after %v, want %v to %v", c.what, took, c.least, c.most)
			}
			synctest.Wait()
			if ended := files.ended(); len(ended) != 1 || !errors.Is(ended[0], c.reason) {
				t.Errorf("%s: ended with %v, want %v", c.what, ended, c.reason)
			}
			if stats := s.Stats(); stats.Timeouts != 1 || stats.Connections != 0 {
				t.Errorf("%s: %+v", c.what, stats)
			}
		})
	}
}

func send(t *testing.T, conn net.Conn, b []byte) {
	t.Helper()
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// TestProgressTimeout reads replies slowly: the connection must live as long as
// a kilobyte a second is taken, and end when less is.
func TestProgressTimeout(t *testing.T) {
	for _, c := range []struct {
		what  string
		rate  int // bytes a second
		reads bool
	}{{"2 KiB/s", 2 << 10, true}, {"512 B/s", 512, false}} {
		for _, kind := range []string{"data", "reader"} {
			files := newTree()
			content := strings.Repeat("x", 1<<20)
			files.files["/content"] = Content{Data: []byte(content)}
			if kind == "reader" {
				files.files["/content"] = Content{Reader: io.NopCloser(strings.NewReader(content)), Size: 1 << 20}
			}
			inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, _ *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
				conn := ln.dial()
				defer conn.Close()
				send(t, conn, ask("get", "/content"))
				taken, piece := 0, make([]byte, c.rate)
				var err error
				for want := headerSize + 19 + len(content); taken < want && err == nil; pass(time.Second) {
					var n int
					n, err = io.ReadFull(conn, piece[:min(len(piece), want-taken)])
					taken += n
				}
				if c.reads != (err == nil) {
					t.Errorf("%s at %s: %v after %d bytes", kind, c.what, err, taken)
				}
				synctest.Wait()
				if ended := files.ended(); !c.reads && (len(ended) != 1 || !errors.Is(ended[0], errProgress)) {
					t.Errorf("%s at %s: ended with %v", kind, c.what, ended)
				}
			})
		}
	}
}

// TestDrain: without a Holder a stopping server ends a connection when its slave asks
// after a second of quiet, and at the end of its time.
func TestDrain(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	files := newTree()
	inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		idle, asking, busy, fresh := ln.dial(), ln.dial(), ln.dial(), ln.dial()
		exchange(t, idle, request)
		exchange(t, asking, request)
		exchange(t, busy, request)
		synctest.Wait()
		began := time.Now()
		stop()
		var clients sync.WaitGroup
		clients.Go(func() {
			if took := untilClosed(t, idle); took != DefaultDrain {
				t.Errorf("an idle connection was closed after %v, want %v", took, DefaultDrain)
			}
		})
		clients.Go(func() {
			if took := untilClosed(t, fresh); took != DefaultFirstByteTimeout {
				t.Errorf("a connection without a request was closed after %v, want %v", took, DefaultFirstByteTimeout)
			}
		})
		clients.Go(func() {
			pass(DefaultQuiet - 1)
			exchange(t, asking, request)
			pass(DefaultQuiet)
			send(t, asking, request[:1])
			if took := untilClosed(t, asking); took != 0 {
				t.Errorf("a connection was closed %v after a request that followed quiet", took)
			}
		})
		clients.Go(func() {
			for range 30 { // a slave in the middle of its boot
				pass(500 * time.Millisecond)
				exchange(t, busy, request)
			}
			pass(DefaultQuiet)
			send(t, busy, request[:1])
			if took := untilClosed(t, busy); took != 0 {
				t.Errorf("a connection was closed %v after a request that followed quiet", took)
			}
		})
		clients.Wait()
		<-served
		if took := time.Since(began); took != DefaultDrain {
			t.Errorf("drained in %v", took)
		}
		for _, reason := range files.ended() {
			if !errors.Is(reason, errDraining) && !errors.Is(reason, errFirstByte) {
				t.Errorf("ended with %v", reason)
			}
		}
		if stats := s.Stats(); stats.Timeouts != 1 || stats.Connections != 0 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

func TestDrainEnds(t *testing.T) {
	request := ask("get", "/bin/start.boot")
	files := newTree()
	inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, _ *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		endless, stalled := ln.dial(), ln.dial()
		exchange(t, endless, request)
		send(t, stalled, request) // and never reads the reply
		synctest.Wait()
		began := time.Now()
		stop()
		for {
			pass(500 * time.Millisecond)
			if _, err := endless.Write(request); err != nil {
				break
			}
			if _, err := readPacket(endless); err != nil {
				break
			}
		}
		<-served
		if took := time.Since(began); took < DefaultDrain || took > DefaultDrain+time.Second {
			t.Errorf("drained in %v, want %v", took, DefaultDrain)
		}
		if ended := files.ended(); len(ended) != 2 || !errors.Is(ended[0], errDraining) || !errors.Is(ended[1], errDraining) {
			t.Errorf("ended with %v", ended)
		}
	})
}

// TestTwoListeners serves two ERTS versions and ends one.
func TestTwoListeners(t *testing.T) {
	inBubble(t, FileServerOptions{Host: newTree()}, func(t *testing.T, s *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		other := newPipes()
		ctx, stopOther := context.WithCancel(t.Context())
		otherServed := make(chan error, 1)
		go func() { otherServed <- s.Serve(ctx, other, "14.0") }()
		first, second := ln.dial(), other.dial()
		exchange(t, first, ask("get", "/"))
		exchange(t, second, ask("get", "/"))
		stop()
		<-served
		exchange(t, second, ask("get", "/"))
		if n := s.Stats().Connections; n != 1 {
			t.Errorf("%d connections are open, want that of the other listener", n)
		}
		stopOther()
		if err := <-otherServed; err != nil {
			t.Error(err)
		}
	})
}
