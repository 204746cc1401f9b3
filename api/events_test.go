package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"eboot"
)

func (b *fewAnswers) Slaves() []eboot.SlaveStatus {
	return []eboot.SlaveStatus{{Slave: netip.MustParseAddr("10.0.0.1"), ERTS: "15.0", Boot: &eboot.Boot{Phase: eboot.BootFailed}, Failures: 1},
		{Prefix: netip.MustParsePrefix("10.0.0.2/32"), Channel: "stable"}}
}

func (b *fewAnswers) Boots(netip.Addr) []eboot.Boot { return nil }
func (b *fewAnswers) Events() []eboot.Event         { return b.past }

func (b *fewAnswers) FollowEvents(ctx context.Context) <-chan eboot.Event {
	events := make(chan eboot.Event)
	if b.followed != nil {
		b.followed <- struct{}{}
	}
	go func() {
		defer close(events)
		for {
			select {
			case e := <-b.coming:
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

func event(id string) eboot.Event {
	return eboot.Event{ID: id, Kind: eboot.EventBootFailed, Text: "text\nof " + id, Slave: netip.MustParseAddr("10.0.0.1")}
}

// run serves b until stop.
func run(t *testing.T, b *fewAnswers, beat time.Duration) (base string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerOptions{Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }, Backend: b})
	s.heartbeat = beat
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln, DoorInsecure) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the server waits for a stream")
		}
	}
	t.Cleanup(stop)
	return "http://" + ln.Addr().String(), stop
}

// follower reads a stream line by line.
type follower struct {
	t     *testing.T
	lines *bufio.Reader
}

func followPath(t *testing.T, base, path string, header http.Header, contentType string) follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, "GET", base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	if got := response.Header.Get("Content-Type"); got != contentType {
		t.Fatalf("content type %q, want %q", got, contentType)
	}
	return follower{t, bufio.NewReader(response.Body)}
}

// wants reads lines and compares them.
func (f follower) wants(lines ...string) {
	f.t.Helper()
	for _, want := range lines {
		line, err := f.lines.ReadString('\n')
		if got := strings.TrimSuffix(line, "\n"); err != nil || got != want {
			f.t.Fatalf("line %q, %v; want %q", got, err, want)
		}
	}
}

func (f follower) wantsEnd() {
	f.t.Helper()
	if line, err := f.lines.ReadString('\n'); err == nil || line != "" {
		f.t.Fatalf("%q, %v behind the end", line, err)
	}
}

func sse(e eboot.Event) []string {
	data, _ := json.Marshal(e)
	return []string{"id: " + e.ID, "event: " + string(e.Kind), "data: " + string(data), ""}
}

func TestServerSentEvents(t *testing.T) {
	b := &fewAnswers{past: []eboot.Event{event("r1"), event("r2"), event("b-3")}, coming: make(chan eboot.Event)}
	base, stop := run(t, b, time.Hour)

	fresh := followPath(t, base, "/v1/events/follow", http.Header{}, typeSSE)
	b.coming <- event("r4") // nothing of the past comes before it
	fresh.wants(sse(event("r4"))...)

	// Each event takes the one follower that is there, so the others are of servers of their own.
	for _, tc := range []struct {
		last string
		want []string
	}{{"r1", []string{"r2", "b-3"}}, {"b-3", nil}, {"forgotten", []string{"r1", "r2", "b-3"}}} {
		b := &fewAnswers{past: b.past, coming: make(chan eboot.Event)}
		base, stop := run(t, b, time.Hour)
		f := followPath(t, base, "/v1/events/follow", http.Header{headerLastEventID: {tc.last}}, typeSSE)
		for _, id := range tc.want {
			f.wants(sse(event(id))...)
		}
		if len(tc.want) > 0 {
			b.coming <- event("b-3") // was in the past already
		}
		b.coming <- event("r4")
		f.wants(sse(event("r4"))...)
		stop()
		f.wantsEnd()
	}
	stop()
	fresh.wantsEnd()
}

func TestServerSentHeartbeat(t *testing.T) {
	b := &fewAnswers{coming: make(chan eboot.Event)}
	base, stop := run(t, b, time.Millisecond)
	f := followPath(t, base, "/v1/events/follow", http.Header{}, typeSSE)
	f.wants(": still here", "", ": still here", "")
	stop()

	b = &fewAnswers{coming: make(chan eboot.Event)}
	base, _ = run(t, b, time.Millisecond)
	lines := followPath(t, base, "/v1/events/follow", http.Header{headerAccept: {"application/x-ndjson, */*;q=0.1"}}, typeNDJSON)
	b.coming <- event("r1")
	data, _ := json.Marshal(event("r1"))
	lines.wants(string(data)) // and no comment before it
}

func TestFollowBootsBothWays(t *testing.T) {
	base, stop := run(t, &fewAnswers{}, time.Hour)
	data, _ := json.Marshal(eboot.Boot{})
	lines := followPath(t, base, "/v1/boots/follow", http.Header{}, typeLines)
	lines.wants(string(data))
	events := followPath(t, base, "/v1/boots/follow", http.Header{headerAccept: {typeSSE}}, typeSSE)
	events.wants("event: boot", "data: "+string(data), "")
	stop()
	lines.wantsEnd()
	events.wantsEnd()
}

