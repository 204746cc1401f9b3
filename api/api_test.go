package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/testutil"
)

// Every sentinel must come out of a client as what went into the server.
func TestErrorsCrossTheWire(t *testing.T) {
	for _, row := range errorTable {
		body, status := describe(fmt.Errorf("thing x: %w", row.sentinel))
		err := restore(body.Error, status)
		if !errors.Is(err, row.sentinel) {
			t.Errorf("%s: came back as %v", row.code, err)
		}
		if !strings.HasPrefix(err.Error(), "thing x: ") {
			t.Errorf("%s: text %q", row.code, err)
		}
	}
	body, status := describe(io.ErrUnexpectedEOF)
	if status != http.StatusInternalServerError || body.Error.Code != codeInternal {
		t.Errorf("unknown error: %d %s", status, body.Error.Code)
	}
}

func TestBlobStream(t *testing.T) {
	var stream bytes.Buffer
	blobs := []string{"", "one", strings.Repeat("x", 100_000)}
	u := newUpload(func(body io.ReadCloser) error {
		_, err := io.Copy(&stream, body)
		return err
	})
	for _, b := range blobs {
		if err := u.put(eboot.DigestOf([]byte(b)), int64(len(b)), strings.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.end(); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	var got []string
	err := readBlobs(bytes.NewReader(whole), func(d eboot.Digest, size int64, content io.Reader) error {
		data, err := io.ReadAll(content)
		if eboot.DigestOf(data) != d || int64(len(data)) != size {
			t.Errorf("blob %s came through as %d bytes", d.Short(), len(data))
		}
		got = append(got, string(data))
		return err
	})
	if err != nil || len(got) != len(blobs) {
		t.Fatalf("%d blobs, %v", len(got), err)
	}
	for _, cut := range []int{1, 39, 41, len(whole) - 1} {
		err := readBlobs(bytes.NewReader(whole[:cut]), func(_ eboot.Digest, _ int64, content io.Reader) error { return nil })
		if !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func FuzzBlobStream(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 39), 1, 'x'))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		err := readBlobs(bytes.NewReader(data), func(_ eboot.Digest, size int64, content io.Reader) error {
			n, err := io.Copy(io.Discard, content)
			total += blobHeaderSize + int(n)
			return err
		})
		if err == nil && total != len(data) {
			t.Errorf("%d of %d bytes were read without an error", total, len(data))
		}
	})
}

// bodies are what operators' requests carry, each as the client sends it.
func bodies() []any {
	return []any{
		&AllowRequest{Entries: []eboot.WhitelistEntry{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Channel: "stable", Labels: map[string]string{"rack": "r1"}}}},
		&DenyRequest{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32")}},
		&ChannelSet{Bundle: eboot.Ref{Name: "otp", Version: "25"}, ERTS: "13.1.5"},
		&ProtectedSet{Protected: true},
		&PublishCommit{Channel: "stable", MinCopies: 2, Signatures: map[string][]eboot.Signature{"13.1.5": {{Signature: make([]byte, 64), Sealed: make([]byte, 64), Comment: "x"}}}},
		&BundleSignatures{ERTS: "13.1.5", Signatures: []eboot.Signature{{Signature: make([]byte, 64), Sealed: make([]byte, 64)}}},
		&DrainedSet{Drained: true},
		&LeaderTransfer{To: "b"},
		&RolloutStart{Bundle: eboot.Ref{Name: "otp", Version: "25"}, RolloutSpec: eboot.RolloutSpec{Stages: []eboot.Stage{{Name: "10%", Percent: 10}}}},
	}
}

// A body of any text is read as each of the requests or is the caller's fault, takes memory in
// proportion, and means the same when it is sent again.
func FuzzAdminJSON(f *testing.F) {
	for _, body := range bodies() {
		text, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`{"entries":[]} {}`)
	f.Add(`{"entries":[` + strings.TrimSuffix(strings.Repeat("{},", 1000), ",") + `]}`)
	f.Fuzz(func(t *testing.T, text string) {
		read := func(text string, body any) error {
			return readJSON(&http.Request{Body: io.NopCloser(strings.NewReader(text))}, body) // httptest parses one
		}
		for _, example := range bodies() {
			body := reflect.New(reflect.TypeOf(example).Elem()).Interface()
			var err error
			if set := testutil.Allocated(func() { err = read(text, body) }); set > uint64(1<<20+300*len(text)) {
				t.Errorf("%d bytes set aside for %d", set, len(text))
			}
			if err != nil {
				if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
					t.Errorf("%q: %v is no fault of the caller", text, err)
				}
				continue
			}
			once, err := json.Marshal(body)
			if err != nil {
				continue // an address without a value cannot be written
			}
			again := reflect.New(reflect.TypeOf(example).Elem()).Interface()
			if err := read(string(once), again); err != nil {
				t.Errorf("%q was read as %s, which is not: %v", text, once, err)
			} else if twice, err := json.Marshal(again); err != nil || !bytes.Equal(once, twice) {
				t.Errorf("%s came back as %s, %v", once, twice, err)
			}
		}
	})
}

