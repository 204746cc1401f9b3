package sockholder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// keep is short: nothing here is a slave that closes by itself.
const keep = 1500 * time.Millisecond

// The program of this test is also its server and its holder.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "sockholder" {
		if err := Serve(keep); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "server" {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func options(slots int) Options {
	return Options{Program: "/proc/self/exe", Args: []string{"holder", "sockholder"}, Slots: slots}
}

// serve is a server that does what the letters say that it is sent.
func serve() error {
	h, err := New(options(8))
	if err != nil {
		return err
	}
	go func() { _ = h.Run(context.Background()) }()
	ln, err := net.Listen("tcp4", os.Args[2])
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go serveConn(h, conn.(*net.TCPConn))
	}
}

func serveConn(h *Holder, conn *net.TCPConn) {
	held := h.Hold(conn)
	letter := make([]byte, 1)
	for {
		if _, err := io.ReadFull(conn, letter); err != nil {
			return
		}
		switch letter[0] {
		case 'b': // a request that is never answered
			held.Busy(true)
		case 'c':
			_ = conn.CloseWrite()
			held.Drop()
			_ = conn.Close()
		case 'r':
			if held.Release() {
				_, _ = conn.Write(letter)
				_ = conn.Close()
				return
			}
		case 'x':
			os.Exit(0)
		}
		_, _ = conn.Write(letter)
	}
}

// server is serve in a process of its own.
type server struct {
	t       *testing.T
	cmd     *exec.Cmd
	address string
	holder  int // process id
	open    int // connections that the holder has
}

func start(t *testing.T, address string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command("/proc/self/exe", "server", address)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %q", err, line)
	}
	s.address = strings.TrimSpace(line)
	s.findHolder()
	return s
}

// kill ends all of the server's group, and waits for the server.
func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		_ = s.cmd.Wait()
	}
}

// findHolder waits until the holder process listens: it ignores SIGTERM.
func (s *server) findHolder() {
	s.t.Helper()
	eventually(s.t, "the server has a holder", func() bool {
		for _, pid := range children(s.t, s.cmd.Process.Pid) {
			if ignores(pid, syscall.SIGTERM) {
				s.holder = pid
			}
		}
		return s.holder != 0
	})
}

func children(t *testing.T, pid int) (found []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		list, _ := os.ReadFile(f) // the thread may have ended
		for _, field := range strings.Fields(string(list)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, child)
		}
	}
	return found
}

