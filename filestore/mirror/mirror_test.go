package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/filestore"
)

func TestPull(t *testing.T) {
	manifest := noise(2_000_000)
	all := small(500).add(noise(bigBlob), noise(bigBlob+1), noise(5_000_000), manifest)
	sizes := all.sizes()
	sizes[eboot.DigestOf(manifest)] = -1
	half := maps.Clone(all)
	for d := range half {
		if d[0]%2 == 0 {
			delete(half, d)
		}
	}
	source := openStore(t, filestore.Options{}, all)
	for _, tc := range []struct {
		name    string
		has     corpus
		missing int64
	}{
		{"everything missing", nil, int64(len(all))},
		{"half missing", half, int64(len(all) - len(half))},
		{"nothing missing", all, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := &tap{Handler: Handler(source, nil)}, &tap{Handler: Handler(source, nil)}
			m := New(Options{Store: openStore(t, filestore.Options{}, tc.has), Peers: peers(serve(t, "a", a), serve(t, "b", b))})
			var last Progress
			release, err := m.Pull(t.Context(), sizes, func(p Progress) { last = p })
			defer release()
			if err != nil {
				t.Fatal(err)
			}
			check(t, m, all)
			if last.Blobs != tc.missing || last.FetchedBlobs != last.Blobs || last.FetchedBytes != last.Bytes {
				t.Errorf("%+v", last)
			}
			for d := range all {
				_, had := tc.has[d]
				if n := a.asked[d] + b.asked[d]; (n == 0) != had || n > 1 {
					t.Errorf("asked %d times for a blob, there before: %t", n, had)
				}
			}
		})
	}
}

func TestPullRefusesSizes(t *testing.T) {
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers()})
	for _, size := range []int64{-2, eboot.MaxFileSize + 1} {
		release, err := m.Pull(t.Context(), map[eboot.Digest]int64{{1}: size}, nil)
		release()
		if !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// TestPullBrokenPeer: one of two peers breaks off, hangs, or sends nonsense, in
// every way it can; the other one is whole.
func TestPullBrokenPeer(t *testing.T) {
	all := small(500).add(noise(3_000_000), noise(6_000_000))
	source := openStore(t, filestore.Options{}, all)
	replying := func(f func(w http.ResponseWriter, r *http.Request)) func(int, http.ResponseWriter, *http.Request) http.ResponseWriter {
		return func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter { f(w, r); return nil }
	}
	for name, reply := range map[string]func(n int, w http.ResponseWriter, r *http.Request) http.ResponseWriter{
		"refuses every connection": func(int, http.ResponseWriter, *http.Request) http.ResponseWriter { return nil },
		"dies in mid-stream": func(n int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
			if n > 2 {
				return nil
			}
			return cutAfter(w, 1_500_000)
		},
		"breaks every connection": func(_ int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
			return cutAfter(w, 700_001)
		},
		"hangs at once": func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			<-r.Context().Done()
			return nil
		},
		"hangs in mid-stream": func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			return hang(w, r, 300_000)
		},
		"sends a few bytes a second": func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
				for i := range b {
					if _, err := w.Write(b[i : i+1]); err != nil {
						return i, err
					}
					if err := http.NewResponseController(w).Flush(); err != nil {
						return i, err
					}
					select {
					case <-time.After(20 * time.Millisecond):
					case <-r.Context().Done():
						panic(http.ErrAbortHandler)
					}
				}
				return len(b), nil
			}}
		},
		"sends wrong bytes": func(_ int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter { return corrupt(w) },
		"sends too much": func(_ int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
			return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
				n, err := w.Write(b)
				if err == nil {
					_, err = w.Write(make([]byte, 100))
				}
				return n, err
			}}
		},
		"sends nothing": replying(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }),
		"answers 500":   replying(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("x", 10_000), 500) }),
		"redirects":     replying(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v1/elsewhere", http.StatusFound) }),
		"has all sizes wrong": replying(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			digests, _ := decodeRequest(body)
			for _, d := range digests {
				_, _ = w.Write(append(appendHeader(nil, d, 3), "abc"...))
			}
		}),
		"sends random bytes": replying(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(noise(50_000)) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, 20*time.Second)
			bad := &tap{Handler: Handler(source, nil), reply: reply}
			good := &tap{Handler: Handler(source, nil)}
			// The whole peer comes later, so that the other one is asked first.
			asked := 0
			b, g := serve(t, "bad", bad), serve(t, "good", good)
			m := New(Options{Store: openStore(t, filestore.Options{}), Stall: 1500 * time.Millisecond, Peers: func() []Peer {
				if asked++; asked == 1 {
					return []Peer{b}
				}
				return []Peer{b, g}
			}})
			pullAll(t, m, all, all.sizes())
			if bad.count() == 0 || good.count() == 0 {
				t.Errorf("%d requests to the bad one, %d to the good one", bad.count(), good.count())
			}
		})
	}
}