// Found by reading: a body of 4 MiB could be a list of 1.4 million empty values, some 100 MiB in memory.
func TestValuesOfABodyAreBounded(t *testing.T) {
	read := func(text string) error {
		return readJSON(httptest.NewRequest("POST", "/", strings.NewReader(text)), &AllowRequest{})
	}
	list := func(item string, n int) string {
		return `{"entries":[` + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + `]}`
	}
	var err error
	set := testutil.Allocated(func() { err = read(list("{}", 1<<20)) })
	if !errors.Is(err, eboot.ErrTooLarge) || set > 32<<20 {
		t.Errorf("%v, and %d MiB were set aside", err, set>>20)
	}
	// What is inside a string counts for nothing.
	for text, want := range map[string]int{`"a,[{\",["`: 0, `{"a":[1,2]}`: 3, `[]`: 1, `"\\",`: 1, ``: 0} {
		for n := range want + 2 {
			got, err := io.ReadAll(LimitValues(iotest.OneByteReader(strings.NewReader(text)), n))
			if fits := n >= want; fits != (err == nil) || fits && string(got) != text || !fits && !errors.Is(err, eboot.ErrTooLarge) {
				t.Errorf("%s, at most %d values: %q, %v", text, n, got, err)
			}
		}
	}
	// As many hosts as one change of the state may hold, with room.
	if err := read(list(`{"prefix":"10.1.2.3/32","channel":"stable"}`, 20_000)); err != nil {
		t.Error(err)
	}
}

func TestParseAddresses(t *testing.T) {
	got := ParseAddresses("10.0.0.1:4380, http://10.0.0.2:4380 unix:///run/eboot.sock")
	want := "http://10.0.0.1:4380 http://10.0.0.2:4380 unix:///run/eboot.sock"
	if strings.Join(got, " ") != want {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"ftp://x", "http://", "unix://relative", "http://x/path", "http://x?y=1"} {
		if _, err := NewClient(ClientOptions{Addresses: []string{bad}}); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A browser on the operator's machine reaches loopback addresses too.
func TestGuardRefusesForeignPages(t *testing.T) {
	s := NewServer(ServerOptions{Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }})
	for _, tc := range []struct {
		host, origin string
		want         int
	}{
		{"127.0.0.1:4380", "", 200}, {"localhost:4380", "", 200}, {"[::1]:4380", "", 200}, {socketHost, "", 200},
		{"127.0.0.1:4380", "http://127.0.0.1:4380", 200},
		{"evil.example:4380", "", 403}, {"127.0.0.1:4380", "http://evil.example", 403}, {"127.0.0.1:4380", "null", 403},
	} {
		r := httptest.NewRequest("GET", "/livez", nil)
		r.Host = tc.host
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		w := httptest.NewRecorder()
		s.handler(DoorInsecure).ServeHTTP(w, r)
		if w.Code != tc.want {
			t.Errorf("host %q, origin %q: status %d, want %d: %s", tc.host, tc.origin, w.Code, tc.want, w.Body)
		}
	}
	for path, want := range map[string]string{"/v1/nothing": "not_found", "/livez": "method_not_allowed"} {
		r := httptest.NewRequest("PATCH", path, nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		s.handler(DoorInsecure).ServeHTTP(w, r)
		if !strings.Contains(w.Body.String(), `"code":"`+want+`"`) {
			t.Errorf("PATCH %s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestClientTellsUnsentFromUnknown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// A server that reads a request and goes away: the write may have happened.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-gone
	})
	c, err := NewClient(ClientOptions{Addresses: []string{"http://" + ln.Addr().String()}, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	prefix, _ := eboot.ParsePrefix("10.0.0.1")
	if _, err := c.Allow(context.Background(), eboot.WhitelistEntry{Prefix: prefix}); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.Whitelist(context.Background()); !errors.Is(err, eboot.ErrUnreachable) {
		t.Errorf("read: %v", err)
	}
}

// The client moves on to the next address.
func TestClientTriesEveryAddress(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + free.Addr().String()
	free.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerRequestID) == "" {
			t.Error("a write without a request id")
		}
		_ = writeJSON(w, http.StatusOK, WriteResult{Generation: 7, Changed: true})
	}))
	defer server.Close()
	c, err := NewClient(ClientOptions{Addresses: []string{dead, server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	prefix, _ := eboot.ParsePrefix("10.0.0.1")
	if r, err := c.Allow(context.Background(), eboot.WhitelistEntry{Prefix: prefix}); err != nil || r.Generation != 7 {
		t.Errorf("%+v, %v", r, err)
	}
}
