package testutil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// Exchanged is one request of a slave and how large the reply to it was.
type Exchanged struct {
	Connection int    // which of the recorder's connections, from 0
	Request    []byte // content of the frame: one external term
	Reply      int    // bytes of the reply's content; -1 while there is none
}

// Term decodes the request. It returns nil for what is no term.
func (e Exchanged) Term() any {
	term, err := Decode(e.Request)
	if err != nil {
		return nil
	}
	return term
}

// Path returns the command and the path of a request such as {get, Path}.
func (e Exchanged) Path() (command, path string) {
	switch v := e.Term().(type) {
	case Atom:
		return string(v), ""
	case Tuple:
		if len(v) == 2 {
			name, _ := v[0].(Atom)
			path, _ = TextOf(v[1])
			return string(name), path
		}
	}
	return "", ""
}

// RecorderOptions say where a recorder stands.
type RecorderOptions struct {
	// Address is a loopback IPv4 address of its own: it answers discovery there, on
	// UDP port 4368, and takes connections on a port of its own choice.
	Address string
	// ERTS is the version whose discovery requests it answers, with priority 0.
	ERTS string
	// Dial opens a connection to the server behind it.
	Dial func() (net.Conn, error)
	// Cut, when set, is asked before each request is forwarded; true cuts the line
	// there: every connection is closed, none is taken and discovery goes unanswered,
	// as if the server had died.
	Cut func(Exchanged) bool
}

// Recorder stands between slaves and a boot server and writes down what passes. To slaves it
// is a server that speaks plain EBOOT only: the requests of eboot's loader are unknown to it.
type Recorder struct {
	opts  RecorderOptions
	udp   *net.UDPConn
	tcp   net.Listener
	group sync.WaitGroup

	mu        sync.Mutex
	exchanges []Exchanged
	conns     map[net.Conn]bool
	opened    int
	cut       bool
}

// StartRecorder starts one; it ends with the test, or at Close.
func StartRecorder(t testing.TB, opts RecorderOptions) *Recorder {
	t.Helper()
	tcp, err := net.Listen("tcp4", opts.Address+":0")
	if err != nil {
		t.Fatalf("recorder: %v", err)
	}
	r := &Recorder{opts: opts, tcp: tcp, conns: map[net.Conn]bool{}}
	r.udp = ListenUDP(t, netip.AddrPortFrom(netip.MustParseAddr(opts.Address), DiscoveryPort).String())
	r.group.Go(r.answer)
	r.group.Go(r.accept)
	t.Cleanup(r.Close)
	return r
}

// Close ends every connection and waits for the recorder's goroutines.
func (r *Recorder) Close() {
	r.Sever()
	r.group.Wait()
}

// Sever is the death of the server as slaves see it. It may be called repeatedly.
func (r *Recorder) Sever() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
	_ = r.udp.Close()
	_ = r.tcp.Close()
	for c := range r.conns {
		_ = c.Close()
	}
}

// Severed reports whether Sever was called, or Cut said so.
func (r *Recorder) Severed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cut
}

// Exchanges returns a copy of what was recorded, in the order of the requests.
func (r *Recorder) Exchanges() []Exchanged {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Exchanged(nil), r.exchanges...)
}

// Connections is how many connections slaves have opened.
func (r *Recorder) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened
}

// answer is the discovery of the recorder.
func (r *Recorder) answer() {
	port := uint16(netip.MustParseAddrPort(r.tcp.Addr().String()).Port())
	reply := binary.BigEndian.AppendUint16([]byte("EBOOTR\x00"), port)
	reply = append(reply, r.opts.ERTS...)
	buf := make([]byte, 512)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && string(buf[:n]) == "EBOOTQ"+r.opts.ERTS {
			_, _ = r.udp.WriteToUDPAddrPort(reply, from)
		}
	}
}

func (r *Recorder) accept() {
	for {
		slave, err := r.tcp.Accept()
		if err != nil {
			return // only Sever closes it
		}
		server, err := r.opts.Dial()
		if err != nil {
			_ = slave.Close()
			continue
		}
		r.mu.Lock()
		if r.cut {
			r.mu.Unlock()
			_, _ = slave.Close(), server.Close()
			return
		}
		number := r.opened
		r.opened++
		r.conns[slave], r.conns[server] = true, true
		r.mu.Unlock()
		r.group.Go(func() {
			r.forward(number, slave, server)
			r.mu.Lock()
			delete(r.conns, slave)
			delete(r.conns, server)
			r.mu.Unlock()
			_, _ = slave.Close(), server.Close()
		})
	}
}

// forward passes one request after the other, with its reply: the protocol has one
// outstanding request per connection. A client that sends ahead is served in order.
func (r *Recorder) forward(number int, slave, server net.Conn) {
	for {
		request, err := readFrame(slave)
		if err != nil {
			return
		}
		exchange := Exchanged{Connection: number, Request: request[4:], Reply: -1}
		if r.opts.Cut != nil && r.opts.Cut(exchange) {
			r.Sever()
			return
		}
		r.mu.Lock()
		index := len(r.exchanges)
		r.exchanges = append(r.exchanges, exchange)
		r.mu.Unlock()
		from := io.Reader(server)
		if command, ok := element(exchange.Term(), 0).(Atom); ok && strings.HasPrefix(string(command), "eboot_") {
			from = bytes.NewReader(Frame(Encode(Tuple{Atom("error"), Atom("unknown_command")})))
		} else if _, err := server.Write(request); err != nil {
			return
		}
		reply, err := readFrame(from)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.exchanges[index].Reply = len(reply) - 4
		r.mu.Unlock()
		if _, err := slave.Write(reply); err != nil {
			return
		}
	}
}

// readFrame reads one frame, header included.
func readFrame(from io.Reader) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return nil, err
	}
	frame := append(header[:], make([]byte, binary.BigEndian.Uint32(header[:]))...)
	_, err := io.ReadFull(from, frame[4:])
	return frame, err
}
