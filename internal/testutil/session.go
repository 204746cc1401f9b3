package testutil

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// SessionOptions say how a Session behaves.
type SessionOptions struct {
	Servers  []string // IPv4 addresses, as in -hosts
	ERTS     string
	Local    string // IPv4 address of the slave; empty: 127.0.0.1
	Root     string // ROOTDIR of the slave
	Embedded bool   // what it says of its mode

	// Silence is how long a server that has a request to answer may write nothing before
	// it is given up. Zero: 1.5 s, as the loader has it.
	Silence time.Duration

	// Age is how long ago its loader started, as it says to servers. nil: 600 ms.
	Age func() time.Duration

	// OnFile, when set, is given each file: its content, or what stands in its place. Without it, files
	// are counted and thrown away.
	OnFile func(path string, content any)
}

// Session is the loader's side of the wire extension, one slave with one connection at a
// time, for tests of servers: many fit into one process. It loads nothing. It is used by one
// goroutine.
type Session struct {
	SessionCounts
	opts      SessionOptions
	number    int  // of this boot, random
	arguments List // with which the script starts the loader; nil before it was read
	server    netip.Addr
	conn      net.Conn
	in        *bufio.Reader // of conn
	opened    bool          // conn
}

// SessionCounts is what a Session has seen.
type SessionCounts struct {
	Connections int
	Switches    int   // connections that were given up for another: lost, or silent
	Loss        error // why the latest of them was
	KeepAlives  int
	Files       int
	Bytes       int64 // received, frame headers included
}

// Opened is the good reply to an open.
type Opened struct {
	Bundle, Control, Cwd string
	Roots                []string
	Tree                 []byte
	Plan                 []string // when it was asked for: the files follow
}

// ErrRefused: a server answers that it will not do what it was asked. Its text says what it
// answered.
var ErrRefused = errors.New("server refuses")

// NewSession connects to nothing yet.
func NewSession(opts SessionOptions) *Session {
	if opts.Silence == 0 {
		opts.Silence = 1500 * time.Millisecond
	}
	if opts.Local == "" {
		opts.Local = "127.0.0.1"
	}
	if opts.Age == nil {
		opts.Age = func() time.Duration { return 600 * time.Millisecond }
	}
	return &Session{opts: opts, number: rand.IntN(1 << 48)}
}

// Close ends the connection, if there is one.
func (s *Session) Close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// Server is the address of the server that the session is connected to, or was.
func (s *Session) Server() netip.Addr { return s.server }

// Search asks all servers and returns those that answered, the best first. It waits for the
// last of them, `window` at most.
func (s *Session) Search(window time.Duration) ([]Discovered, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(s.opts.Local)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	for _, server := range s.opts.Servers {
		to := netip.AddrPortFrom(netip.MustParseAddr(server), DiscoveryPort)
		if _, err := conn.WriteToUDPAddrPort([]byte("EBOOTQ"+s.opts.ERTS), to); err != nil {
			return nil, err
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(window))
	var found []Discovered
	buf := make([]byte, 64)
	for len(found) < len(s.opts.Servers) {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil { // the deadline
			break
		}
		reply, err := ParseReply(slices.Clone(buf[:n]))
		if err != nil {
			return nil, err
		}
		reply.From = from
		found = append(found, reply)
	}
	slices.SortFunc(found, func(a, b Discovered) int { return int(a.Priority) - int(b.Priority) })
	return found, nil
}

// Connect connects to a server.
func (s *Session) Connect(server Discovered) error {
	s.Close()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(s.opts.Local)}, Timeout: s.opts.Silence}
	conn, err := dialer.Dial("tcp4", netip.AddrPortFrom(server.From.Addr(), server.Port).String())
	if err != nil {
		return err
	}
	s.conn, s.opened, s.server = conn, false, server.From.Addr()
	s.in = bufio.NewReaderSize((*sessionReader)(s), 4<<10)
	s.Connections++
	return nil
}

// sessionReader reads from the connection of a session. Each byte renews the deadline.
type sessionReader Session

