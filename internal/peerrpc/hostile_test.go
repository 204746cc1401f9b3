package peerrpc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
)

// empties is a list of n empty values.
func empties(n int) string {
	return "[" + strings.TrimSuffix(strings.Repeat("{},", n), ",") + "]"
}

// A list of empty values is short as text and long in memory: it ends at a number, not at
// a size.
func TestListsAreBounded(t *testing.T) {
	t.Parallel()
	files := func(n int) string { return `[{"files":` + empties(n) + `}]` }
	lists := map[string]func(string) (int, error){
		"pins": func(text string) (int, error) {
			pins, err := readList[eboot.Pin](strings.NewReader(text), "pins", maxPins)
			return len(pins), err
		},
		"plans": func(text string) (int, error) {
			plans, err := readPlans(strings.NewReader(text))
			return len(plans), err
		},
	}
	for _, tc := range []struct {
		what, text string
		n          int
		err        error
	}{
		{"pins", empties(maxPins), maxPins, nil}, {"pins", empties(maxPins + 1), 0, eboot.ErrTooLarge},
		{"plans", empties(maxPlans), maxPlans, nil}, {"plans", empties(maxPlans + 1), 0, eboot.ErrTooLarge},
		{"plans", files(maxPlanFiles), 1, nil}, {"plans", files(maxPlanFiles + 1), 0, eboot.ErrTooLarge},
		{"plans", `[{"files":1}]`, 0, eboot.ErrInvalid}, {"plans", `[{"files":null}]`, 0, eboot.ErrInvalid},
		{"plans", `[{"files":[{"path":1}]}]`, 0, eboot.ErrInvalid}, {"plans", `[{"manifest":"x"}]`, 0, eboot.ErrInvalid},
	} {
		if n, err := lists[tc.what](tc.text); n != tc.n || !errors.Is(err, tc.err) {
			t.Errorf("%s %.40s: %d, %v; want %d, %v", tc.what, tc.text, n, err, tc.n, tc.err)
		}
	}
	for what, read := range lists {
		for _, wrong := range []string{"", "{}", "[", "[1]", "[{},"} {
			if _, err := read(wrong); !errors.Is(err, eboot.ErrInvalid) {
				t.Errorf("%s %q: %v", what, wrong, err)
			}
		}
	}
}

// What a stranger posts is refused, however long it is, and nothing of it is merged.
func TestPostedJunk(t *testing.T) {
	t.Parallel()
	a := &answers{}
	c := connected(t, a)
	for _, path := range []string{"/v1/pins", "/v1/plans", "/v1/boots", "/v1/events"} {
		for name, body := range map[string]any{
			"no list": 1, "no values": []int{1},
			"too long":  []any{map[string]any{"files": []any{map[string]any{"path": strings.Repeat("x", maxListJSON)}}}},
			"one of it": []any{map[string]any{}, 1},
		} {
			if err := c.ask(t.Context(), "b", "POST", path, body, nil); !errors.Is(err, eboot.ErrInvalid) {
				t.Errorf("%s to %s: %v", name, path, err)
			}
		}
	}
	if err := c.SendPlans(t.Context(), "b", []eboot.LearnedPlan{{Files: make([]eboot.PlanFile, maxPlanFiles+1)}}); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("too many files: %v", err)
	}
	if len(a.pins)+len(a.plans)+len(a.boots)+len(a.events) > 0 {
		t.Errorf("merged %d pins, %d plans, %d boots and %d events", len(a.pins), len(a.plans), len(a.boots), len(a.events))
	}
}

// A server of a version that does not know of plans says that, not that it failed.
func TestUnknownCall(t *testing.T) {
	t.Parallel()
	c := connected(t, &answers{})
	if err := c.ask(t.Context(), "b", "POST", "/v1/of-tomorrow", nil, nil); !errors.Is(err, eboot.ErrNotFound) {
		t.Error(err)
	}
}

// A plan is read within its bounds, or refused; what was read is the same when it is sent again.
func FuzzPlans(f *testing.F) {
	for _, seed := range []string{
		`[{"manifest":"` + eboot.DigestOf(nil).String() + `","script":"s.boot","embedded":true,"files":[{"path":"a","size":1}]}]`,
		`[{"files":[],"files":[{}]}]`, `[{"FILES":[{"size":-1}]},{}]`, `[null]`, `[]x`, `[{"files":[{"path":"\ud800"}]}]`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		plans, err := readPlans(strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
				t.Fatalf("error %v wraps no sentinel", err)
			}
			return
		}
		for i := range plans {
			if len(plans[i].Files) == 0 {
				plans[i].Files = []eboot.PlanFile{} // a Fleet has none without
			}
		}
		sent, err := json.Marshal(plans)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readPlans(bytes.NewReader(sent))
		if err != nil || len(plans) > maxPlans || !slices.EqualFunc(plans, again, func(a, b eboot.LearnedPlan) bool {
			return a.PlanKey == b.PlanKey && len(a.Files) <= maxPlanFiles && slices.Equal(a.Files, b.Files)
		}) {
			t.Fatalf("%+v and again %+v, %v", plans, again, err)
		}
	})
}

// Requests beyond the limit are refused, not queued.
func TestRequestsAreBounded(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, maxRequests+1), make(chan struct{})
	c := connected(t, &answers{apply: func([]byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return []byte("done"), nil
	}})
	ended := make(chan error, maxRequests)
	for range maxRequests {
		go func() {
			_, err := c.Apply(context.Background(), "b", []byte("entry"))
			ended <- err
		}()
	}
	for range maxRequests {
		<-entered
	}
	another := connectedTo(t, c)
	if _, err := another.Apply(t.Context(), "b", []byte("entry")); !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("one more: %v", err)
	}
	close(release)
	for range maxRequests {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// connectedTo returns a client with connections of its own to the server of another.
func connectedTo(t *testing.T, c *Client) *Client {
	t.Helper()
	transport := c.http.Transport.(*http.Transport).Clone()
	other := &Client{http: &http.Client{Transport: transport}}
	t.Cleanup(other.Close)
	return other
}

// A leader that dies while it works on a second entry over the same connection has
// perhaps made it, whatever a repeat of the request meets.
func TestReusedConnectionBreaks(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for first := true; ; first = false {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				return
			}
			if !first {
				ln.Close()
				return
			}
			if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")); err != nil {
				return
			}
		}
	}()
	c := NewClient(func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	})
	defer c.Close()
	if _, err := c.Apply(t.Context(), "b", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "b", []byte("two")); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("the entry arrived: %v", err)
	}
	<-done
}

// Nothing was sent while the connection did not come about.
func TestDialHangs(t *testing.T) {
	t.Parallel()
	c := NewClient(func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Apply(ctx, "b", []byte("one")); !errors.Is(err, eboot.ErrUnreachable) || errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("never sent: %v", err)
	}
}
