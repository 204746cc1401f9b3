package peerport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"eboot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// serve starts a port on loopback; stop ends it and is called at the test's end.
func serve(t *testing.T, o Options) (p *Port, address string, stop func()) {
	t.Helper()
	if o.Cluster == "" {
		o.Cluster = "prod"
	}
	o.Server = "server-b"
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, ln) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Serve: %v", err)
				}
			case <-time.After(patience):
				t.Error("Serve did not end")
			}
		})
	}
	t.Cleanup(stop)
	return p, ln.Addr().String(), stop
}

// echo answers on a protocol what it receives, until the port ends.
func echo(t *testing.T, p *Port, protocol string) {
	t.Helper()
	ln := p.Listener(protocol)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				return
			}
			all.Go(func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); all.Wait() })
}

func dial(t *testing.T, address, protocol, cluster, from, to string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := Dialer{Cluster: cluster, Server: from}.Dial(ctx, address, protocol, to)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

func says(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q: %q, %v", text, got, err)
	}
}

// poll waits until done.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		<-tick.C
	}
}

func TestProtocolsAreToldApart(t *testing.T) {
	p, address, _ := serve(t, Options{})
	for _, protocol := range []string{Raft, Blob, RPC} {
		ln := p.Listener(protocol)
		got := make(chan net.Conn, 1)
		go func() {
			if conn, err := ln.Accept(); err == nil {
				got <- conn
			}
		}()
		ours, err := dial(t, address, protocol, "prod", "server-a", "server-b")
		if err != nil {
			t.Fatal(err)
		}
		theirs := (<-got).(*Conn)
		if theirs.From() != "server-a" {
			t.Errorf("%s: from %q", protocol, theirs.From())
		}
		if _, err := io.WriteString(theirs, protocol); err != nil {
			t.Fatal(err)
		}
		if err := theirs.Close(); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(ours)
		if err != nil || string(text) != protocol {
			t.Errorf("%s: read %q, %v", protocol, text, err)
		}
	}
	if s := p.Stats(); s.Open != 0 || s.Accepted != 3 || s.Refused != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRefusals(t *testing.T) {
	p, address, _ := serve(t, Options{Closed: []string{Raft}})
	for _, protocol := range []string{Raft, Blob} {
		echo(t, p, protocol)
	}
	for _, tc := range []struct {
		name, protocol, cluster, from, to string
		want                              error
		texts                             []string
	}{
		{"ErrOtherCluster", Blob, "test", "server-a", "server-b", eboot.ErrConflict, []string{`cluster "prod"`, `not to "test"`}},
		{"ErrOtherServer", Blob, "prod", "server-a", "server-c", eboot.ErrConflict, []string{`"server-b"`, `not "server-c"`}},
		{"ErrSameServer", Blob, "prod", "server-b", "", eboot.ErrConflict, []string{`"server-b" itself`}},
		{"ErrNotAdmitted", Raft, "prod", "server-a", "server-b", eboot.ErrUnavailable, []string{"does not take part in eboot-raft/1 yet"}},
		{"ErrNotSpoken", RPC, "prod", "server-a", "server-b", eboot.ErrDenied, []string{"does not speak eboot-rpc/1"}},
		{"ErrUnknown", "eboot-wish/9", "prod", "server-a", "server-b", eboot.ErrDenied, []string{"does not speak eboot-wish/9"}},
		{"ErrNoProtocol", "HTTP/1.1", "prod", "server-a", "server-b", eboot.ErrInvalid, []string{"protocol of eboot"}},
		{"ErrTooLong", Blob, strings.Repeat("x", 2000), "server-a", "server-b", eboot.ErrInvalid, []string{"too long"}},
		{"OK", Blob, "prod", "server-a", "server-b", nil, nil},
		{"OKAnyReceiver", Blob, "prod", "server-a", "", nil, nil},
		{"OKAnonymous", Blob, "prod", "", "server-b", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := dial(t, address, tc.protocol, tc.cluster, tc.from, tc.to)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			for _, text := range tc.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
			if err == nil {
				says(t, conn, "hello")
			}
		})
	}
	p.Admit(Raft)
	conn, err := dial(t, address, Raft, "prod", "server-a", "server-b")
	if err != nil {
		t.Fatal("after Admit:", err)
	}
	says(t, conn, "vote")
}

