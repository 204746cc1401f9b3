package bootproto

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

var errNotNow = errors.New("not now")

// tree is a Host whose sessions serve what is in memory.
type tree struct {
	files map[string]Content // by name; a name that ends in / is a directory
	open  func(name string) (io.ReadCloser, int64, error)

	denied atomic.Bool

	mu      sync.Mutex
	reasons []error // of the sessions that ended
	sent    int64
}

func newTree() *tree {
	return &tree{files: map[string]Content{
		"/":                {},
		"/bin/":            {},
		"/bin/start.boot":  {Data: []byte("boot")},
		"/bin/empty":       {},
		"/lib/":            {},
		"/lib/big":         {Data: []byte(strings.Repeat("big.", 64<<10))},
		"/lib/é":           {Data: []byte("accent")},
		"/lib/日本":          {Data: []byte("Japan")},
		"/lib/not\xffutf8": {Data: []byte("unreachable")},
		"/none/":           {},
		"/link@":           {},
	}}
}

func (t *tree) Admit(netip.Addr) error {
	if t.denied.Load() {
		return errors.New("not in the whitelist")
	}
	return nil
}

func (t *tree) Connect(netip.AddrPort, string) (Session, error) {
	if t.denied.Load() {
		return nil, errors.New("not in the whitelist")
	}
	return &treeSession{tree: t}, nil
}

func (t *tree) ended() []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.reasons)
}

type treeSession struct {
	tree   *tree
	key    []byte
	closed bool
}

var _ Session = (*treeSession)(nil)

func (s *treeSession) Allowed() error {
	if s.tree.denied.Load() {
		return errors.New("no longer in the whitelist")
	}
	return nil
}

func (s *treeSession) Get(name []byte) (Content, error) {
	if c, ok := s.tree.files[string(name)]; ok {
		return c, nil
	}
	s.key = append(append(s.key[:0], name...), '/')
	if _, ok := s.tree.files[string(s.key)]; ok {
		return Content{}, syscall.EISDIR
	}
	if string(name) == "/damaged" {
		return Content{}, errNotNow
	}
	if s.tree.open != nil {
		r, size, err := s.tree.open(string(name))
		return Content{Reader: r, Size: size}, err
	}
	return Content{}, syscall.ENOENT
}

func (s *treeSession) List(name []byte) ([]string, error) {
	dir := string(name) + "/"
	if string(name) == "/" {
		dir = "/"
	}
	if _, ok := s.tree.files[dir]; !ok {
		return nil, errors.Join(errors.New("list"), syscall.ENOTDIR)
	}
	var names []string
	for file := range s.tree.files {
		rest, ok := strings.CutPrefix(file, dir)
		rest = strings.TrimRight(rest, "/@")
		if ok && rest != "" && !strings.Contains(rest, "/") {
			names = append(names, rest)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *treeSession) Stat(name []byte, follow bool) (FileInfo, error) {
	if _, ok := s.tree.files[string(name)+"@"]; ok && !follow {
		return FileInfo{Size: 3, Type: Symlink, ModTime: 0}, nil
	}
	if c, ok := s.tree.files[string(name)]; ok {
		size := c.Size
		if c.Reader == nil {
			size = int64(len(c.Data))
		}
		return FileInfo{Size: size, Type: Regular, Exec: strings.HasPrefix(string(name), "/bin"), ModTime: 1763832896}, nil
	}
	if _, ok := s.tree.files[strings.TrimRight(string(name), "/")+"/"]; ok {
		return FileInfo{Size: 4096, Type: Directory, ModTime: 1763832896}, nil
	}
	return FileInfo{}, syscall.ENOENT
}

func (s *treeSession) WorkingDirectory() string { return "/opt/erläng" }

func (s *treeSession) Sent(n int) {
	s.tree.mu.Lock()
	s.tree.sent += int64(n)
	s.tree.mu.Unlock()
}

func (s *treeSession) Close(reason error) {
	if s.closed {
		panic("a session closed twice")
	}
	s.closed = true
	s.tree.mu.Lock()
	s.tree.reasons = append(s.tree.reasons, reason)
	s.tree.mu.Unlock()
}

// testLogger shows what is logged when a test fails.
func testLogger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: testWriter{t}, DisableTime: true})
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}