func status(pid int, field string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(text), "\n"+field+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

func ignores(pid int, s syscall.Signal) bool {
	mask, err := strconv.ParseUint(status(pid, "SigIgn"), 16, 64)
	return err == nil && mask&(1<<(s-1)) != 0
}

// gone reports whether a process has ended.
func gone(pid int) bool {
	state := status(pid, "State")
	return state == "" || strings.HasPrefix(state, "Z")
}

func sockets(pid int) (n int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range files {
		if target, _ := os.Readlink(f); strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// connect returns a connection that the holder has.
func (s *server) connect() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp4", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	s.open++
	s.holds(s.open)
	return conn
}

// holds waits until the holder has n connections beside its control socket.
func (s *server) holds(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("the holder has %d connections", n), func() bool { return sockets(s.holder) == n+1 })
}

// tell sends a letter and waits until the server has done what it says.
func tell(t *testing.T, conn net.Conn, letter string) {
	t.Helper()
	if _, err := io.WriteString(conn, letter); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatalf("letter %s: %v", letter, err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// ends waits until a connection ends for its slave, and returns how and after what time.
func ends(t *testing.T, conn net.Conn) (time.Duration, error) {
	t.Helper()
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection has not ended: %d bytes, %v", n, err)
	}
	return time.Since(began), err
}

func isOpen(t *testing.T, conn net.Conn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

const atOnce = 500 * time.Millisecond

// TestKilledServer: what a slave sees when its server is killed.
func TestKilledServer(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	fresh, idle, busy, closing, silent := s.connect(), s.connect(), s.connect(), s.connect(), s.connect()
	tell(t, idle, "i")
	tell(t, silent, "i")
	tell(t, busy, "b")
	if sid, err := unix.Getsid(s.holder); err != nil || sid != s.holder {
		t.Errorf("the holder is in session %d (%v), want one of its own", sid, err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(s.holder, sig); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.kill()
	if took, err := ends(t, busy); took > atOnce {
		t.Errorf("a request was outstanding, and the connection ended after %v (%v)", took, err)
	}
	for what, conn := range map[string]net.Conn{"fresh": fresh, "idle": idle, "closing": closing, "silent": silent} {
		if !isOpen(t, conn) {
			t.Errorf("the %s connection ended with the server", what)
		}
	}
	next := start(t, s.address) // on the same port, while connections to it are held
	tell(t, next.connect(), "i")

	for what, conn := range map[string]net.Conn{"fresh": fresh, "idle": idle} {
		if _, err := io.WriteString(conn, "request"); err != nil {
			t.Error(err)
		}
		if took, err := ends(t, conn); !errors.Is(err, syscall.ECONNRESET) || took > atOnce {
			t.Errorf("a request on the %s connection was answered by %v after %v", what, err, took)
		}
	}
	_ = closing.Close()
	eventually(t, "only the silent connection is left", func() bool { return sockets(s.holder) == 1 })
	if _, err := ends(t, silent); !errors.Is(err, io.EOF) || time.Since(began) < keep || time.Since(began) > keep+time.Second {
		t.Errorf("a silent connection ended with %v after %v, want %v", err, time.Since(began), keep)
	}
	eventually(t, "nothing is left of the holder", func() bool { return gone(s.holder) })

	began = time.Now()
	next.kill()
	eventually(t, "nothing is left of the second holder", func() bool { return gone(next.holder) })
	if took := time.Since(began); took < keep {
		t.Errorf("it held a connection, and ended after %v", took)
	}
}

// TestServerEndsConnections: a connection ends for its slave although the holder has it,
// and one that was released ends when its slave sends something, while the server lives.
func TestServerEndsConnections(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	closed, released := s.connect(), s.connect()
	if _, err := io.WriteString(closed, "c"); err != nil {
		t.Fatal(err)
	}
	if took, err := ends(t, closed); !errors.Is(err, io.EOF) || took > atOnce {
		t.Errorf("ended with %v after %v", err, took)
	}
	s.holds(1)
	tell(t, released, "r")
	if !isOpen(t, released) {
		t.Error("a released connection ended with its server")
	}
	if _, err := io.WriteString(released, "request"); err != nil {
		t.Error(err)
	}
	if took, err := ends(t, released); !errors.Is(err, syscall.ECONNRESET) || took > atOnce {
		t.Errorf("a request on a released connection was answered by %v after %v", err, took)
	}
	s.holds(0)

	// A slot is used again: there are eight.
	for range 20 {
		conn, err := net.Dial("tcp4", s.address)
		if err != nil {
			t.Fatal(err)
		}
		tell(t, conn, "i")
		s.holds(1)
		if _, err := io.WriteString(conn, "c"); err != nil {
			t.Fatal(err)
		}
		_, _ = ends(t, conn)
		_ = conn.Close()
		s.holds(0)
	}

	// The server ends, and leaves nothing behind.
	last, err := net.Dial("tcp4", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if _, err := io.WriteString(last, "x"); err != nil {
		t.Fatal(err)
	}
	_ = last.Close()
	_ = s.cmd.Wait()
	eventually(t, "the holder has ended", func() bool { return gone(s.holder) })
}

// TestHolderDies: another takes over what is held.
func TestHolderDies(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	conn := s.connect()
	first := s.holder
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tell(t, conn, "i") // the server goes on
	eventually(t, "the first holder is gone and waited for", func() bool { return status(first, "State") == "" })
	s.holder = 0
	s.findHolder()
	s.holds(1)
	s.kill()
	if !isOpen(t, conn) {
		t.Error("the second holder did not hold the connection")
	}
}

// own runs a Holder in this process until the test ends.
func own(t *testing.T, slots int, held *[]*Held) *Holder {
	t.Helper()
	h, err := New(options(slots))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run(ctx)
	}()
	t.Cleanup(func() {
		for _, d := range *held {
			d.Drop()
		}
		stop()
		<-done
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// pair is both ends of a connection.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = conn.Close(), accepted.Close() })
	return conn.(*net.TCPConn), accepted.(*net.TCPConn)
}

// TestStuckHolder: a holder that takes nothing delays nobody, and is replaced.
func TestStuckHolder(t *testing.T) {
	const slots = 2000 // more than the socket to the holder has room for
	var held []*Held
	h := own(t, slots, &held)
	_, conn := pair(t)
	held = append(held, h.Hold(conn))
	eventually(t, "a holder has the connection", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return held[0].sent })
	var holder int
	eventually(t, "the holder ignores signals", func() bool {
		for _, pid := range children(t, os.Getpid()) {
			if ignores(pid, syscall.SIGTERM) {
				holder = pid
			}
		}
		return holder != 0
	})
	if err := syscall.Kill(holder, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := 1; i < slots; i++ {
		d := h.Hold(conn)
		if d == nil {
			t.Fatalf("no slot for connection %d", i)
		}
		d.Busy(true)
		d.Busy(false)
		held = append(held, d)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a stuck holder delayed the server by %v", took)
	}
	if h.Hold(conn) != nil {
		t.Error("more connections are held than there are slots")
	}
	left, since := slots, time.Now()
	eventually(t, "the socket to the holder is full", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.queue) < left {
			left, since = len(h.queue), time.Now()
		}
		return left < slots-100 && time.Since(since) > 200*time.Millisecond
	})
	h.mu.Lock()
	last := held[slots-1].sent
	h.mu.Unlock()
	if last || held[slots-1].Release() {
		t.Error("a stuck holder has taken a connection")
	}
	closing := make(chan struct{})
	go func() { _ = conn.Close(); close(closing) }()
	select {
	case <-closing:
	case <-time.After(time.Second):
		t.Error("a stuck holder delays the end of a connection")
	}
	eventually(t, "the stuck holder was killed", func() bool { return gone(holder) })
}

// TestNoHolder: a program that cannot be started costs nothing but the holding.
func TestNoHolder(t *testing.T) {
	h, err := New(Options{Program: "/nonexistent", Args: []string{"holder"}, Slots: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	_, conn := pair(t)
	for range 3 {
		d := h.Hold(conn)
		if d != nil && d.Release() {
			t.Error("released to nobody")
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestServeByHand(t *testing.T) {
	for _, files := range [][]*os.File{nil, {os.Stdin, os.Stdin}} {
		cmd := exec.Command("/proc/self/exe", "sockholder")
		cmd.ExtraFiles = files
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "not started by hand") {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// BenchmarkConnection opens a connection, has a byte echoed and closes it, held and
// not: what holding costs a slave's connection, the holder process included as far as it
// takes the processors.
func BenchmarkConnection(b *testing.B) {
	for _, held := range []bool{false, true} {
		b.Run(fmt.Sprintf("held=%v", held), func(b *testing.B) {
			h, err := New(options(8192))
			if err != nil {
				b.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			var running sync.WaitGroup
			if held {
				running.Go(func() { _ = h.Run(ctx) })
			}
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			running.Go(func() {
				for {
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					running.Go(func() { echo(h, conn.(*net.TCPConn), held) })
				}
			})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					conn, err := net.Dial("tcp4", ln.Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = conn.Write([]byte("x"))
					_, _ = io.ReadFull(conn, make([]byte, 1))
					_ = conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: the ports would run out
					_ = conn.Close()
				}
			})
			stop()
			_ = ln.Close()
			running.Wait()
		})
	}
}

func echo(h *Holder, conn *net.TCPConn, hold bool) {
	var held *Held
	if hold {
		held = h.Hold(conn)
	}
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(conn, b); err != nil {
			break
		}
		_, _ = conn.Write(b)
	}
	if held != nil {
		_ = conn.CloseWrite()
		held.Drop()
	}
	_ = conn.Close()
}

func BenchmarkBusy(b *testing.B) {
	h, err := New(options(1))
	if err != nil {
		b.Fatal(err)
	}
	_, conn := pair(b)
	d := h.Hold(conn)
	for b.Loop() {
		d.Busy(true)
		d.Busy(false)
	}
}
