package bootproto

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"eboot/bootproto/etf"
)

// extendedTree is a Host whose sessions are Extended.
type extendedTree struct {
	*tree
	opened Opened
	refuse func(Open) error                              // nil: nothing is refused
	fetch  func(name string, pack bool) (Content, error) // nil: what Get returns for /name

	mu      sync.Mutex
	opens   []Open
	reports []Report
}

func newExtendedTree() *extendedTree {
	return &extendedTree{tree: newTree(), opened: Opened{
		Bundle: "otp@25", Cwd: "/opt/erlang", Roots: []string{"/opt/erlang", "/usr/lib/erlang"}, Tree: []byte{131, 106}, Plan: []string{"bin/start.boot", "nothing"},
	}}
}

func (t *extendedTree) Connect(slave netip.AddrPort, erts string) (Session, error) {
	s, err := t.tree.Connect(slave, erts)
	if err != nil {
		return nil, err
	}
	return &extendedSession{treeSession: s.(*treeSession), tree: t}, nil
}

func (t *extendedTree) reported() []Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.reports)
}

type extendedSession struct {
	*treeSession
	tree *extendedTree
}

var _ Extended = (*extendedSession)(nil)

func (s *extendedSession) Open(o Open) (Opened, error) {
	s.tree.mu.Lock()
	s.tree.opens = append(s.tree.opens, o)
	s.tree.mu.Unlock()
	if s.tree.refuse != nil {
		if err := s.tree.refuse(o); err != nil {
			return Opened{}, err
		}
	}
	return s.tree.opened, nil
}

func (s *extendedSession) Fetch(name []byte, pack bool) (Content, error) {
	if s.tree.fetch != nil {
		return s.tree.fetch(string(name), pack)
	}
	return s.Get(append([]byte("/"), name...))
}

func (s *extendedSession) Report(r Report) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.reports = append(s.tree.reports, r)
}

// The encoders of requests: what our loader would send.

const testDigest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// askOpen is {eboot_open,1,Digest,[{want,Want},{pack,Pack}]}.
func askOpen(pack bool, want ...string) []byte {
	b := beginTerm(4, atomOpen)
	b = appendText(etf.AppendInteger(b, 1), testDigest)
	b = etf.AppendList(b, 2)
	b = appendAtoms(appendKey(b, "want"), want)
	truth := map[bool]string{true: "true", false: "false"}
	return packet(etf.AppendNil(etf.AppendAtom(appendKey(b, "pack"), truth[pack])))
}

func askFetch(paths ...string) []byte { return packet(appendTexts(beginTerm(2, atomFetch), paths)) }

func askReport(phase string, ms int64) []byte {
	b := etf.AppendList(beginTerm(2, atomReport), 1)
	b = etf.AppendAtom(etf.AppendAtom(etf.AppendTuple(b, 3), "phase"), phase)
	return packet(etf.AppendNil(etf.AppendInteger(b, ms)))
}

func beginTerm(n int, atom string) []byte {
	return etf.AppendAtom(etf.AppendTuple([]byte{etf.Version}, n), atom)
}

func appendAtoms(dst []byte, atoms []string) []byte {
	if len(atoms) > 0 {
		dst = etf.AppendList(dst, len(atoms))
		for _, atom := range atoms {
			dst = etf.AppendAtom(dst, atom)
		}
	}
	return etf.AppendNil(dst)
}

// readReply reads frames until one is not empty, and returns how many were.
func readReply(t testing.TB, conn io.Reader) (text string, empty int) {
	t.Helper()
	for {
		frame, err := readPacket(conn)
		if err != nil {
			t.Fatalf("read a reply: %v", err)
		}
		if len(frame) == 0 {
			empty++
			continue
		}
		text, err := etf.Format(frame)
		if err != nil {
			t.Fatalf("% x: %v", frame, err)
		}
		return text, empty
	}
}

// expectReplies reads frames, the empty ones passed over.
func expectReplies(t testing.TB, conn io.Reader, want ...string) {
	t.Helper()
	for _, w := range want {
		if got, _ := readReply(t, conn); got != w {
			t.Fatalf("got %.200s\nwant %.200s", got, w)
		}
	}
}

// opensOn opens a session on a connection, without a tree or a plan.
func opensOn(t testing.TB, conn io.ReadWriter) {
	t.Helper()
	if _, err := conn.Write(askOpen(false)); err != nil {
		t.Fatal(err)
	}
	if got, _ := readReply(t, conn); !strings.HasPrefix(got, "{eboot_open,{ok,") {
		t.Fatal(got)
	}
}