// TestPullOnlyHung: the same without a whole peer ends with a clear error, soon.
func TestPullOnlyHung(t *testing.T) {
	within(t, 15*time.Second)
	all := small(30).add(noise(2_000_000))
	hung := serve(t, "hung", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		<-r.Context().Done()
	}))
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(hung), Stall: 1000 * time.Millisecond})
	release, err := m.Pull(t.Context(), all.sizes(), nil)
	defer release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "31 of 31") || !strings.Contains(err.Error(), "nothing came for too long") {
		t.Fatal(err)
	}
}

// TestPullFrom: nobody else is asked, so nobody else can hold it up.
func TestPullFrom(t *testing.T) {
	all := small(30).add(noise(2_000_000))
	other := &tap{Handler: http.NotFoundHandler()}
	m := New(Options{
		Store: openStore(t, filestore.Options{}),
		Peers: peers(serve(t, "other", other), serve(t, "named", Handler(openStore(t, filestore.Options{}, all), nil))),
	})
	release, err := m.PullFrom(t.Context(), "absent", all.sizes(), nil)
	release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "no other server") {
		t.Error(err)
	}
	release, err = m.PullFrom(t.Context(), "named", all.sizes(), nil)
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	check(t, m, all)
	if n := other.count(); n != 0 {
		t.Errorf("another peer got %d requests", n)
	}
}

// TestPullMixed: a big blob whose pieces came from a peer that broke off and from
// one that is wrong does not make the first one guilty.
func TestPullMixed(t *testing.T) {
	big := corpus{}.add(noise(20_000_000))
	source := openStore(t, filestore.Options{}, big)
	begun, both, joined := make(chan struct{}), make(chan struct{}), make(chan struct{})
	first := &tap{Handler: Handler(source, nil), reply: func(n int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		if n == 1 {
			close(begun)
			<-both
		}
		select {
		case <-joined:
			return w
		default: // breaks off until the other one has had its turn
			return cutAfter(w, 1_500_000)
		}
	}}
	wrong := &tap{Handler: Handler(source, nil), reply: func(n int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		if n == 1 {
			close(joined)
		}
		return corrupt(w)
	}}
	a, b := serve(t, "first", first), serve(t, "wrong", wrong)
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: func() []Peer {
		select {
		case <-begun:
			return []Peer{a, b}
		default:
			return []Peer{a}
		}
	}})
	seen := false
	release, err := m.Pull(t.Context(), big.sizes(), func(p Progress) {
		if p.Peers == 2 && !seen {
			seen = true
			close(both)
		}
	})
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	check(t, m, big)
	// The digest of the two together did not fit, and then each was asked for all of it until one's did.
	if len(wrong.offsets) == 0 || wrong.offsets[0] == "0" || first.offsets[len(first.offsets)-1] != "0" {
		t.Errorf("first was asked from %v, wrong from %v", first.offsets, wrong.offsets)
	}
}

// TestPullResumes: the only peer breaks every connection; a big blob goes on
// where it was.
func TestPullResumes(t *testing.T) {
	big := corpus{}.add(noise(20_000_000))
	peer := &tap{Handler: Handler(openStore(t, filestore.Options{}, big), nil), reply: func(_ int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		return cutAfter(w, 3_000_000)
	}}
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(serve(t, "a", peer))})
	pullAll(t, m, big, big.sizes())
	var want []string
	for offset := 0; offset < 20_000_000; offset += 3_000_000 {
		want = append(want, fmt.Sprint(offset))
	}
	if !slices.Equal(peer.offsets, want) {
		t.Fatal(peer.offsets)
	}
}