func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := dial(t, ln.Addr().String(), Raft, "prod", "a", "b"); !errors.Is(err, eboot.ErrUnreachable) {
		t.Errorf("nobody listens: %v", err)
	}

	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Dialer{Cluster: "prod", Server: "a"}.Dial(ctx, silent.Addr().String(), Raft, "b")
	if !errors.Is(err, eboot.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
}

// A connection that says nothing, or not enough, is closed after Options.Preface and
// holds nobody up.
func TestSlowPreface(t *testing.T) {
	p, address, _ := serve(t, Options{Preface: 100 * time.Millisecond})
	echo(t, p, RPC)
	for _, part := range []string{"", "eboot-rpc/1 cluster=pr"} {
		slow, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		if _, err := io.WriteString(slow, part); err != nil {
			t.Fatal(err)
		}
		quick, err := dial(t, address, RPC, "prod", "server-a", "server-b")
		if err != nil {
			t.Fatal("beside a slow one:", err)
		}
		says(t, quick, "quick")
		_ = slow.SetReadDeadline(time.Now().Add(patience))
		if n, err := slow.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after %q: read %d, %v, want the end", part, n, err)
		}
		// What was handed over outlives the deadline of the preface.
		says(t, quick, "still here")
	}
}

func TestMalformedPrefaces(t *testing.T) {
	_, address, _ := serve(t, Options{})
	for _, tc := range []struct{ sent, want string }{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "invalid there is more behind"},
		{"GET /\n", "invalid this port expects a protocol of eboot"},
		{"\n", "invalid this port expects a protocol of eboot"},
		{"eboot-rpc/1 cluster\n", "invalid the preface has a word"},
		{"eboot-rpc/1 cluster=a cluster=b\n", "invalid the preface has a key twice"},
		{"eboot-rpc/1 cluster=%zz\n", "invalid the preface has a value"},
		{"eboot-rpc/1 cluster=prod\nhello", "invalid there is more behind"},
		{strings.Repeat("x", maxPreface), "invalid the preface is too long"},
		{"eboot-rpc/1 cluster=a%0Ab\n", `conflict this server belongs to cluster "prod", not to "a\nb"`},
		{"eboot-rpc/1 cluster=prod to=server-b colour=blue\n", "denied this server does not speak"},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, tc.sent); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(got), tc.want) || strings.Count(string(got), "\n") != 1 {
			t.Errorf("sent %.40q: answer %q, %v, want %q…", tc.sent, got, err, tc.want)
		}
		_ = conn.Close()
	}
}

// A listener that does not accept delays nobody for longer than Options.Preface, and
// the one who dials is told.
func TestListenerThatDoesNotAccept(t *testing.T) {
	p, address, _ := serve(t, Options{Preface: 100 * time.Millisecond})
	p.Listener(Blob)
	if _, err := dial(t, address, Blob, "prod", "a", ""); !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("got %v", err)
	}
}

func TestClosedListener(t *testing.T) {
	p, address, _ := serve(t, Options{})
	ln := p.Listener(Blob)
	if again := p.Listener(Blob); again != ln {
		t.Error("an open listener was not the same when asked for again")
	}
	refused := make(chan error, 1)
	go func() {
		_, err := Dialer{Cluster: "prod", Server: "a"}.Dial(t.Context(), address, Blob, "") // waits for Accept
		refused <- err
	}()
	poll(t, "a connection that waits", func() bool { return p.Stats().Open == 1 })
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-refused; !errors.Is(err, eboot.ErrUnavailable) && !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("waiting when the listener was closed: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := dial(t, address, Blob, "prod", "a", ""); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("dial after Close: %v", err)
	}
	echo(t, p, Blob)
	if _, err := dial(t, address, Blob, "prod", "a", ""); err != nil {
		t.Errorf("dial after a new listener: %v", err)
	}
}

