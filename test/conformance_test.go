package test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// TestConformance sends the same requests to OTP's own erl_boot_server and to eboot,
// which serve the same trees, and compares what they do. Every difference must be
// allowed by a rule, and every rule must have been needed: one that explains nothing any more
// would hide the next error.
func TestConformance(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	hits := ruleHits{}
	t.Run("installation", func(t *testing.T) {
		// The working directory of the reference is the root, as it is eboot's.
		otp := testutil.StartBootServer(t, erl, testutil.BootServerOptions{Dir: erl.Root})
		eboot := startEboot(t, erl, erl.Root, []string{erl.Root})
		compare(t, hits, otp.Dial, eboot.dial(t, erl), installationProbes(t, erl))
	})
	t.Run("odd tree", func(t *testing.T) {
		root := oddTree(t, erl)
		otp := testutil.StartBootServer(t, erl, testutil.BootServerOptions{Dir: root})
		eboot := startEboot(t, erl, root, []string{root})
		compare(t, hits, otp.Dial, eboot.dial(t, erl), oddProbes(t, root))
		t.Run("framing", func(t *testing.T) { compareFraming(t, otp.Dial, eboot.dial(t, erl), root) })
		t.Run("hostile names", func(t *testing.T) { compare(t, hits, otp.Dial, eboot.dial(t, erl), hostileProbes(t, root)) })
	})
	if t.Failed() {
		return
	}
	for _, r := range rules {
		if hits[r.name] == 0 {
			t.Errorf("rule %q was not needed: take it out", r.name)
		}
		t.Logf("%-28s %6d differences", r.name, hits[r.name])
	}
}

func (s *server) dial(t testing.TB, erl testutil.Erlang) func() (net.Conn, error) {
	address := s.FileAddress(t, erl)
	return func() (net.Conn, error) { return net.DialTimeout("tcp4", address, 10*time.Second) }
}

// probe is one request.
type probe struct {
	request []byte // content of the frame
	text    string // for people
	path    string // what it names, when it is a request with a path
	root    string // of the tree
	clean   string // path as an absolute one, without dots; empty when there is no path
}

// inside reports whether the probe names something in the tree.
func (p *probe) inside() bool {
	return p.clean == p.root || strings.HasPrefix(p.clean, p.root+"/")
}

// asker sends probes over one connection and makes a new one when the server closes it.
type asker struct {
	t      *testing.T
	dial   func() (net.Conn, error)
	client *testutil.FileClient
}

func (a *asker) ask(p *probe) (outcome, error) {
	if a.client == nil {
		conn, err := a.dial()
		if err != nil {
			return outcome{}, err
		}
		a.client = testutil.NewFileClient(a.t, conn)
	}
	reply, err := a.client.Exchange(p.request)
	if closedByPeer(err) {
		a.client.Close()
		a.client = nil
		return outcome{closed: true}, nil
	}
	if err != nil {
		return outcome{}, fmt.Errorf("%s: %w", p.text, err)
	}
	return outcome{reply: condense(reply)}, nil
}

func closedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// condense replaces the long binaries of a term by size and digest.
func condense(term any) any {
	switch v := term.(type) {
	case testutil.Tuple:
		for i := range v {
			v[i] = condense(v[i])
		}
	case []byte:
		if len(v) > 64 {
			return testutil.Format(v)
		}
	}
	return term
}

const reportedDifferences = 60

// compare asks both servers every probe and reports differences that no rule allows.
func compare(t *testing.T, hits ruleHits, otp, eboot func() (net.Conn, error), probes []*probe) {
	t.Helper()
	type answer struct {
		outcome outcome
		err     error
	}
	// Each server is asked by a goroutine of its own; the results are compared as they come.
	run := func(dial func() (net.Conn, error)) <-chan answer {
		answers := make(chan answer, 256)
		go func() {
			defer close(answers)
			a := &asker{t: t, dial: dial}
			for _, p := range probes {
				o, err := a.ask(p)
				answers <- answer{o, err}
				if err != nil {
					return
				}
			}
		}()
		return answers
	}
	fromOTP, fromEboot := run(otp), run(eboot)
	bad, started := 0, time.Now()
	for _, p := range probes {
		a, b := <-fromOTP, <-fromEboot
		if a.err != nil || b.err != nil {
			t.Errorf("erl_boot_server: %v; eboot: %v", a.err, b.err)
			break
		}
		if equalOutcomes(a.outcome, b.outcome) || hits.reconcile(p, a.outcome, b.outcome) {
			continue
		}
		if bad++; bad <= reportedDifferences {
			t.Errorf("%s\n  erl_boot_server: %s\n  eboot:           %s", p.text, a.outcome, b.outcome)
		}
	}
	for range fromOTP {
	}
	for range fromEboot {
	}
	if bad > reportedDifferences {
		t.Errorf("and %d more differences", bad-reportedDifferences)
	}
	t.Logf("%d requests in %v", len(probes), time.Since(started).Round(time.Millisecond))
}