func (r *sessionReader) Read(p []byte) (int, error) {
	patience := r.opts.Silence
	if !r.opened { // nobody promised a sign of life
		patience = max(patience, 20*time.Second)
	}
	n, err := r.readWithin(p, patience)
	if timedOut(err) {
		n, err = r.readWithin(p, 10*time.Millisecond)
	}
	r.Bytes += int64(n)
	return n, err
}

func (r *sessionReader) readWithin(p []byte, d time.Duration) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return 0, err
	}
	return r.conn.Read(p)
}

// send writes one frame.
func (s *Session) send(term any) error {
	if s.conn == nil {
		return net.ErrClosed
	}
	frame := Frame(Encode(term))
	for again := true; ; again = false {
		_ = s.conn.SetWriteDeadline(time.Now().Add(s.opts.Silence))
		n, err := s.conn.Write(frame)
		if frame = frame[n:]; !again || !timedOut(err) {
			return err
		}
	}
}

// timedOut reports whether a deadline has passed. Among a thousand sessions in one process
// it may be this side that was late, so everything is tried once more after that.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// header reads up to the content of the next frame that says anything.
func (s *Session) header() (size int, err error) {
	for {
		var header [4]byte
		if _, err := io.ReadFull(s.in, header[:]); err != nil {
			return 0, err
		}
		if size = int(binary.BigEndian.Uint32(header[:])); size > 0 {
			return size, nil
		}
		s.KeepAlives++
	}
}

// receive reads one frame.
func (s *Session) receive() (any, error) {
	size, err := s.header()
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(s.in, content); err != nil {
		return nil, err
	}
	return Decode(content)
}

// Request sends a request of the plain protocol and returns the reply.
func (s *Session) Request(term any) (any, error) {
	if err := s.send(term); err != nil {
		return nil, err
	}
	return s.receive()
}

// Script fetches the boot script and reads from it with what arguments it starts the loader.
// One that does not start it is ErrRefused.
func (s *Session) Script(path string) ([]byte, error) {
	reply, err := s.Request(Tuple{Atom("get"), path})
	if err != nil {
		return nil, err
	}
	content, ok := element(element(reply, 1), 1).([]byte)
	if !ok {
		return nil, fmt.Errorf("%w: boot script: %s", ErrRefused, Format(reply))
	}
	script, err := Decode(content)
	if err != nil {
		return content, err
	}
	// {script, {Name, Version}, [..., {kernelProcess, eboot_loader, {eboot_loader, start, [Arguments]}}, ...]}
	instructions, _ := element(script, 2).(List)
	for _, i := range instructions {
		if element(i, 0) == Atom("kernelProcess") && element(i, 1) == Atom("eboot_loader") {
			if list, ok := element(element(i, 2), 2).(List); ok && len(list) == 1 {
				s.arguments, _ = list[0].(List)
				return content, nil
			}
		}
	}
	return content, fmt.Errorf("%w: boot script does not start the loader", ErrRefused)
}

// argument is one that the script starts the loader with; nil when there is none.
func (s *Session) argument(name Atom) any {
	for _, pair := range s.arguments {
		if element(pair, 0) == name {
			return element(pair, 1)
		}
	}
	return nil
}

// Open opens the bundle of the script on this connection. When the plan is wanted the reply
// goes on with its files: Files reads them.
func (s *Session) Open(want ...string) (Opened, error) {
	mode := "interactive"
	if s.opts.Embedded {
		mode = "embedded"
	}
	wanted := List{}
	for _, w := range want {
		wanted = append(wanted, Atom(w))
	}
	options := List{
		Tuple{Atom("mode"), Atom(mode)}, Tuple{Atom("root"), []byte(s.opts.Root)}, Tuple{Atom("age"), int(s.opts.Age().Milliseconds())},
		Tuple{Atom("boot"), s.number}, Tuple{Atom("want"), wanted}, Tuple{Atom("pack"), Atom("false")},
	}
	for _, name := range []Atom{"bundle", "script"} {
		if value := s.argument(name); value != nil {
			options = append(options, Tuple{name, value})
		}
	}
	s.opened = true
	reply, err := s.Request(Tuple{Atom("eboot_open"), 1, s.argument("digest"), options})
	if err != nil {
		return Opened{}, err
	}
	info, ok := element(element(reply, 1), 1).(List)
	if !ok {
		return Opened{}, fmt.Errorf("%w: open: %s", ErrRefused, Format(reply))
	}
	return readOpened(info)
}