func TestLimits(t *testing.T) {
	t.Run("PerAddress", func(t *testing.T) {
		p, address, _ := serve(t, Options{PerAddress: 2})
		echo(t, p, RPC)
		for range 2 {
			idle, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
		}
		poll(t, "two idle connections", func() bool { return p.Stats().Open == 2 })
		_, err := dial(t, address, RPC, "prod", "a", "")
		if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "from this address") {
			t.Errorf("third: %v", err)
		}
		other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
		conn, err := other.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := ask(conn, preface{protocol: RPC, cluster: "prod"}); err != nil {
			t.Errorf("another address: %v", err)
		}
	})
	t.Run("HandedOverDoNotCountPerAddress", func(t *testing.T) {
		p, address, _ := serve(t, Options{PerAddress: 1})
		echo(t, p, RPC)
		for range 5 {
			poll(t, "the one before to be handed over", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.waiting == 0 })
			if _, err := dial(t, address, RPC, "prod", "a", ""); err != nil {
				t.Fatal(err)
			}
		}
	})
	// Who is handed over and then idles leaves room for other addresses.
	t.Run("HandedOverCountPerAddress", func(t *testing.T) {
		p, address, _ := serve(t, Options{Connections: 8, OpenPerAddress: 3})
		echo(t, p, RPC)
		var idle []net.Conn
		for range 3 {
			poll(t, "the one before to be handed over", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.waiting == 0 })
			conn, err := dial(t, address, RPC, "prod", "a", "")
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, conn)
		}
		_, err := dial(t, address, RPC, "prod", "a", "")
		if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "3 connections from this address are open") {
			t.Errorf("fourth: %v", err)
		}
		other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
		conn, err := other.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := ask(conn, preface{protocol: RPC, cluster: "prod"}); err != nil {
			t.Errorf("another address: %v", err)
		}
		_ = conn.Close()
		_ = idle[0].Close()
		poll(t, "room again", func() bool { return p.Stats().Open == 2 })
		if idle[0], err = dial(t, address, RPC, "prod", "a", ""); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
		for _, conn := range idle {
			_ = conn.Close()
		}
		poll(t, "no address to be remembered", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.addresses) == 0 })
	})
	t.Run("InAll", func(t *testing.T) {
		p, address, _ := serve(t, Options{Connections: 4})
		echo(t, p, RPC)
		var first net.Conn
		for i := range 4 {
			poll(t, "the one before to be handed over", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.waiting == 0 })
			conn, err := dial(t, address, RPC, "prod", "a", "")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = conn
			}
		}
		_, err := dial(t, address, RPC, "prod", "a", "")
		if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "4 connections") {
			t.Errorf("fifth: %v", err)
		}
		_ = first.Close()
		poll(t, "room again", func() bool { return p.Stats().Open == 3 })
		if _, err := dial(t, address, RPC, "prod", "a", ""); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
	})
	t.Run("SilentOnesLeaveRoom", func(t *testing.T) {
		p, address, _ := serve(t, Options{Connections: 4})
		for range 2 {
			idle, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer idle.Close()
		}
		poll(t, "two idle connections", func() bool { return p.Stats().Open == 2 })
		if _, err := dial(t, address, RPC, "prod", "a", ""); !errors.Is(err, eboot.ErrUnavailable) {
			t.Errorf("third without a preface: %v", err)
		}
	})
}

func TestManyConnections(t *testing.T) {
	p, address, _ := serve(t, Options{PerAddress: 1000, OpenPerAddress: 1000})
	for _, protocol := range []string{Raft, Blob, RPC} {
		echo(t, p, protocol)
	}
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := Dialer{Cluster: "prod", Server: fmt.Sprint("server-", i)}.Dial(ctx, address, []string{Raft, Blob, RPC}[i%3], "server-b")
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			text := fmt.Sprint("hello from ", i)
			got := make([]byte, len(text))
			if _, err := io.WriteString(conn, text); err != nil {
				t.Error(err)
			} else if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	poll(t, "all closed", func() bool { return p.Stats().Open == 0 })
	if s := p.Stats(); s.Accepted != 300 || s.Refused != 0 {
		t.Errorf("stats %+v", s)
	}
}

// The end of Serve closes connections that were handed over and that their owner
// still holds, as hashicorp/raft does.
func TestStopWithOpenConnections(t *testing.T) {
	p, address, stop := serve(t, Options{})
	ln := p.Listener(Raft)
	held := make(chan net.Conn, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			held <- conn
		}
	}()
	ours, err := dial(t, address, Raft, "prod", "a", "server-b")
	if err != nil {
		t.Fatal(err)
	}
	theirs := <-held
	silent, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	poll(t, "both", func() bool { return p.Stats().Open == 2 })
	blocked := make(chan error, 1)
	go func() { _, err := ln.Accept(); blocked <- err }()
	stop()
	for _, conn := range []net.Conn{ours, silent} {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the end of Serve: %v", err)
		}
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the accepted end: %v", err)
	}
	if err := <-blocked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept at the end of Serve: %v", err)
	}
	if err := p.Serve(t.Context(), nopListener{}); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("Serve again: %v", err)
	}
	if n := p.Stats().Open; n != 0 {
		t.Errorf("%d open", n)
	}
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }

