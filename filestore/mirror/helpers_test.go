package mirror

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"eboot"
	"eboot/filestore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// corpus is blobs by digest.
type corpus map[eboot.Digest][]byte

func (c corpus) add(contents ...[]byte) corpus {
	for _, b := range contents {
		c[eboot.DigestOf(b)] = b
	}
	return c
}

// sizes is what Pull wants to know of them.
func (c corpus) sizes() map[eboot.Digest]int64 {
	out := make(map[eboot.Digest]int64, len(c))
	for d, b := range c {
		out[d] = int64(len(b))
	}
	return out
}

func noise(n int) []byte {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Int())
	}
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// small returns n blobs of up to 40,000 bytes, an empty one among them.
func small(n int) corpus {
	c := corpus{}.add(nil)
	for len(c) < n {
		c.add(noise(1 + rand.IntN(40_000)))
	}
	return c
}

func openStore(t testing.TB, opts filestore.Options, contents ...corpus) *filestore.Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	if opts.MinFree == 0 {
		opts.MinFree = -1
	}
	s, err := filestore.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		unfinished(t, opts.Dir)
	})
	in := s.Ingest()
	for _, c := range contents {
		for d, b := range c {
			if err := in.Put(t.Context(), d, int64(len(b)), bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(in.Commit(), in.Close()); err != nil {
		t.Fatal(err)
	}
	return s
}

// unfinished reports what a Pull left behind.
func unfinished(t testing.TB, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "tmp", "*"))
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

// serve returns a peer that answers as h does.
func serve(t testing.TB, id string, h http.Handler) Peer {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	t.Cleanup(server.Client().CloseIdleConnections)
	return Peer{ID: id, Client: server.Client(), URL: server.URL}
}

func peers(p ...Peer) func() []Peer { return func() []Peer { return p } }

// tap sees the requests to a handler and may change the replies.
type tap struct {
	http.Handler
	mu       sync.Mutex
	asked    map[eboot.Digest]int
	offsets  []string // of GETs
	requests int
	reply    func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter // n: requests so far, 1 for the first
}

func (p *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	p.mu.Lock()
	p.requests++
	n := p.requests
	if p.asked == nil {
		p.asked = make(map[eboot.Digest]int)
	}
	if r.Method == http.MethodGet {
		d, _ := eboot.ParseDigest(filepath.Base(r.URL.Path))
		p.asked[d]++
		p.offsets = append(p.offsets, r.URL.Query().Get("offset"))
	} else if digests, err := decodeRequest(body); err == nil {
		for _, d := range digests {
			p.asked[d]++
		}
	}
	p.mu.Unlock()
	if p.reply != nil {
		if w = p.reply(n, w, r); w == nil {
			panic(http.ErrAbortHandler)
		}
	}
	p.Handler.ServeHTTP(w, r)
}

// filter is a ResponseWriter whose body goes through write.
type filter struct {
	http.ResponseWriter
	write func(w http.ResponseWriter, b []byte) (int, error)
}

func (f filter) Write(b []byte) (int, error) { return f.write(f.ResponseWriter, b) }
func (f filter) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// cutAfter breaks the connection after n bytes.
func cutAfter(w http.ResponseWriter, n int) http.ResponseWriter {
	return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
		k, err := w.Write(b[:min(len(b), n)])
		if n -= k; n == 0 {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		return k, err
	}}
}

// corrupt changes one byte of each write.
func corrupt(w http.ResponseWriter) http.ResponseWriter {
	return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return w.Write(b)
	}}
}

// hang writes n bytes and then nothing until the client goes.
func hang(w http.ResponseWriter, r *http.Request, n int) http.ResponseWriter {
	return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
		k, _ := w.Write(b[:min(len(b), n)])
		if n -= k; n == 0 {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		return k, nil
	}}
}

// pullAll pulls, expects success and checks that everything is there.
func pullAll(t *testing.T, m *Mirror, want corpus, sizes map[eboot.Digest]int64) {
	t.Helper()
	release, err := m.Pull(t.Context(), sizes, nil)
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	check(t, m, want)
}

func check(t *testing.T, m *Mirror, want corpus) {
	t.Helper()
	for d, b := range want {
		if err := m.opts.Store.Verify(t.Context(), d, int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.claims) > 0 || len(m.slots) > 0 {
		t.Errorf("%d claims, %d slots left", len(m.claims), len(m.slots))
	}
}

func within(t *testing.T, limit time.Duration) {
	t.Helper()
	began := time.Now()
	t.Cleanup(func() {
		if took := time.Since(began); took > limit {
			t.Errorf("took %v, at most %v", took, limit)
		}
	})
}

// count is how many requests have come.
func (p *tap) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}
