package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// answering is a server that gives its answers in order, the last one for ever.
type answering struct {
	name    string
	answers []string
	log     *requestLog
}

// requestLog is what the servers of a group were asked.
type requestLog struct {
	mu      sync.Mutex
	servers []string // names, in order of arrival
	ids     []string // request ids, each once
}

func (l *requestLog) heard() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.servers, "")
}

func (l *requestLog) requestIDs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ids)
}

func (a *answering) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice a client that went away
	a.log.mu.Lock()
	answer := a.answers[0]
	if len(a.answers) > 1 {
		a.answers = a.answers[1:]
	}
	a.log.servers = append(a.log.servers, a.name)
	if id := r.Header.Get(headerRequestID); !slices.Contains(a.log.ids, id) {
		a.log.ids = append(a.log.ids, id)
	}
	a.log.mu.Unlock()
	for _, row := range errorTable {
		if row.code == answer {
			body, status := describe(fmt.Errorf("%s says so: %w", a.name, row.sentinel))
			_ = writeJSON(w, status, body)
			return
		}
	}
	switch answer {
	case "ok":
		_ = writeJSON(w, http.StatusOK, WriteResult{Generation: 7, Changed: true})
	case "ponders": // as a server does that waits for an election
		select {
		case <-time.After(1600 * time.Millisecond):
		case <-r.Context().Done():
		}
		body, status := describe(eboot.ErrNoLeader)
		_ = writeJSON(w, status, body)
	case "hangs":
		<-r.Context().Done()
	case "breaks": // the request was read, and no answer comes
		panic(http.ErrAbortHandler)
	case "cut": // in the middle of the answer
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"generation":`))
	default:
		panic("no such answer: " + answer)
	}
}

// group starts a server for each of plans; one that "refuses" does not listen.
func group(t *testing.T, plans [][]string) (addresses []string, log *requestLog) {
	t.Helper()
	log = &requestLog{}
	for i, answers := range plans {
		if answers[0] == "refuses" {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addresses = append(addresses, "http://"+ln.Addr().String())
			ln.Close()
			continue
		}
		server := httptest.NewServer(&answering{name: string(rune('A' + i)), answers: slices.Clone(answers), log: log})
		t.Cleanup(server.Close)
		addresses = append(addresses, server.URL)
	}
	return addresses, log
}

func TestClientMovesOn(t *testing.T) {
	ok, refuses := []string{"ok"}, []string{"refuses"}
	for _, tc := range []struct {
		name    string
		servers [][]string
		read    bool
		timeout time.Duration // 0: 20 s
		want    error         // nil: success
		heard   string        // which servers got a request, in order; a trailing * means at least that, again and again
		says    string        // in the text of the error
	}{
		{name: "the first answers", servers: [][]string{ok, ok}, heard: "A"},
		{name: "refused", servers: [][]string{refuses, ok}, heard: "B"},
		{name: "no leader there", servers: [][]string{{"no_leader"}, ok}, heard: "AB"},
		{name: "unavailable there", servers: [][]string{{"unavailable"}, ok}, heard: "AB"},
		{name: "its leader does not answer", servers: [][]string{{"unreachable"}, ok}, heard: "AB"},
		{name: "timed out there", servers: [][]string{{"timeout"}, ok}, heard: "AB"},
		{name: "unknown there", servers: [][]string{{"unknown_outcome"}, ok}, heard: "AB"},
		{name: "broken off", servers: [][]string{{"breaks"}, ok}, heard: "AB"},
		{name: "broken off in the answer", servers: [][]string{{"cut"}, ok}, heard: "AB"},
		{name: "a question broken off in the answer", read: true, servers: [][]string{{"cut"}, ok}, heard: "AB"},
		{name: "hangs", servers: [][]string{{"hangs"}, ok}, timeout: 2 * time.Second, heard: "AB"},
		{name: "a question hangs", read: true, servers: [][]string{{"hangs"}, ok}, timeout: 2 * time.Second, heard: "AB"},

		// What every server would say.
		{name: "invalid", servers: [][]string{{"invalid"}, ok}, want: eboot.ErrInvalid, heard: "A", says: "A says so: invalid"},
		{name: "not found", servers: [][]string{{"not_found"}, ok}, want: eboot.ErrNotFound, heard: "A"},
		{name: "conflict", servers: [][]string{{"no_leader"}, {"conflict"}, ok}, want: eboot.ErrConflict, heard: "AB", says: "B says so: conflict"},
		{name: "denied", servers: [][]string{{"denied"}, ok}, want: eboot.ErrDenied, heard: "A"},
		{name: "too large", servers: [][]string{{"too_large"}, ok}, want: eboot.ErrTooLarge, heard: "A"},
		{name: "damaged", servers: [][]string{{"damaged"}, ok}, want: eboot.ErrDamaged, heard: "A"},

		// Asked again.
		{name: "an election", servers: [][]string{{"no_leader", "no_leader", "ok"}}, heard: "AAA"},
		{name: "an election in a group", servers: [][]string{{"no_leader"}, {"no_leader", "ok"}}, heard: "ABAB"},
		{name: "the leader was lost in mid-write", servers: [][]string{{"breaks", "no_leader"}, {"no_leader", "ok"}}, heard: "ABAB"},
		{name: "a server that waited for an election itself", servers: [][]string{{"ponders"}}, want: eboot.ErrNoLeader, heard: "A"},
		{name: "a lone server that is not there", servers: [][]string{refuses}, want: eboot.ErrUnreachable, says: "is the server running"},
		{name: "unavailable does not pass", servers: [][]string{{"unavailable"}, {"unavailable"}}, want: eboot.ErrUnavailable, heard: "AB"},
		{name: "unknown is not asked of the same server again", servers: [][]string{{"unknown_outcome", "ok"}}, want: eboot.ErrUnknownOutcome, heard: "A"},

		// What tells most.
		{name: "none there", servers: [][]string{refuses, refuses}, timeout: 300 * time.Millisecond, want: eboot.ErrUnreachable, says: "none of the 2 servers answers"},
		{name: "no leader beats unreached", servers: [][]string{refuses, {"no_leader"}, refuses}, timeout: 300 * time.Millisecond, want: eboot.ErrNoLeader, heard: "B*", says: "B says so"},
		{name: "no leader beats unavailable", servers: [][]string{{"no_leader"}, {"unavailable"}}, timeout: 300 * time.Millisecond, want: eboot.ErrNoLeader, heard: "AB*", says: "A says so"},
		{name: "unavailable beats unreached", servers: [][]string{{"unavailable"}, refuses}, timeout: 300 * time.Millisecond, want: eboot.ErrUnavailable, heard: "A*", says: "A says so"},
		{name: "unknown beats no leader", servers: [][]string{{"breaks", "no_leader"}, {"no_leader"}}, timeout: 300 * time.Millisecond, want: eboot.ErrUnknownOutcome, heard: "AB*", says: "the request was sent and no answer came: EOF: outcome unknown (and: server"},
		{name: "unknown beats unreached", servers: [][]string{{"unknown_outcome"}, refuses}, timeout: 300 * time.Millisecond, want: eboot.ErrUnknownOutcome, heard: "A*"},
		{name: "unknown beats a refusal", servers: [][]string{{"breaks"}, {"not_found"}}, want: eboot.ErrUnknownOutcome, heard: "AB", says: "(another server said afterwards: B says so: not found)"},
		{name: "no leader beats a server that hangs", servers: [][]string{{"no_leader"}, {"hangs"}}, read: true, timeout: time.Second, want: eboot.ErrNoLeader, heard: "AB*"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			addresses, log := group(t, tc.servers)
			timeout := tc.timeout
			if timeout == 0 {
				timeout = 20 * time.Second
			}
			c, err := NewClient(ClientOptions{Addresses: addresses, Timeout: timeout})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			began := time.Now()
			var got WriteResult
			if tc.read {
				err = c.do(context.Background(), call{method: "GET", path: "/v1/thing"}, &got)
			} else {
				got, err = c.Deny(context.Background())
			}
			if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.says)
			}
			if err == nil && got.Generation != 7 {
				t.Errorf("got %+v", got)
			}
			if took := time.Since(began); took > retryPatience+2*time.Second {
				t.Errorf("it took %s", took)
			}
			all := log.heard()
			if want, again := strings.CutSuffix(tc.heard, "*"); all != want && !(again && strings.HasPrefix(all, want)) {
				t.Errorf("asked %q, want %q", all, tc.heard)
			}
			if ids := log.requestIDs(); len(ids) != min(len(all), 1) || !tc.read && slices.Contains(ids, "") {
				t.Errorf("%d request ids %v for one call", len(ids), ids)
			}
		})
	}
}

// A change without a request id must not be done twice, and one that is about the
// server asked must not be done to another.
func TestClientKeepsToOneServer(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name    string
		servers [][]string
		change  func(*Client) error
		want    error
		heard   string
	}{
		{"init goes to the first", [][]string{{"no_leader"}, {"ok"}}, func(c *Client) error { _, err := c.InitCluster(ctx); return err }, eboot.ErrNoLeader, "A"},
		{"init is sent once", [][]string{{"breaks", "ok"}, {"ok"}}, func(c *Client) error { _, err := c.InitCluster(ctx); return err }, eboot.ErrUnknownOutcome, "A"},
		{"init where nobody is", [][]string{{"refuses"}, {"ok"}}, func(c *Client) error { _, err := c.InitCluster(ctx); return err }, eboot.ErrUnreachable, ""},
		{"the server asked is drained", [][]string{{"refuses"}, {"ok"}}, func(c *Client) error { _, err := c.DrainServer(ctx, Self, true); return err }, eboot.ErrUnreachable, ""},
		{"a server named is drained through any", [][]string{{"refuses"}, {"ok"}}, func(c *Client) error { _, err := c.DrainServer(ctx, "b2", true); return err }, nil, "B"},
		{"transfer moves on before it was done", [][]string{{"no_leader"}, {"ok"}}, func(c *Client) error { _, err := c.TransferLeadership(ctx, ""); return err }, nil, "AB"},
		{"transfer is sent once", [][]string{{"breaks"}, {"ok"}}, func(c *Client) error { _, err := c.TransferLeadership(ctx, ""); return err }, eboot.ErrUnknownOutcome, "A"},
		{"remove moves on", [][]string{{"breaks"}, {"ok"}}, func(c *Client) error { _, err := c.RemoveServer(ctx, "b2", true); return err }, nil, "AB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			addresses, log := group(t, tc.servers)
			c, err := NewClient(ClientOptions{Addresses: addresses, Timeout: 400 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := tc.change(c); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			all := log.heard()
			if tc.want == eboot.ErrNoLeader { // it passes: asked again, and never the other
				all = string(slices.Compact([]byte(all)))
			}
			if all != tc.heard {
				t.Errorf("asked %q, want %q", all, tc.heard)
			}
		})
	}
}

// Calls after the first go where that one ended, so that they see what it did.
func TestClientStaysWhereItWasAnswered(t *testing.T) {
	addresses, log := group(t, [][]string{{"unavailable", "ok"}, {"ok", "ok", "no_leader"}})
	c, err := NewClient(ClientOptions{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.Deny(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if all := log.heard(); all != "ABBBA" {
		t.Errorf("asked %q", all)
	}
}

func TestClientStreamsMoveOn(t *testing.T) {
	dead, _ := group(t, [][]string{{"refuses"}, {"unavailable"}})
	boots := NewServer(ServerOptions{Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }, Backend: &fewAnswers{}})
	server := httptest.NewServer(boots.handler(DoorInsecure))
	defer server.Close()
	c, err := NewClient(ClientOptions{Addresses: append(dead, server.URL)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	enough := errors.New("enough")
	if err := c.FollowBoots(context.Background(), func(eboot.Boot) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("follow: %v", err)
	}
	var out bytes.Buffer
	if info, err := c.SaveSnapshot(context.Background(), &out); err != nil || info.Generation != 5 || out.String() != "state" {
		t.Errorf("snapshot: %+v, %q, %v", info, out.String(), err)
	}
}