// TestPullSlow: the slow peer is left for the fast one, and asked all the same for
// what only it has.
func TestPullSlow(t *testing.T) {
	within(t, 15*time.Second)
	both, only := corpus{}.add(noise(30_000_000), noise(20_000_000)), small(4)
	slow := &tap{Handler: Handler(openStore(t, filestore.Options{}, both, only), nil), reply: func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		return filter{w, func(w http.ResponseWriter, b []byte) (int, error) {
			for done := 0; done < len(b); {
				n, err := w.Write(b[done:min(len(b), done+10_000)])
				if done += n; err != nil {
					return done, err
				}
				select {
				case <-time.After(50 * time.Millisecond): // 200 KB/s
				case <-r.Context().Done():
					panic(http.ErrAbortHandler)
				}
			}
			return len(b), nil
		}}
	}}
	fast := serve(t, "fast", Handler(openStore(t, filestore.Options{}, both), nil))
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(serve(t, "slow", slow), fast), Stall: 400 * time.Millisecond})
	all := maps.Clone(both)
	maps.Copy(all, only)
	pullAll(t, m, all, all.sizes())
}

func TestPullNobodyHas(t *testing.T) {
	all, lost := small(50), corpus{}.add(noise(100), noise(2_000_000), noise(300))
	source := openStore(t, filestore.Options{}, all)
	a, b := serve(t, "server-a", Handler(source, nil)), serve(t, "server-b", Handler(source, nil))
	dead := Peer{ID: "server-c", URL: "http://127.0.0.1:1", Client: a.Client}
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(a, b, dead)})
	sizes := all.sizes()
	maps.Copy(sizes, lost.sizes())
	release, err := m.Pull(t.Context(), sizes, nil)
	defer release()
	if !errors.Is(err, eboot.ErrUnavailable) {
		t.Fatal(err)
	}
	for _, text := range []string{"3 of 53 are not to be had", "server-a sent", "server-b sent", "lacks 3", "server-c sent 0, lacks 0, was left"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in %q", text, err)
		}
	}
	check(t, m, all) // everything else came
	m = New(Options{Store: m.opts.Store, Peers: peers()})
	release, err = m.Pull(t.Context(), lost.sizes(), nil)
	release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "no other server") {
		t.Error(err)
	}
}

// TestPullDamagedSource: damage at a peer, of small and big blobs, is found there
// and the other peer is used.
func TestPullDamagedSource(t *testing.T) {
	all := corpus{}.add(noise(1000), noise(400_000), noise(3_000_000))
	dir := t.TempDir()
	damagedStore := openStore(t, filestore.Options{Dir: dir}, all)
	for d, b := range all {
		bad := bytes.Clone(b)
		bad[len(bad)/2] ^= 1
		name := d.String()
		if err := os.WriteFile(filepath.Join(dir, "blobs", name[:2], name), bad, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged := serve(t, "damaged", Handler(damagedStore, nil))
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(damaged)})
	release, err := m.Pull(t.Context(), all.sizes(), nil)
	defer release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "lacks 3") || len(damagedStore.Damaged()) != 3 {
		t.Fatalf("%v; %d found", err, len(damagedStore.Damaged()))
	}
	whole := serve(t, "whole", Handler(openStore(t, filestore.Options{}, all), nil))
	m = New(Options{Store: m.opts.Store, Peers: peers(damaged, whole)})
	pullAll(t, m, all, all.sizes())
	// And back: the damaged server repairs itself.
	m = New(Options{Store: damagedStore, Peers: peers(whole)})
	pullAll(t, m, all, all.sizes())
	if len(damagedStore.Damaged()) != 0 {
		t.Error(damagedStore.Damaged())
	}
}

