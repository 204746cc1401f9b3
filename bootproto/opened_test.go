package bootproto

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestControl: a connection that is to stay open has no idle timeout; another of our
// loader has that of a stock one.
func TestControl(t *testing.T) {
	for _, control := range []bool{true, false} {
		files := newExtendedTree()
		files.opened.Control = control
		inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
			conn := ln.dial()
			opensOn(t, conn)
			pass(48 * time.Hour)
			synctest.Wait()
			if open := s.Stats().Connections == 1; open != control {
				t.Errorf("control %v: open after two days: %v", control, open)
			}
			if control {
				exchange(t, conn, ask("get", "/"))
				send(t, conn, ask("get", "/")[:5])
				if took := untilClosed(t, conn); took != DefaultFrameTimeout {
					t.Errorf("half a request was given %v", took)
				}
			}
			_ = conn.Close()
			synctest.Wait()
			if ended := files.ended(); !control && !errors.Is(ended[0], errIdle) || control && !errors.Is(ended[0], errFrameTime) {
				t.Errorf("control %v: ended with %v", control, ended)
			}
		})
	}
}

// TestOpenedDrains: an opened connection ends as soon as it was quiet for a second, when the
// server stops and when it is drained, with and without control; a slave in the middle of
// its boot is served on.
func TestOpenedDrains(t *testing.T) {
	for _, how := range []string{"stop", "drain"} {
		for _, control := range []bool{true, false} {
			files := newExtendedTree()
			files.opened.Control = control
			inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, stop func(), _ <-chan struct{}) {
				stock, idle, fresh, busy, late := ln.dial(), ln.dial(), ln.dial(), ln.dial(), ln.dial()
				for _, conn := range []net.Conn{stock, idle, busy, late} {
					exchange(t, conn, ask("get", "/"))
				}
				opensOn(t, idle)
				opensOn(t, busy)
				pass(5 * time.Second)
				opensOn(t, fresh)
				exchange(t, busy, ask("get", "/"))
				exchange(t, late, ask("get", "/"))
				pass(DefaultQuiet / 2)
				if how == "stop" {
					stop()
				} else {
					s.Drain(true)
				}
				var clients sync.WaitGroup
				clients.Go(func() {
					if took := untilClosed(t, idle); took != 0 {
						t.Errorf("%s, control %v: a connection that was quiet ended after %v", how, control, took)
					}
				})
				clients.Go(func() {
					if took := untilClosed(t, fresh); took != DefaultQuiet/2 {
						t.Errorf("%s, control %v: a connection that was quiet for half a second ended after %v", how, control, took)
					}
				})
				clients.Go(func() {
					for range 8 { // a slave in the middle of its boot
						exchange(t, busy, ask("get", "/"))
						pass(DefaultQuiet / 2)
					}
					if took := untilClosed(t, busy); took != DefaultQuiet/2 {
						t.Errorf("%s, control %v: a connection in use ended %v after its latest use", how, control, took)
					}
				})
				clients.Go(func() {
					opensOn(t, late) // when the drain was told to all connections
					if took := untilClosed(t, late); took != DefaultQuiet {
						t.Errorf("%s, control %v: a connection that was opened meanwhile ended after %v", how, control, took)
					}
				})
				clients.Wait()
				synctest.Wait()
				if n := s.Stats().Connections; n != 1 {
					t.Errorf("%s, control %v: %d connections are open, want the stock one", how, control, n)
				}
				_ = stock.Close()
				for _, reason := range files.ended() {
					if reason != nil && !errors.Is(reason, errDraining) {
						t.Errorf("ended with %v", reason)
					}
				}
			})
		}
	}
}

// TestOpenedDrainEnds: a drain that ends leaves opened connections as they were.
func TestOpenedDrainEnds(t *testing.T) {
	files := newExtendedTree()
	files.opened.Control = true
	inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, s *FileServer, ln *pipes, _ func(), _ <-chan struct{}) {
		conn := ln.dial()
		defer conn.Close()
		opensOn(t, conn)
		s.Drain(true)
		pass(DefaultQuiet / 2)
		s.Drain(false)
		pass(time.Hour)
		exchange(t, conn, ask("get", "/"))
		s.Drain(true)
		if took := untilClosed(t, conn); took != DefaultQuiet {
			t.Errorf("the second drain took %v", took)
		}
	})
}

// TestOpenedIsNotHeld: the Holder gives a connection back when a session is opened on it, and
// hears no more of it.
func TestOpenedIsNotHeld(t *testing.T) {
	files, holder := newExtendedTree(), &duplicates{}
	defer func() {
		for _, d := range holder.held {
			_ = d.file.Close()
		}
	}()
	ln, err := ListenFiles(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		t.Fatal(err)
	}
	s := NewFileServer(FileServerOptions{Host: files, Holder: holder, Quiet: 50 * time.Millisecond})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, "13.1.5") }()
	conn := dial(t, ln.Addr().String())
	exchange(t, conn, ask("get", "/bin/start.boot"))
	held := holder.at(t, 1)
	eventually(t, "the request has been answered", func() bool { return !held.busy.Load() })
	if held.dropped.Load() {
		t.Error("a stock connection is not held")
	}
	opensOn(t, conn)
	eventually(t, "the connection is not held any more", held.dropped.Load)
	held.dropped.Store(false)
	held.busy.Store(false)
	exchange(t, conn, ask("get", "/bin/start.boot"))
	began := time.Now()
	stop()
	if took := untilClosed(t, conn); took > 5*time.Second {
		t.Errorf("closed after %v", took)
	}
	if err := <-served; err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("served: %v, after %v", err, time.Since(began))
	}
	if held.busy.Load() || held.released.Load() || held.dropped.Load() {
		t.Error("the Holder was told of a connection that it does not hold")
	}
}

// TestRoundTrip: the kernel knows how far away a slave is, and loopback is near.
func TestRoundTrip(t *testing.T) {
	s, addr := startFiles(t, FileServerOptions{Host: newExtendedTree()})
	conn := dial(t, addr)
	for range 20 {
		exchange(t, conn, ask("get", "/"))
	}
	opensOn(t, conn)
	eventually(t, "the session is open", func() bool { return s.Stats().Opens == 1 })
	c := s.connections(nil)[0]
	eventually(t, "the request has been answered", func() bool { return !c.busy.Load() })
	if took := c.roundTrip(); took <= 0 || took >= slowRoundTrip || c.slow {
		t.Errorf("%v, slow: %v", took, c.slow)
	}
}

// TestControlSocket: the kernel ends a connection without an idle timeout when its slave is
// silent for too long.
func TestControlSocket(t *testing.T) {
	files := newExtendedTree()
	files.opened.Control = true
	s, addr := startFiles(t, FileServerOptions{Host: files, ProgressTimeout: 7 * time.Second})
	opensOn(t, dial(t, addr))
	eventually(t, "the session is open", func() bool { return s.Stats().Opens == 1 })
	c := s.connections(nil)[0]
	eventually(t, "the request has been answered", func() bool { return !c.busy.Load() })
	if err := control(c.raw, func(fd int) error {
		ms, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		if ms != 7000 {
			t.Errorf("given up after %d ms", ms)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