// flaky fails for a while, as a process without descriptors does.
type flaky struct {
	net.Listener
	failures chan error
}

func (f *flaky) Accept() (net.Conn, error) {
	select {
	case err := <-f.failures:
		return nil, err
	default:
		return f.Listener.Accept()
	}
}

func TestAcceptErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flaky{ln, make(chan error, 3)}
	for range 3 {
		f.failures <- errors.New("too many open files")
	}
	p := New(Options{Cluster: "prod", Server: "b"})
	done := make(chan error, 1)
	go func() { done <- p.Serve(t.Context(), f) }()
	echo(t, p, RPC)
	conn, err := dial(t, ln.Addr().String(), RPC, "prod", "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	says(t, conn, "hello")
	_ = ln.Close() // by somebody else
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after its listener was closed: %v", err)
	}
}

// HTTP works over it, files included.
func TestHTTP(t *testing.T) {
	p, address, _ := serve(t, Options{})
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		ReadHeaderTimeout: patience,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(p.Listener(Blob)) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return Dialer{Cluster: "prod", Server: "server-a"}.Dial(ctx, address, Blob, "server-b")
	}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://server-b/blob")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := errors.Join(response.Body.Close(), server.Shutdown(t.Context())); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestRefusalsAreLoggedOnce(t *testing.T) {
	var buf bytes.Buffer
	p, address, stop := serve(t, Options{Logger: hclog.New(&hclog.LoggerOptions{Output: &buf, Mutex: &sync.Mutex{}})})
	for range 20 {
		if _, err := dial(t, address, RPC, "te\nst", "a", ""); !errors.Is(err, eboot.ErrConflict) {
			t.Fatal(err)
		}
	}
	stop()
	if n := strings.Count(buf.String(), "\n"); n != 1 || !strings.Contains(buf.String(), `cluster \"prod\"`) && !strings.Contains(buf.String(), `cluster "prod"`) {
		t.Errorf("%d lines:\n%s", n, buf.String())
	}
	if s := p.Stats(); s.Refused != 20 {
		t.Errorf("stats %+v", s)
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	r := newRefusals(hclog.NewNullLogger())
	start := time.Unix(0, 0)
	logged := 0
	for i := range 10_000 {
		if _, ok := r.allow(refusalKey{kind: fmt.Sprint(i)}, start); ok {
			logged++
		}
	}
	if logged != maxRefusals || len(r.logged) != maxRefusals {
		t.Errorf("logged %d, remembered %d", logged, len(r.logged))
	}
	if unsaid, ok := r.allow(refusalKey{kind: "new"}, start.Add(refusalPause)); !ok || unsaid != 10_000-maxRefusals {
		t.Errorf("a minute later: %d, %v", unsaid, ok)
	}
}

// A reason may hold a name out of a stranger's certificate, which has room for 256 KiB.
func TestReasonsAreCut(t *testing.T) {
	var buf bytes.Buffer
	newRefusals(hclog.New(&hclog.LoggerOptions{Output: &buf})).log("denied", netip.Addr{}, strings.Repeat("ü", 100_000))
	if n := buf.Len(); n < maxReason/4 || n > 8*maxReason {
		t.Errorf("a line of %d bytes", n)
	}
}

// Both ends notice a peer that is silent: that is a property of the sockets.
func TestSilenceIsNoticed(t *testing.T) {
	p, address, _ := serve(t, Options{})
	ln := p.Listener(Raft)
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	ours, err := dial(t, address, Raft, "prod", "a", "")
	if err != nil {
		t.Fatal(err)
	}
	theirs := (<-accepted).(*Conn)
	for name, conn := range map[string]net.Conn{"dialled": ours, "accepted": theirs.Conn} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for _, option := range []struct {
			name               string
			level, value, want int
		}{
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000},
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
			{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		} {
			var got int
			if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), option.level, option.value) }); err != nil {
				t.Fatal(err)
			}
			if err != nil || got != option.want {
				t.Errorf("%s: %s is %d, %v, want %d", name, option.name, got, err, option.want)
			}
		}
	}
}
