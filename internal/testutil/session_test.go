package testutil

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// loaderServer is as much of a server with the wire extension as a Session needs. It falls
// silent after as many files of the plan as `silentAfter` says, or sends only keep-alives for
// a while before each file.
type loaderServer struct {
	silentAfter int
	busy        time.Duration

	mu       sync.Mutex
	requests []string
}

var loaderPlan = []string{"lib/a/ebin/a.beam", "lib/b/ebin/b.beam", "lib/c/ebin/c.beam"}

func startLoaderServer(t *testing.T, address string, priority byte, s *loaderServer) {
	t.Helper()
	udp := ListenUDP(t, netip.AddrPortFrom(netip.MustParseAddr(address), DiscoveryPort).String())
	tcp, err := net.Listen("tcp4", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	ended := make(chan struct{})
	group.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			reply := binary.BigEndian.AppendUint16([]byte{'E', 'B', 'O', 'O', 'T', 'R', priority}, uint16(tcp.Addr().(*net.TCPAddr).Port))
			_, _ = udp.WriteToUDPAddrPort(append(reply, buf[6:n]...), from)
		}
	})
	group.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer func() { _ = conn.Close() }()
				s.serve(conn, ended)
			})
		}
	})
	t.Cleanup(func() {
		close(ended)
		_, _ = udp.Close(), tcp.Close()
		group.Wait()
	})
}

func (s *loaderServer) serve(conn net.Conn, ended <-chan struct{}) {
	for {
		frame, err := readFrame(conn)
		if err != nil {
			return
		}
		request, err := Decode(frame[4:])
		if err != nil {
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, fmt.Sprint(element(request, 0)))
		s.mu.Unlock()
		switch element(request, 0) {
		case Atom("get"):
			arguments := List{List{Tuple{Atom("version"), 1}, Tuple{Atom("digest"), []byte("cafe")}, Tuple{Atom("bundle"), []byte("app@1")}}}
			script := Tuple{Atom("script"), Tuple{"app", "1"}, List{Tuple{Atom("kernelProcess"), Atom("eboot_loader"), Tuple{Atom("eboot_loader"), Atom("start"), arguments}}}}
			_, _ = conn.Write(Frame(Encode(Tuple{Atom("get"), Tuple{Atom("ok"), Encode(script)}})))
		case Atom("list_dir"):
			_, _ = conn.Write(Frame(Encode(Tuple{Atom("list_dir"), Tuple{Atom("ok"), List{}}})))
		case Atom("eboot_open"):
			info := List{Tuple{Atom("bundle"), []byte("app@1")}, Tuple{Atom("control"), Atom("off")}}
			planned := len(element(element(request, 3).(List)[4], 1).(List)) > 0
			if planned {
				list := List{}
				for _, p := range loaderPlan {
					list = append(list, []byte(p))
				}
				info = append(info, Tuple{Atom("plan"), list}, Tuple{Atom("tree"), []byte("tree")})
			}
			_, _ = conn.Write(Frame(Encode(Tuple{Atom("eboot_open"), Tuple{Atom("ok"), info}})))
			if planned && !s.files(conn, loaderPlan, ended) {
				return
			}
		case Atom("eboot_fetch"):
			var paths []string
			for _, p := range element(request, 1).(List) {
				paths = append(paths, string(p.([]byte)))
			}
			if !s.files(conn, paths, ended) {
				return
			}
		}
	}
}

// files sends files, and returns false when it was silent until the end instead.
func (s *loaderServer) files(conn net.Conn, paths []string, ended <-chan struct{}) bool {
	for i, p := range paths {
		if s.silentAfter > 0 && i == s.silentAfter {
			<-ended
			return false
		}
		for began := time.Now(); time.Since(began) < s.busy; {
			_, _ = conn.Write(make([]byte, 4))
			select {
			case <-ended:
			case <-time.After(20 * time.Millisecond):
			}
		}
		_, _ = conn.Write(Frame(Encode(Tuple{Atom("eboot_file"), []byte(p), make([]byte, 5000+i)})))
	}
	_, _ = conn.Write(Frame(Encode(Tuple{Atom("eboot_done"), len(paths)})))
	return true
}

func TestSession(t *testing.T) {
	const first, second = "127.0.4.42", "127.0.4.43"
	for _, tt := range []struct {
		name       string
		first      *loaderServer
		switches   int
		keepAlives bool
	}{
		{name: "OK", first: &loaderServer{}},
		{name: "Silent", first: &loaderServer{silentAfter: 2}, switches: 1},
		{name: "Busy", first: &loaderServer{busy: 150 * time.Millisecond}, keepAlives: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var other loaderServer
			startLoaderServer(t, first, 0, tt.first)
			startLoaderServer(t, second, 1, &other)
			sizes := map[string]int{}
			s := NewSession(SessionOptions{
				Servers: []string{second, first}, ERTS: "13.1", Silence: 100 * time.Millisecond,
				OnFile: func(path string, content any) { sizes[path] = len(content.([]byte)) },
			})
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := s.Boot(ctx, SimulatedBoot{Script: "/r/bin/start.boot", Requests: []any{Tuple{Atom("list_dir"), "/r/lib"}}})
			if err != nil {
				t.Fatal(err)
			}
			if s.Switches != tt.switches || s.Files != 3 || len(sizes) != 3 || s.KeepAlives > 0 != tt.keepAlives || s.Bytes < 15_000 {
				t.Errorf("counts %+v, files %v", s.SessionCounts, sizes)
			}
			other.mu.Lock()
			defer other.mu.Unlock()
			if got := fmt.Sprint(other.requests); tt.switches == 1 && got != "[eboot_open eboot_fetch list_dir eboot_report]" &&
				got != "[eboot_open eboot_fetch list_dir]" { // the report has no reply to wait for
				t.Errorf("the second server was asked %s", got)
			}
		})
	}
}
