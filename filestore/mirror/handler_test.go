package mirror

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"eboot"
	"eboot/filestore"
)

func TestHandler(t *testing.T) {
	little, big := noise(1000), noise(3_000_000)
	peer := serve(t, "a", Handler(openStore(t, filestore.Options{}, corpus{}.add(little, big, nil)), nil))
	one := func(b []byte) string { return blobsPath + "/" + eboot.DigestOf(b).String() }
	d, e, f := eboot.DigestOf(little), eboot.DigestOf(big), eboot.DigestOf([]byte("not here"))
	both := appendHeader(nil, d, 1000)
	both = append(both, little...)
	both = appendHeader(both, f, absent)
	both = append(appendHeader(both, e, 3_000_000), big...)
	for _, tc := range []struct {
		name, method, path string
		body               []byte
		status             int
		want               []byte
	}{
		{"one", "GET", one(little), nil, 200, little},
		{"one from an offset", "GET", one(little) + "?offset=999", nil, 200, little[999:]},
		{"one from its end", "GET", one(little) + "?offset=1000", nil, 200, nil},
		{"empty", "GET", one(nil), nil, 200, nil},
		{"big", "GET", one(big), nil, 200, big},
		{"big from an offset", "GET", one(big) + "?offset=2000001", nil, 200, big[2_000_001:]},
		{"big from its end", "GET", one(big) + "?offset=3000000", nil, 200, nil},
		{"past the end", "GET", one(big) + "?offset=3000001", nil, 400, nil},
		{"negative offset", "GET", one(big) + "?offset=-1", nil, 400, nil},
		{"no offset", "GET", one(big) + "?offset=x", nil, 400, nil},
		{"not here", "GET", one([]byte("not here")), nil, 404, nil},
		{"no digest", "GET", blobsPath + "/abc", nil, 400, nil},
		{"other path", "GET", "/v1/manifests", nil, 404, nil},
		{"other method", "DELETE", one(big), nil, 405, nil},
		{"many", "POST", blobsPath, slices.Concat(d[:], f[:], e[:]), 200, both},
		{"none", "POST", blobsPath, nil, 400, nil},
		{"half a digest", "POST", blobsPath, d[:31], 400, nil},
		{"as many as may be", "POST", blobsPath, bytes.Repeat(f[:], maxAsked), 200, bytes.Repeat(appendHeader(nil, f, absent), maxAsked)},
		{"too many", "POST", blobsPath, bytes.Repeat(f[:], maxAsked+1), 400, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, peer.URL+tc.path, bytes.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			res, err := peer.Client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			got, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != tc.status || tc.status == 200 && !bytes.Equal(got, tc.want) {
				t.Errorf("%d, %d bytes, want %d, %d bytes; %v", res.StatusCode, len(got), tc.status, len(tc.want), err)
			}
		})
	}
}

// TestHandlerBounded: the 65th request at once is sent away, and served when there
// is room again.
func TestHandlerBounded(t *testing.T) {
	b := noise(100)
	h := Handler(openStore(t, filestore.Options{}, corpus{}.add(b)), nil)
	held := make(chan struct{})
	entered := make(chan struct{}, maxRequests)
	peer := serve(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("hold") {
			r.Body = io.NopCloser(readerFunc(func([]byte) (int, error) { entered <- struct{}{}; <-held; return 0, io.EOF }))
		}
		h.ServeHTTP(w, r)
	}))
	var holders sync.WaitGroup
	for range maxRequests {
		holders.Go(func() {
			res, err := peer.Client.Post(peer.URL+blobsPath+"?hold", "", strings.NewReader("x"))
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
		})
	}
	for range maxRequests {
		<-entered
	}
	status := func() int {
		res, err := peer.Client.Get(peer.URL + blobsPath + "/" + eboot.DigestOf(b).String())
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if got := status(); got != http.StatusServiceUnavailable {
		t.Error(got)
	}
	close(held)
	holders.Wait()
	if got := status(); got != http.StatusOK {
		t.Error(got)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// transport answers each request with the same bytes.
type transport []byte

func (b transport) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, ContentLength: int64(len(b)), Body: io.NopCloser(bytes.NewReader(b))}, nil
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 32))
	f.Add(make([]byte, 33))
	f.Add(bytes.Repeat([]byte{7}, 96))
	f.Add(make([]byte, maxRequest+32))
	f.Fuzz(func(t *testing.T, body []byte) {
		asked, err := decodeRequest(body)
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		for _, d := range asked {
			again = append(again, d[:]...)
		}
		if !bytes.Equal(again, body) || len(asked) > maxAsked {
			t.Fatalf("%d bytes became %d digests", len(body), len(asked))
		}
	})
}

// FuzzReply feeds any bytes to a Mirror as the reply to a request for a batch and
// for one big blob. Nothing but the blobs themselves may come in, and every blob that
// does not is given back.
func FuzzReply(f *testing.F) {
	store, err := filestore.Open(filestore.Options{Dir: f.TempDir(), MinFree: -1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	all := corpus{}.add([]byte("one"), []byte("two"), nil, bytes.Repeat([]byte("big"), bigBlob))
	var batch []*item
	var whole []byte
	for _, d := range slices.SortedFunc(maps.Keys(all), func(a, b eboot.Digest) int { return bytes.Compare(a[:], b[:]) }) {
		if len(all[d]) > bigBlob {
			f.Add(all[d])
			continue
		}
		batch = append(batch, &item{digest: d, size: int64(len(all[d]))})
		whole = append(appendHeader(whole, d, int64(len(all[d]))), all[d]...)
	}
	batch[0].size = -1
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(bytes.Clone(whole), 0))
	f.Add(appendHeader(nil, batch[0].digest, absent))
	f.Add(appendHeader(nil, batch[0].digest, eboot.MaxFileSize))
	f.Add(appendHeader(nil, batch[0].digest, -2))
	f.Add(appendHeader(nil, batch[1].digest, 3))
	f.Add(append(appendHeader(nil, batch[0].digest, 3), "xyz"...))
	f.Fuzz(func(t *testing.T, reply []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		m := New(Options{Store: store, Peers: peers()})
		s := &source{id: "a", bit: 1, here: true, peer: Peer{Client: &http.Client{Transport: transport(reply)}}}
		p := &pull{mirror: m, pending: make(map[shelf][]*item), ingest: store.Ingest(), sources: []*source{s}}
		fetch := func(items ...*item) {
			p.flying, p.open = len(items), len(items)
			put := len(p.fetched)
			_ = p.fetch(ctx, s, items)
			back := 0
			for _, list := range p.pending {
				back += len(list)
			}
			if put = len(p.fetched) - put; p.failure != nil || p.flying != 0 || back+put != len(items) || p.open != back {
				t.Fatalf("%d of %d items put, %d back, %d flying, %d open; %v", put, len(items), back, p.flying, p.open, p.failure)
			}
			clear(p.pending)
		}
		var items []*item
		for _, it := range batch {
			items = append(items, &item{digest: it.digest, size: it.size})
		}
		fetch(items...)
		for d, b := range all {
			if len(b) > bigBlob {
				fetch(&item{digest: d, size: int64(len(b))})
			}
		}
		for _, it := range p.fetched {
			if _, ok := all[it.digest]; !ok {
				t.Fatalf("put %s", it.digest)
			}
		}
		cancel()
		p.workers.Wait()
		if err := p.ingest.Close(); err != nil { // nothing is committed
			t.Fatal(err)
		}
	})
}
