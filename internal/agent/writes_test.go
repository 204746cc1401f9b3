package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// call sends one request with an Idempotency-Key and returns what came back.
func (s *server) call(t *testing.T, method, path, key, body string) (status int, reply string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.APIAddress()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Idempotency-Key", key)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

// open begins a publish of release(version) and sends its blobs.
func (s *server) open(t *testing.T, version string) (id string) {
	t.Helper()
	opened, err := s.OpenPublish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.DescribePublish(t.Context(), opened.ID, release(version).request(version)); err != nil {
		t.Fatal(err)
	}
	err = release(version).Blobs(t.Context(), func(eboot.Digest) bool { return true }, func(d eboot.Digest, size int64, r io.Reader) error {
		return s.PutBlob(t.Context(), opened.ID, d, size, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	return opened.ID
}

// A caller whose connection broke repeats its write under the same key: it is told
// what the first one did, whatever happened since.
func TestRepeatedWritesAnswerAlike(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	commit := "/v1/publishes/" + s.open(t, "1") + "/commit"
	remove := "/v1/bundles/app@1"
	twice := func(method, path, key, body string) (first string) {
		t.Helper()
		status, first := s.call(t, method, path, key, body)
		if status != http.StatusOK {
			t.Fatalf("%s %s: %d %s", method, path, status, first)
		}
		s.allow(t, "10.0.0."+key, "") // the generation moves on
		before := s.settled(t)
		if status, second := s.call(t, method, path, key, body); status != http.StatusOK || second != first {
			t.Errorf("%s %s: repeated: %d %s\nfirst: %s", method, path, status, second, first)
		}
		if now := s.Status(); now.Generation != before.Generation {
			t.Errorf("%s %s: the repeat changed the generation from %d to %d", method, path, before.Generation, now.Generation)
		}
		return first
	}
	var err error
	first := twice("POST", commit, "1", `{"channel": "stable"}`)
	var result api.PublishResult
	if err := json.Unmarshal([]byte(first), &result); err != nil || !result.Changed || len(result.Bundles) != 1 {
		t.Errorf("commit: %s, %v", first, err)
	}

	// The same key for the same bundle through another publish: the state machine knows it.
	again := "/v1/publishes/" + s.open(t, "1") + "/commit"
	status, second := s.call(t, "POST", again, "1", `{"channel": "stable"}`)
	if status != http.StatusOK || second != first {
		t.Errorf("the same key for another publish: %d %s", status, second)
	}
	if status, reply := s.call(t, "POST", "/v1/whitelist", "1/"+testERTS, `{"entries": [{"prefix": "10.9.9.9/32", "channel": "stable"}]}`); status != http.StatusConflict {
		t.Errorf("the same key for another write: %d %s", status, reply)
	}

	s.publish(t, "2", eboot.DefaultChannel) // lets go of app@1
	first = twice("DELETE", remove, "2", "")
	var removed api.WriteResult
	if err := json.Unmarshal([]byte(first), &removed); err != nil || !removed.Changed {
		t.Errorf("rm: %s, %v", first, err)
	}
	if status, reply := s.call(t, "DELETE", remove, "3", ""); status != http.StatusNotFound {
		t.Errorf("rm of what is gone: %d %s", status, reply)
	}

	token := api.TokenRequest{Name: "ci", Role: eboot.RoleViewer}
	if token.ID, token.Digest, err = eboot.ParseToken(eboot.FormatToken([8]byte{1}, [32]byte{2})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CreateToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	confusing := token
	confusing.Name = token.ID
	if _, err := s.client.CreateToken(t.Context(), confusing); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a token with the name of an id: %v", err)
	}
	twice("DELETE", "/v1/tokens/ci", "4", "") // its name says nothing any more
	if status, reply := s.call(t, "DELETE", "/v1/tokens/ci", "5", ""); status != http.StatusNotFound {
		t.Errorf("revoke of what is gone: %d %s", status, reply)
	}
	s.stop(t)

	// The memory is replicated state: a restart keeps it, and a bundle of that name that
	// was published since is not the one that was removed.
	s = start(t, c)
	s.publish(t, "1", "")
	if status, reply := s.call(t, "DELETE", remove, "2", ""); status != http.StatusOK || reply != first {
		t.Errorf("rm, repeated after a restart: %d %s", status, reply)
	}
	if _, err := s.client.Bundle(t.Context(), app("1")); err != nil {
		t.Errorf("the repeat removed what was published since: %v", err)
	}
}

// What nobody goes on with is forgotten, and with it its protection from collection;
// not while a blob is on its way, however slowly.
func TestIdlePublishesAreForgotten(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	idle := s.open(t, "idle")
	opened, err := s.OpenPublish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slow := opened.ID
	content := "code of slow"
	reader, writer := io.Pipe()
	arrived := make(chan error, 1)
	go func() {
		arrived <- s.PutBlob(context.Background(), slow, eboot.DigestOf([]byte(content)), int64(len(content)), reader)
	}()
	if _, err := io.WriteString(writer, content[:4]); err != nil { // PutBlob reads: it has begun
		t.Fatal(err)
	}

	if found := s.publishes.forget(s.now().Add(-time.Minute)); len(found) != 0 {
		t.Errorf("%d publishes were forgotten after no time", len(found))
	}
	later := s.now().Add(time.Hour)
	found := s.publishes.forget(later)
	if len(found) != 1 || found[0].id != idle {
		t.Fatalf("forgotten: %v", found)
	}
	if err := found[0].close(); err != nil { // as the sweep does
		t.Fatal(err)
	}
	if _, err := s.CommitPublish(t.Context(), idle, api.Write{RequestID: "x"}, api.PublishCommit{}); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("commit of a forgotten publish: %v", err)
	}

	if _, err := io.WriteString(writer, content[4:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writer.Close(), <-arrived); err != nil {
		t.Fatal(err)
	}
	if found := s.publishes.forget(s.now().Add(-time.Minute)); len(found) != 0 {
		t.Errorf("a publish that a blob just arrived for was forgotten")
	}
	found = s.publishes.forget(later)
	if len(found) != 1 || found[0].id != slow {
		t.Fatalf("forgotten: %v", found)
	}
	if err := found[0].close(); err != nil {
		t.Fatal(err)
	}
	if err := s.PutBlob(t.Context(), slow, eboot.DigestOf(nil), 0, strings.NewReader("")); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("a blob for a forgotten publish: %v", err)
	}
	testutil.Poll(t, patience, "a leader is to be there, without whom nothing is collected", func() bool {
		return s.collectBlobs(t.Context()) == nil
	})
	if n := s.store.Summary().Blobs; n != 0 {
		t.Errorf("%d blobs of forgotten publishes are left", n)
	}
}

// A server that is told to stop answers the write that has begun, ends the streams
// that would never end, and leaves no goroutine behind: see TestMain.
func TestStopWithOpenRequests(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	followed, seen := make(chan error, 1), make(chan eboot.Boot, 1)
	go func() {
		followed <- s.client.FollowBoots(context.Background(), func(b eboot.Boot) error {
			select {
			case seen <- b:
			default:
			}
			return nil
		})
	}()
	testutil.Poll(t, patience, "the follow is to hear of a boot", func() bool {
		s.boots(t, "127.0.0.1", "1")
		return len(seen) > 0
	})

	target := strings.TrimPrefix(s.APIAddress(), "http://")
	conn, err := net.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	body := []byte(`{"entries": [{"prefix": "10.0.0.1/32", "channel": "stable"}]}`)
	head := "POST /v1/whitelist HTTP/1.1\r\nHost: " + target + "\r\nIdempotency-Key: stop\r\nExpect: 100-continue\r\nContent-Length: " +
		jsonNumber(len(body)) + "\r\n\r\n"
	if _, err := conn.Write([]byte(head)); err != nil {
		t.Fatal(err)
	}
	replies := bufio.NewReader(conn)
	if line, err := replies.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") { // the handler reads the body
		t.Fatalf("%q, %v", line, err)
	}

	s.cancel()
	testutil.Poll(t, 15*time.Second, "the API is to take no further connections", func() bool {
		further, err := net.DialTimeout("tcp", target, time.Second)
		if err == nil {
			_ = further.Close()
		}
		return err != nil
	})
	select {
	case <-s.done:
		t.Fatal("the server ended with a write under way")
	default:
	}
	if _, err := conn.Write(body); err != nil {
		t.Fatal(err)
	}
	if _, err := replies.ReadString('\n'); err != nil { // the empty line after 100 Continue
		t.Fatal(err)
	}
	response, err := http.ReadResponse(replies, nil)
	if err != nil {
		t.Fatalf("the write was not answered: %v", err)
	}
	defer response.Body.Close()
	var result api.WriteResult
	if err := json.NewDecoder(response.Body).Decode(&result); err != nil || response.StatusCode != http.StatusOK || !result.Changed {
		t.Errorf("the write was answered %d, %+v, %v", response.StatusCode, result, err)
	}
	select {
	case err := <-followed:
		if !errors.Is(err, eboot.ErrUnreachable) || !strings.Contains(err.Error(), "the server ended the stream") { // and did not break it off
			t.Errorf("the follow ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the follow has not ended")
	}
	s.stop(t) // Run returned nil

	s = start(t, c)
	if !s.whitelisted(t, "10.0.0.1") {
		t.Error("the write was acknowledged and is lost")
	}
}

func jsonNumber(n int) string {
	text, _ := json.Marshal(n)
	return string(text)
}

// The API's socket takes the place of one that a server left behind, and of nothing else.
func TestAPISocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "eboot") // the name of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "api")
	c := settings(t)
	c.API.Socket = path
	refused := func(want error) {
		t.Helper()
		a, err := New(Options{Config: c, Logger: (&logged{}).logger(t), Version: "test"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := a.Run(ctx); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("run: %v; want %v, with the path", err, want)
		}
	}

	precious := []byte("somebody's file")
	if err := os.WriteFile(path, precious, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(eboot.ErrInvalid)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, precious) {
		t.Errorf("the file is now %q, %v", now, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	other := settings(t)
	other.API.Socket = path
	s := start(t, other)
	refused(eboot.ErrConflict)
	viaSocket := func() error {
		client, err := api.NewClient(api.ClientOptions{Addresses: []string{"unix://" + path}})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = client.Readiness(t.Context())
		return err
	}
	if err := viaSocket(); err != nil {
		t.Errorf("the other server's socket was hurt: %v", err)
	}
	s.stop(t)

	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, c)
	if err := viaSocket(); err != nil {
		t.Errorf("in the place of a socket that was left behind: %v", err)
	}
}