// A server that ends its stream is asked again for what came since; nothing is told twice.
func TestClientFollowsAcrossServers(t *testing.T) {
	first := &fewAnswers{past: []eboot.Event{event("r1")}, coming: make(chan eboot.Event), followed: make(chan struct{}, 1)}
	second := &fewAnswers{past: []eboot.Event{event("r0"), event("r1"), event("r2"), event("r3")}, coming: make(chan eboot.Event)}
	third := &fewAnswers{past: []eboot.Event{event("r2"), event("r3"), event("r5")}, coming: make(chan eboot.Event)} // forgot r4
	baseFirst, stopFirst := run(t, first, time.Hour)
	baseSecond, stopSecond := run(t, second, time.Hour)
	baseThird, stopThird := run(t, third, time.Hour)
	c, err := NewClient(ClientOptions{Addresses: []string{baseFirst, baseSecond, baseThird}, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heard, ended := make(chan string, 16), make(chan error, 1)
	go func() {
		ended <- c.FollowEvents(context.Background(), func(e eboot.Event) error {
			heard <- e.ID
			return nil
		})
	}()
	wants := func(ids ...string) {
		t.Helper()
		for _, want := range ids {
			select {
			case got := <-heard:
				if got != want {
					t.Fatalf("heard %s, want %s", got, want)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("did not hear %s", want)
			}
		}
	}
	// The first one is asked, and goes away before it had anything to say: the stream is
	// known to have begun after r1.
	select {
	case <-first.followed:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody follows")
	}
	stopFirst()
	wants("r2", "r3")
	second.coming <- event("r4")
	wants("r4")
	stopSecond()
	wants("r5")
	stopThird()
	select {
	case err := <-ended:
		if !errors.Is(err, eboot.ErrUnreachable) {
			t.Errorf("no server is left: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("goes on without servers")
	}
	if len(heard) > 0 {
		t.Errorf("heard %s too", <-heard)
	}
}

func TestClientStopsFollowing(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	enough := errors.New("enough")
	for _, tc := range []struct {
		each func(eboot.Event) error
		want error
	}{
		{func(eboot.Event) error { return enough }, enough},
		{func(eboot.Event) error { cancel(); return nil }, nil},
	} {
		b := &fewAnswers{coming: make(chan eboot.Event)}
		base, _ := run(t, b, time.Hour)
		c, err := NewClient(ClientOptions{Addresses: []string{base}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		go func() { b.coming <- event("r2") }()
		if err := c.FollowEvents(ctx, tc.each); !errors.Is(err, tc.want) {
			t.Errorf("%v, want %v", err, tc.want)
		}
	}
}

func TestRecentIDs(t *testing.T) {
	var r recentIDs
	for i := range 3 * recentIDsEach {
		if !r.add(fmt.Sprint(i)) {
			t.Fatalf("%d is new", i)
		}
		if back := max(0, i-recentIDsEach); r.add(fmt.Sprint(back)) {
			t.Fatalf("at %d: %d is not new", i, back)
		}
	}
	if n := len(r.newer) + len(r.older); n > 2*recentIDsEach {
		t.Errorf("remembers %d", n)
	}
}

func TestFleetOverTheWire(t *testing.T) {
	ctx := context.Background()
	b := &fewAnswers{past: []eboot.Event{event("r1")}}
	c := serve(t, b, ClientOptions{Stale: true})
	compare := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if slaves, err := c.Slaves(ctx); err != nil || !cmp.Equal(slaves, b.Slaves(), compare) {
		t.Errorf("slaves: %v\n%s", err, cmp.Diff(slaves, b.Slaves(), compare))
	}
	if boots, err := c.Boots(ctx, netip.Addr{}); err != nil || boots == nil {
		t.Errorf("boots: %#v, %v", boots, err)
	}
	if events, err := c.Events(ctx); err != nil || !cmp.Equal(events, b.past, compare) {
		t.Errorf("events: %+v, %v", events, err)
	}
}

// A list that arrives in part is no list.
func TestListCutOff(t *testing.T) {
	const row = `{"slave":"10.0.0.1","boots":1,"failures":0}`
	for body, want := range map[string]int{"[]": 0, "[" + row + "]": 1, "[" + row + "\n," + row + "\n]\n": 2,
		"": -1, "{}": -1, "[": -1, "[" + row: -1, "[" + row + ",": -1, `[{"slave":1}]`: -1} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }))
		c, err := NewClient(ClientOptions{Addresses: []string{server.URL}})
		if err != nil {
			t.Fatal(err)
		}
		slaves, err := c.Slaves(context.Background())
		if want < 0 != (err != nil) || err == nil && len(slaves) != want {
			t.Errorf("%q: %d rows, %v", body, len(slaves), err)
		}
		c.Close()
		server.Close()
	}
}