// pathProbes are the requests that name a path, for each of names.
func pathProbes(root string, names ...string) []*probe {
	var probes []*probe
	for _, name := range names {
		for _, command := range []string{"get", "read_file_info", "read_link_info", "list_dir"} {
			probes = append(probes, pathProbe(root, command, name))
		}
	}
	return probes
}

func pathProbe(root, command, name string) *probe {
	clean := filepath.Clean(name)
	if !filepath.IsAbs(name) {
		clean = filepath.Join(root, name)
	}
	return &probe{
		request: testutil.Encode(testutil.Tuple{testutil.Atom(command), name}),
		text:    fmt.Sprintf("{%s,%q}", command, name),
		path:    name,
		root:    root,
		clean:   clean,
	}
}

func termProbe(text string, term any) *probe {
	return &probe{request: testutil.Encode(term), text: text}
}

// otherForms spells the path of an entry in other ways that mean the same, or, for
// a trailing slash after a file, nothing.
func otherForms(root, name string) []string {
	below, ok := strings.CutPrefix(name, root+"/")
	if !ok {
		return []string{name + "/", name + "/."}
	}
	dir, base := filepath.Split(name)
	return []string{
		name + "/",
		dir + "/" + base,                     // doubled slash
		dir + "./" + base,                    // /./
		root + "/lib/../" + below,            // through a directory that exists
		dir + "no-such-directory/../" + base, // through one that does not
		below,                                // relative
		"./" + below,
	}
}