func readOpened(info List) (Opened, error) {
	var o Opened
	for _, pair := range info {
		key, _ := element(pair, 0).(Atom)
		switch value := element(pair, 1).(type) {
		case Atom:
			if key == "control" {
				o.Control = string(value)
			}
		case []byte:
			switch key {
			case "bundle":
				o.Bundle = string(value)
			case "cwd":
				o.Cwd = string(value)
			case "tree":
				o.Tree = value
			}
		case List:
			texts := make([]string, len(value))
			for i, v := range value {
				text, ok := v.([]byte)
				if !ok {
					return o, fmt.Errorf("open: %s is no list of binaries", key)
				}
				texts[i] = string(text)
			}
			switch key {
			case "roots":
				o.Roots = texts
			case "plan":
				o.Plan = texts
			}
		}
	}
	return o, nil
}

// element is that of a tuple, from 0; nil when there is none.
func element(term any, i int) any {
	if t, ok := term.(Tuple); ok && i < len(t) {
		return t[i]
	}
	return nil
}

// Fetch asks for files; Files reads them.
func (s *Session) Fetch(paths []string) error {
	list := make(List, len(paths))
	for i, p := range paths {
		list[i] = []byte(p)
	}
	return s.send(Tuple{Atom("eboot_fetch"), list})
}

// ReadFiles reads the files that were asked for, in their order, and returns how many came:
// all of them when there is no error.
func (s *Session) ReadFiles(paths []string) (int, error) {
	for i, want := range paths {
		path, err := s.readFile()
		if err != nil {
			return i, err
		}
		if path != want {
			return i, fmt.Errorf("file %d is %q, want %q", i, path, want)
		}
		s.Files++
	}
	done, err := s.receive()
	if err != nil {
		return len(paths), err
	}
	if element(done, 0) != Atom("eboot_done") || element(done, 1) != len(paths) {
		return len(paths), fmt.Errorf("after %d files came %s", len(paths), Format(done))
	}
	return len(paths), nil
}

// readFile reads one frame {eboot_file, Path, Content}.
func (s *Session) readFile() (string, error) {
	size, err := s.header()
	if err != nil {
		return "", err
	}
	// Without OnFile the beginning will do: a path is shorter than this.
	read := min(size, 1<<10)
	if s.opts.OnFile != nil {
		read = size
	}
	frame := make([]byte, read)
	if _, err := io.ReadFull(s.in, frame); err != nil {
		return "", err
	}
	if s.opts.OnFile != nil {
		file, err := Decode(frame)
		path, ok := element(file, 1).([]byte)
		if err != nil || !ok || element(file, 0) != Atom("eboot_file") {
			return "", fmt.Errorf("%s is no file: %w", Format(file), err)
		}
		s.opts.OnFile(string(path), element(file, 2))
		return string(path), nil
	}
	if _, err := io.CopyN(io.Discard, s.in, int64(size-read)); err != nil {
		return "", err
	}
	return fileHead(frame)
}

// fileHead reads the path in the beginning of the frame of a file.
func fileHead(frame []byte) (string, error) {
	rest, ok := bytes.CutPrefix(frame, []byte{termVersion, tagSmallTuple, 3})
	d := decoder{rest: rest}
	name, err := d.term()
	if !ok || err != nil || name != Atom("eboot_file") {
		return "", fmt.Errorf("frame %.40q is no file", frame)
	}
	term, err := d.term()
	path, ok := term.([]byte)
	if err != nil || !ok {
		return "", fmt.Errorf("frame %.40q names no file", frame)
	}
	return string(path), nil
}

// Report tells the server when phases of the boot were reached, since its loader started.
// There is no reply.
func (s *Session) Report(phases ...Phase) error {
	list := List{Tuple{Atom("switches"), s.Switches}, Tuple{Atom("local"), 0}}
	for _, p := range phases {
		list = append(list, Tuple{Atom("phase"), Atom(p.Name), int(p.At.Milliseconds())})
	}
	return s.send(Tuple{Atom("eboot_report"), list})
}

// Phase is a phase of a boot; "started" is its end.
type Phase struct {
	Name string
	At   time.Duration
}