func TestPullDiskFull(t *testing.T) {
	all := corpus{}.add(noise(3_000_000), noise(4_000_000), noise(500_000))
	peer := &tap{Handler: Handler(openStore(t, filestore.Options{}, all), nil)}
	dir := t.TempDir()
	free := openStore(t, filestore.Options{Dir: t.TempDir()}).Summary().FreeBytes
	m := New(Options{Store: openStore(t, filestore.Options{Dir: dir, MinFree: free + 64<<30}), Peers: peers(serve(t, "a", peer))})
	release, err := m.Pull(t.Context(), all.sizes(), nil)
	release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "room for") || peer.count() != 0 {
		t.Fatalf("known sizes: %v after %d requests", err, peer.count())
	}
	unknown := map[eboot.Digest]int64{}
	for d := range all {
		unknown[d] = -1
	}
	within(t, 5*time.Second)
	release, err = m.Pull(t.Context(), unknown, nil)
	release()
	if !errors.Is(err, eboot.ErrUnavailable) || !strings.Contains(err.Error(), "must stay free") {
		t.Fatalf("unknown sizes: %v", err)
	}
	unfinished(t, dir)
}

func TestPullCancelled(t *testing.T) {
	all := small(100).add(noise(5_000_000), noise(6_000_000))
	started := make(chan struct{}, 100)
	peer := &tap{Handler: Handler(openStore(t, filestore.Options{}, all), nil), reply: func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		started <- struct{}{}
		return hang(w, r, 400_000)
	}}
	dir := t.TempDir()
	m := New(Options{Store: openStore(t, filestore.Options{Dir: dir}), Peers: peers(serve(t, "a", peer))})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		<-started
		cancel()
	}()
	release, err := m.Pull(ctx, all.sizes(), nil)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	unfinished(t, dir) // before release
	release()
	release()
	check(t, m, nil)
}