// installationProbes asks for every entry of the Erlang installation, in every form.
// The content of a file is asked for under its own name; other forms of a file's name are asked for with
// read_file_info and list_dir, which is cheaper and takes the same way through the names.
func installationProbes(t *testing.T, erl testutil.Erlang) []*probe {
	t.Helper()
	var probes []*probe
	err := filepath.WalkDir(erl.Root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if outward(erl.Root, name, d) {
			return nil // followed when it was published, as far as it leads anywhere on this machine
		}
		probes = append(probes, pathProbes(erl.Root, name)...)
		for _, form := range otherForms(erl.Root, name) {
			for _, command := range []string{"read_file_info", "list_dir"} {
				probes = append(probes, pathProbe(erl.Root, command, form))
			}
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() && info.Size() < 4096 {
			probes = append(probes, pathProbe(erl.Root, "get", filepath.Dir(name)+"/./"+filepath.Base(name)))
			probes = append(probes, pathProbe(erl.Root, "get", name+"/"))
		}
		// What path searches ask for and do not find, the bulk of a boot.
		probes = append(probes, pathProbe(erl.Root, "get", name+"/missing.beam"))
		probes = append(probes, pathProbe(erl.Root, "read_file_info", name+".ez/x/ebin"))
		probes = append(probes, pathProbe(erl.Root, "list_dir", name+".ez/x"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	probes = append(probes, pathProbes(erl.Root, "", ".", "./", "..", "../", "/", "..ez/.", "./missing.beam",
		erl.Root+"/..", erl.Root+"/../..", "/etc/hostname", "/etc", "/no-such-directory", "../../etc/hostname",
		erl.Root+"/lib/../../../../etc/hostname", filepath.Dir(erl.Root), erl.Root+"x", erl.Root+"/")...)
	return append(probes, commandProbes()...)
}

// outward reports whether a name is a symlink that leads out of the tree.
func outward(root, name string, d fs.DirEntry) bool {
	if d.Type()&fs.ModeSymlink == 0 {
		return false
	}
	target, err := filepath.EvalSymlinks(name)
	return err == nil && target != root && !strings.HasPrefix(target, root+"/")
}

// commandProbes are requests that are no path's.
func commandProbes() []*probe {
	atom, tuple := func(s string) any { return testutil.Atom(s) }, func(e ...any) any { return testutil.Tuple(e) }
	return []*probe{
		termProbe("get_cwd", atom("get_cwd")),
		termProbe(`{get_cwd,"C:"}`, tuple(atom("get_cwd"), "C:")),
		termProbe(`{get_cwd,""}`, tuple(atom("get_cwd"), "")),
		termProbe(`{get_cwd,"/"}`, tuple(atom("get_cwd"), "/")),
		termProbe(`{get_cwd,[]} twice nested`, tuple(atom("get_cwd"), testutil.List{"C:"})),
		termProbe("unknown atom", atom("reboot")),
		termProbe("get without a file", atom("get")),
		termProbe("{get}", tuple(atom("get"))),
		termProbe("{get,A,B}", tuple(atom("get"), "a", "b")),
		termProbe("{put,File}", tuple(atom("put"), "a")),
		termProbe("{}", tuple()),
		termProbe("[]", testutil.List{}),
		termProbe("[get]", testutil.List{atom("get")}),
		termProbe("number", 1),
		termProbe("float", 1.5),
		termProbe("binary", []byte("get")),
		termProbe(`{"get",File}`, tuple("get", "a")),
		termProbe("{<<get>>,File}", tuple([]byte("get"), "a")),
	}
}

func equalOutcomes(a, b outcome) bool {
	return a.closed == b.closed && testutil.Format(a.reply) == testutil.Format(b.reply)
}

// compareFraming sends the same requests cut into single bytes, and all in one
// write, and compares the replies in their order.
func compareFraming(t *testing.T, otp, eboot func() (net.Conn, error), root string) {
	t.Helper()
	var stream []byte
	names := []string{"plain.txt", "missing", "dir", "empty", root + "/plain.txt", "exec"}
	for range 4 {
		for _, name := range names {
			stream = append(stream, testutil.Frame(testutil.Encode(testutil.Tuple{testutil.Atom("get"), name}))...)
		}
	}
	replies := 4 * len(names)
	cuts := []struct {
		name  string
		piece int
	}{{"byte by byte", 1}, {"header apart", 4}, {"odd pieces", 7}, {"all in one write", len(stream)}}
	read := func(dial func() (net.Conn, error), piece int) []string {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetNoDelay(true)
		}
		c := testutil.NewFileClient(t, conn)
		defer c.Close()
		for rest := stream; len(rest) > 0; {
			n := min(piece, len(rest))
			if err := c.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		var out []string
		for range replies {
			frame, err := c.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			term, err := testutil.Decode(frame)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, testutil.Format(term))
		}
		return out
	}
	for _, cut := range cuts {
		t.Run(cut.name, func(t *testing.T) {
			a, b := read(otp, cut.piece), read(eboot, cut.piece)
			for i := range a {
				if a[i] != b[i] {
					t.Errorf("reply %d: erl_boot_server %s, eboot %s", i, a[i], b[i])
				}
			}
		})
	}
}

// TestDiscoveryConformance sends the same datagrams to both: what one leaves
// unanswered the other does too, and replies say the same but for the port. The reference binds
// 0.0.0.0:4368 and so runs in a network namespace of its own.
func TestDiscoveryConformance(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	ns := testutil.NewNamespace(t)
	testutil.StartBootServer(t, erl, testutil.BootServerOptions{Namespace: ns, Whitelist: []string{"127.0.0.1"}})
	eboot := startServer(t, serverOptions{Roots: []string{slaveRoot}})
	eboot.Publish(t, erl, "otp", "1", smallTree(t, erl))
	eboot.Allow(t, "127.0.0.1")
	eboot.WaitReady(t, erl)

	ask := func(conn *net.UDPConn, err error, server, request string) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		to := net.UDPAddr{IP: net.ParseIP(server), Port: testutil.DiscoveryPort}
		if _, err := conn.WriteToUDP([]byte(request), &to); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range testutil.Collect(t, conn, 150*time.Millisecond) {
			out = append(out, fmt.Sprintf("priority %d, version %q, %d bytes", r.Priority, r.ERTS, len(r.Raw)))
		}
		return strings.Join(out, "; ")
	}
	for _, from := range []string{"127.0.0.1", "127.0.0.77"} {
		for _, request := range []string{
			"EBOOTQ" + erl.ERTS, "EBOOTQ" + erl.ERTS + "0", "EBOOTQ" + erl.ERTS + "\x00", "EBOOTQ" + erl.ERTS[:2], "EBOOTQ", "EBOOT",
			"EBOOTQ1.0", "ebootq" + erl.ERTS, "EBOOTR" + erl.ERTS, " EBOOTQ" + erl.ERTS, "0", "", strings.Repeat("EBOOTQ", 200),
		} {
			inside, err := ns.ListenUDP(from + ":0")
			reference := ask(inside, err, "127.0.0.1", request)
			local, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)})
			if got := ask(local, err, eboot.Address, request); got != reference {
				t.Errorf("%q from %s: erl_boot_server %q, eboot %q", request, from, reference, got)
			}
			if good := from == "127.0.0.1" && request == "EBOOTQ"+erl.ERTS; good != (reference != "") {
				t.Errorf("%q from %s: erl_boot_server answers %q", request, from, reference)
			}
		}
	}
}
