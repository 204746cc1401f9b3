package mirror

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"eboot/filestore"
)

// inMemory is a way to a Handler without a network, so that time can be a bubble's.
type inMemory func(w http.ResponseWriter, r *http.Request) io.Reader

func (f inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	body := f(w, r)
	if body == nil {
		return nil, errors.New("connection refused")
	}
	res := w.Result()
	res.Body = io.NopCloser(body)
	return res, nil
}

// deadlines lets a recorder pass for a connection.
type deadlines struct{ http.ResponseWriter }

func (deadlines) SetReadDeadline(time.Time) error  { return nil }
func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// every yields step bytes at each interval.
func every(interval time.Duration, step int, r *http.Request, b []byte) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if len(b) == 0 {
			return 0, io.EOF
		}
		select {
		case <-time.After(interval):
		case <-r.Context().Done():
			return 0, r.Context().Err()
		}
		n := copy(p, b[:min(len(b), step)])
		b = b[n:]
		return n, nil
	})
}

// answer serves r by h, at once.
func answer(h http.Handler, w http.ResponseWriter, r *http.Request) []byte {
	rec := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	h.ServeHTTP(deadlines{rec}, r)
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	return rec.Body.Bytes()
}

func inBubble(id string, f inMemory) Peer {
	return Peer{ID: id, Client: &http.Client{Transport: f}, URL: "http://" + id}
}

// TestPullTimes: with the real limits, in a time of its own: a peer that is there and
// silent costs Options.Stall, and one that was down is asked again after ten seconds.
func TestPullTimes(t *testing.T) {
	both, late := corpus{}.add(noise(900_000)), corpus{}.add(noise(2_000_000), noise(2_000_000))
	all := maps.Clone(both)
	maps.Copy(all, late)
	source := Handler(openStore(t, filestore.Options{}, all), nil)
	steadyStore := Handler(openStore(t, filestore.Options{}, both), nil)
	for _, tc := range []struct {
		name     string
		down     func(r *http.Request) io.Reader // the reply of a peer in its first 8 s
		from, to time.Duration
	}{
		{"down", func(*http.Request) io.Reader { return nil }, leftFor, leftFor + 2*time.Second},
		{"hung", func(r *http.Request) io.Reader { <-r.Context().Done(); return nil }, DefaultStall + leftFor, DefaultStall + leftFor + 2*time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := openStore(t, filestore.Options{})
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				returning := inBubble("returning", func(w http.ResponseWriter, r *http.Request) io.Reader {
					if time.Since(began) < 8*time.Second {
						return tc.down(r)
					}
					return bytes.NewReader(answer(source, w, r))
				})
				// Holds the Pull for 45 s: 900,000 bytes at 20,000 bytes/s.
				steady := inBubble("steady", func(w http.ResponseWriter, r *http.Request) io.Reader {
					return every(time.Second, 20_000, r, answer(steadyStore, w, r))
				})
				var came time.Duration
				m := New(Options{Store: store, Peers: peers(returning, steady)})
				release, err := m.Pull(t.Context(), all.sizes(), func(p Progress) {
					if p.FetchedBlobs > 0 && came == 0 {
						came = time.Since(began)
					}
				})
				release()
				if err != nil || came < tc.from || came > tc.to {
					t.Errorf("%v after %v, want %v to %v", err, came, tc.from, tc.to)
				}
			})
		})
	}
}