// TestPullAfterRestart: what came before a restart is not fetched again.
func TestPullAfterRestart(t *testing.T) {
	all := small(700)
	source := openStore(t, filestore.Options{}, all)
	dies := &tap{Handler: Handler(source, nil), reply: func(n int, w http.ResponseWriter, _ *http.Request) http.ResponseWriter {
		if n > 2 {
			return nil
		}
		return w
	}}
	dir := t.TempDir()
	store := openStore(t, filestore.Options{Dir: dir})
	m := New(Options{Store: store, Peers: peers(serve(t, "a", dies))})
	release, err := m.Pull(t.Context(), all.sizes(), nil)
	release()
	if !errors.Is(err, eboot.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = openStore(t, filestore.Options{Dir: dir})
	had := store.Summary().Blobs
	rest := &tap{Handler: Handler(source, nil)}
	m = New(Options{Store: store, Peers: peers(serve(t, "a", rest))})
	pullAll(t, m, all, all.sizes())
	if had == 0 || had+len(rest.asked) != len(all) {
		t.Errorf("%d were there, %d of %d were asked for", had, len(rest.asked), len(all))
	}
}

// TestPullCommitsOnTheWay: a long Pull makes durable what it has.
func TestPullCommitsOnTheWay(t *testing.T) {
	first, second := small(10), corpus{}.add(noise(2_000_000))
	all := maps.Clone(first)
	maps.Copy(all, second)
	committed := make(chan struct{})
	peer := &tap{Handler: Handler(openStore(t, filestore.Options{}, all), nil), reply: func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method == http.MethodGet {
			<-committed
		}
		return w
	}}
	store := openStore(t, filestore.Options{})
	m := New(Options{Store: store, Peers: peers(serve(t, "a", peer)), Stall: time.Minute})
	release, err := m.Pull(t.Context(), all.sizes(), func(Progress) {
		for d := range first {
			if !store.Has(d) {
				return
			}
		}
		select {
		case <-committed:
		default:
			close(committed)
		}
	})
	defer release()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPullBesideCollect: nothing of a Pull is collected until it is released.
func TestPullBesideCollect(t *testing.T) {
	all := small(300).add(noise(3_000_000))
	half := maps.Clone(all)
	for d := range half {
		if d[0]%2 == 0 {
			delete(half, d)
		}
	}
	none := func(func(eboot.Digest) bool) {}
	store := openStore(t, filestore.Options{}, half)
	m := New(Options{Store: store, Peers: peers(serve(t, "a", Handler(openStore(t, filestore.Options{}, all), nil)))})
	ctx, stop := context.WithCancel(t.Context())
	var collector sync.WaitGroup
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := store.Collect(ctx, none); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for range 5 {
		release, err := m.Pull(t.Context(), all.sizes(), nil)
		if err != nil {
			t.Error(err)
		} else {
			check(t, m, all)
		}
		release()
	}
	stop()
	collector.Wait()
	release, err := m.Pull(t.Context(), all.sizes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.Collect(t.Context(), none); err != nil || got.Removed != 0 {
		t.Errorf("before release: %+v, %v", got, err)
	}
	release()
	if got, err := store.Collect(t.Context(), none); err != nil || got.Removed != len(all) {
		t.Errorf("after release: %+v, %v", got, err)
	}
}

// TestPullTogether: Pulls of overlapping sets fetch each blob once, also when
// the one that fetches is given up.
func TestPullTogether(t *testing.T) {
	all := small(900).add(noise(4_000_000), noise(5_000_000), noise(6_000_000))
	a := &tap{Handler: Handler(openStore(t, filestore.Options{}, all), nil)}
	m := New(Options{Store: openStore(t, filestore.Options{}), Peers: peers(serve(t, "a", a))})
	var pulls sync.WaitGroup
	for i := range 4 {
		part := all.sizes()
		for d := range part {
			if int(d[0])%4 == i {
				delete(part, d)
			}
		}
		pulls.Go(func() {
			release, err := m.Pull(t.Context(), part, nil)
			defer release()
			if err != nil {
				t.Error(err)
			}
			for d := range part {
				if !m.opts.Store.Has(d) {
					t.Error("missing")
				}
			}
		})
	}
	pulls.Wait()
	check(t, m, all)
	for _, n := range a.asked {
		if n != 1 {
			t.Fatalf("a blob was asked for %d times", n)
		}
	}

	fresh := corpus{}.add(noise(5_000_000), noise(100))
	begun := make(chan struct{})
	var first sync.Once
	b := &tap{Handler: Handler(openStore(t, filestore.Options{}, fresh), nil), reply: func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method == http.MethodGet {
			first.Do(func() {
				w = hang(w, r, 1_000_000)
				close(begun)
			})
		}
		return w
	}}
	m = New(Options{Store: m.opts.Store, Peers: peers(serve(t, "b", b)), Stall: time.Minute})
	ctx, giveUp := context.WithCancel(t.Context())
	pulls.Go(func() {
		release, err := m.Pull(ctx, fresh.sizes(), nil)
		release()
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-begun
	pulls.Go(func() { pullAll(t, m, fresh, fresh.sizes()) })
	giveUp()
	pulls.Wait()
}

// TestPullChaos: four Pulls at once from two peers that fail in random ways and
// one that is whole. Each must end, and well.
func TestPullChaos(t *testing.T) {
	within(t, 30*time.Second)
	all := small(800).add(noise(2_000_000), noise(3_000_000), noise(4_000_000), noise(9_000_000))
	source := openStore(t, filestore.Options{}, all)
	moody := func(_ int, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		switch rand.IntN(16) {
		case 0:
			return hang(w, r, 1+rand.IntN(1_000_000))
		case 1, 2:
			return corrupt(w)
		case 3, 4, 5, 6:
			return cutAfter(w, 1+rand.IntN(2_000_000))
		case 7:
			return nil
		}
		return w
	}
	m := New(Options{
		Store: openStore(t, filestore.Options{}),
		Stall: 1000 * time.Millisecond,
		Peers: peers(
			serve(t, "a", &tap{Handler: Handler(source, nil), reply: moody}),
			serve(t, "b", &tap{Handler: Handler(source, nil), reply: moody}),
			serve(t, "c", Handler(source, nil)),
		),
	})
	var pulls sync.WaitGroup
	for i := range 4 {
		part := all.sizes()
		for d := range part {
			if int(d[0])%4 == i {
				delete(part, d)
			}
		}
		pulls.Go(func() {
			release, err := m.Pull(t.Context(), part, nil)
			defer release()
			if err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	check(t, m, all)
}
